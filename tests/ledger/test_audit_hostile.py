"""Every field of every event, said otherwise by a hub that owns all keys: the audit refuses it, or it is on the list of
what nobody can see from a log (docs/auditors.md).

A sample in each run; HOSTILE_CHANGES=all tries everything, HOSTILE_SEED another sample.
"""

import os
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
from crew_life import LOG
from every_event import as_written_before, live_through_everything
from forged_log import ORIGIN, publish_entries
from hostile_log import Change, changes, replayed

from bench.evening import MemoryLedger
from ledger.audit import audit
from ledger.event_codec import EVENT_TYPES, encode, tag_of
from ledger.events import Event
from ledger.settings import BOUNDS
from ledger.tlog.publisher import Publisher

ALL: Final = os.environ.get("HOSTILE_CHANGES") == "all"
SEED: Final = int(os.environ.get("HOSTILE_SEED", "1"))
DOCS: Final = Path(__file__).parents[2] / "docs/auditors.md"

# Why nobody can see it: as docs/auditors.md says it.
TIME = "when something happened"
PEOPLE = "whose an opaque id is"
HIDDEN = "what a commitment or a hash stands for"
WORDS = "whether words are true"
DECIDED = "whether a decision was fair"
MEASURED = "what the hub measured"
MEDIA = "what was in a segment"
LAST = "what was published last and claimed by nobody"
OUTSIDE = "what happened outside"
WHICH = "which of equals was meant"

UNSEEN: Final[dict[str, str]] = {
    "book.adjustment_booked.v1 reason": WORDS,
    "book.adjustment_booked.v1 reference": WORDS,
    "book.adjustment_booked.v1 transfer.rests_on": DECIDED,
    "book.adjustment_booked.v1 transfer.rests_on[]": DECIDED,
    "book.budget_deposited.v1 reference": WORDS,
    "book.budget_withdrawn.v1 reference": WORDS,
    "book.dispute_opened.v1 reason": WORDS,
    "book.dispute_rejected.v1 reason": WORDS,
    "book.dispute_upheld.v1 reason": WORDS,
    "book.payout_line_returned.v1 reason": WORDS,
    "book.payout_line_returned.v1 reference": WORDS,
    "book.tariff_set.v1 effective_epoch": DECIDED,
    "book.tariff_set.v1 fee_bp": DECIDED,
    "book.tariff_set.v1 floor_bp": DECIDED,
    "book.tariff_set.v1 plain_bp": DECIDED,
    "book.tariff_set.v1 plain_income_cap_bp": DECIDED,
    "book.tariff_set.v1 rate_micro_per_gb": DECIDED,
    "broadcast.ended.v1 reason": WORDS,
    "broadcast.interrupted.v1 reason": WORDS,
    "broadcast.segments_published.v1 segments": LAST,
    "broadcast.segments_published.v1 segments[].discontinuity": MEDIA,
    "broadcast.segments_published.v1 segments[].duration_us": MEDIA,
    "broadcast.segments_published.v1 segments[].program_us": MEDIA,
    "broadcast.segments_published.v1 segments[].segment_bytes": MEDIA,
    "broadcast.segments_published.v1 segments[].sha256": MEDIA,
    "broadcast.started.v1 audio_codec": WORDS,
    "broadcast.started.v1 video_codec": WORDS,
    "crew.founded.v1 name": WORDS,
    "crew.founded.v1 unit": WORDS,
    "delivery.segments_served.v1 batch_header": WHICH,
    "delivery.segments_served.v2 batch_header": WHICH,
    "invite.created.v1 expires_us": DECIDED,
    "node.joined.v1 prefix_commitment": HIDDEN,
    "node.moved.v1 prefix_commitment": HIDDEN,
    "node.probed.v1 latency_us": MEASURED,
    "node.probed.v1 outcome": MEASURED,
    "node.probed.v1 segment_bytes": MEASURED,
    "node.probed.v1 sequence": MEASURED,
    "node.probed.v2 latency_us": MEASURED,
    "node.probed.v2 outcome": MEASURED,
    "node.probed.v2 segment_bytes": MEASURED,
    "node.probed.v2 sequence": MEASURED,
    "node.reinstated.v1 reason": WORDS,
    "node.retired.v1 reason": WORDS,
    "node.seen_at.v1 prefix_commitment": HIDDEN,
    "node.suspended.v1 reason": WORDS,
    "node.went_offline.v1 reason": WORDS,
    "payout.approved.v1 operator": WORDS,
    "payout.cancelled.v1 reason": WORDS,
    "payout.planned.v1 lines": DECIDED,
    "payout.planned.v1 lines[].amount_micro": DECIDED,
    "payout.planned.v1 lines[].destination_commitment": HIDDEN,
    "payout.planned.v1 lines[].friend_id": DECIDED,
    "payout.planned.v1 rail": WORDS,
    "payout.proposed.v1 operator": WORDS,
    "payout.resolved.v1 reference": OUTSIDE,
    "session.observed.v1 base_sequence": MEASURED,
    "session.observed.v1 fetched_at_hub": MEASURED,
    "session.observed.v1 polled": MEASURED,
    "session.opened.v1 account_id": PEOPLE,
    "stream.archived.v1 reason": WORDS,
    "stream.key_rotated.v1 key_sha256": HIDDEN,
    "stream.registered.v1 key_sha256": HIDDEN,
    "stream.registered.v1 owner_id": PEOPLE,
    "stream.went_offline.v1 reason": WORDS,
    "tree.state_recorded.v1 position": WHICH,
    **{f"crew.settings_changed.v1 settings[{name}]": DECIDED for name in BOUNDS},
}


@lru_cache(1)
def lived() -> tuple[Event, ...]:
    ledger = MemoryLedger()
    with TemporaryDirectory() as folder:
        publisher = Publisher(ledger, Path(folder) / "log", LOG, ORIGIN)
        live_through_everything(
            ledger,  # type: ignore[arg-type]
            Path(folder),
            lambda at_us: publisher.publish(at_us=at_us),
        )
    return tuple(recorded.event for recorded in ledger.log)


Life = tuple[Event, ...]
LIVES: Final[dict[str, Callable[[], Life]]] = {
    "": lived,
    ".v1": lambda: tuple(as_written_before(event) for event in lived()),
}


def entries_of(life: Life) -> list[bytes]:
    return [encode(event) for event in life]


@pytest.mark.parametrize("life", LIVES.values(), ids=["new", "old"])
def test_a_life_with_every_event_passes(tmp_path: Path, life: Callable[[], Life]) -> None:
    publish_entries(tmp_path, entries_of(life()))
    assert audit(tmp_path, jobs=1).problem is None


def test_every_type_of_event_is_among_them() -> None:
    assert {tag_of(event) for life in LIVES.values() for event in life()} == set(EVENT_TYPES)


@lru_cache(None)
def said_otherwise(tag: str) -> dict[str, list[tuple[int, bytes]]]:
    """What of an event of that type is changed -> where, and the event as it is then."""
    dice = random.Random(SEED)
    life = next(life() for life in LIVES.values() if tag in map(tag_of, life()))
    ids = sorted({event.originator_id for event in life}, key=str)
    places = [at for at, event in enumerate(life) if tag_of(event) == tag]
    found: dict[str, list[tuple[int, bytes]]] = {}
    for at in places if ALL else sorted({places[0], dice.choice(places), places[-1]}):
        for path, data in _encoded(changes(life[at], ids, dice)):
            if data != encode(life[at]):
                found.setdefault(path, []).append((at, data))
    for some in found.values():
        dice.shuffle(some)
    return found


def _encoded(some: Iterator[Change]) -> Iterator[tuple[str, bytes]]:
    for path, event in some:
        try:
            yield path, encode(event)
        except (ValueError, OverflowError, AttributeError):  # nothing that a log could hold
            continue


def passes(tag: str, at: int, data: bytes) -> bool:
    life = next(life() for life in LIVES.values() if tag in map(tag_of, life()))
    entries = entries_of(life)
    return replayed([*entries[:at], data, *entries[at + 1 :]]) is None


def unseen(tag: str, path: str) -> bool:
    return path == "at_us" or f"{tag} {path}" in UNSEEN


@pytest.mark.parametrize("tag", sorted(EVENT_TYPES))
def test_what_is_said_otherwise_is_refused_or_known_to_be_unseen(tag: str) -> None:
    wrong = {}
    for path, some in said_otherwise(tag).items():
        if not unseen(tag, path):
            passed = [(at, data.hex()) for at, data in (some if ALL else some[:1]) if passes(tag, at, data)]
            if passed:
                wrong[path] = passed[0]
        elif not any(passes(tag, at, data) for at, data in some):
            wrong[path] = "is seen after all"  # type: ignore[assignment]
    assert wrong == {}


def test_what_nobody_can_see_is_written_down_for_auditors() -> None:
    text = " ".join(DOCS.read_text().split())
    assert [why for why in {TIME, *UNSEEN.values()} if f"**{why.capitalize()}.**" not in text] == []
    assert {key.partition(" ")[0] for key in UNSEEN} <= set(EVENT_TYPES)
