"""The verdicts of an event, or of several of one broadcast, at once: the rules of `ledger.judge` on columns of numbers.

Invariant: `judge` says yes only where `ledger.judge.judge_signed`, receipt by receipt, would give exactly the recorded
verdicts, and then has credited the same units. It says no, and has changed nothing, to everything else, right or wrong:
what it does not decide is for the judge of single receipts. A property test holds the two together.

Receipts of one group (a viewer network, or a session without one) see each other's credits, those of different groups
do not: the first of each group are judged in columns, what follows in a group is judged one by one.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ledger.audit import tickets as t
from ledger.audit.cells import CELL_BITS, CELL_WORDS
from ledger.audit.credits import Credits
from ledger.audit.facts import Broadcast, Ints
from ledger.audit.fresh import Claims, Sums, find
from ledger.audit.runs import Bools, ends
from ledger.events import SegmentsServed
from ledger.judge import NodeFacts
from ledger.judged import CAP_CODES, SESSION_BYTES, VERDICT_CODES
from ledger.receipt import MAX_BASE_SEQUENCE, SIGNED_BYTES, VERSION
from ledger.settings import Settings
from ledger.verdict import Verdict

# ledger.receipt: version, ticket hash, counter, base sequence, bitmap, digest; then the signature. Big-endian.
RECEIPT: Final = np.dtype(
    [
        ("version", "u1"),
        ("ticket", "V32"),
        ("counter", ">u4"),
        ("base", ">u8"),
        ("bitmap", "V64"),
        ("digest", "V32"),
        ("signature", "V64"),
    ]
)
assert RECEIPT.itemsize == SIGNED_BYTES
_ACCEPTED, _CAPPED = VERDICT_CODES[Verdict.ACCEPTED.value], VERDICT_CODES[Verdict.CAPPED.value]
_WRONG_NODE, _BAD_SIGNATURE = (
    VERDICT_CODES[Verdict.WRONG_NODE.value],
    VERDICT_CODES[Verdict.BAD_SIGNATURE.value],
)
_LATE, _OUT_OF_RANGE = VERDICT_CODES[Verdict.LATE.value], VERDICT_CODES[Verdict.OUT_OF_RANGE.value]
_MISMATCH, _DUPLICATE = VERDICT_CODES[Verdict.DIGEST_MISMATCH.value], VERDICT_CODES[Verdict.DUPLICATE.value]
TOGETHER: Final = 2_048  # receipts that are judged at once
_LIMIT: Final = 1 << 62


class Served(NamedTuple):
    position: int
    event: SegmentsServed
    node: NodeFacts


JudgeRest = Callable[[list[list[int]]], bool]
"""Judges these receipts of each event one by one, in order. Credits them when all verdicts are the recorded ones."""


class Columns(NamedTuple):
    """What the dues and the signatures need of events whose verdicts hold: one value a receipt."""

    tickets: npt.NDArray[np.int64]  # ledger.audit.credits
    viewer_keys: npt.NDArray[np.uint8]
    verdicts: npt.NDArray[np.uint8]
    newest: Ints  # sequence of the last segment that is claimed, where one is


def judge(
    credits: Credits,
    broadcast: Broadcast,
    served: Sequence[Served],
    settings: Settings,
    judge_rest: JudgeRest,
) -> Columns | None:
    """The columns of all events when every verdict is the recorded one; None, and nothing changed, when that is not
    known. `settings` are in force for all, and no node changed in between."""
    first, published = broadcast.manifest.first, len(broadcast.sums) - 1
    events = [s.event for s in served]
    if any(e.first_sequence != first for e in events):
        return None
    if not 0 <= first < _LIMIT or broadcast.sums[-1] >= _LIMIT:
        return None
    data = np.frombuffer(_joined(events, "receipts"), RECEIPT)
    base = data["base"].astype(np.uint64)
    if (data["version"] != VERSION).any() or base.max() > MAX_BASE_SEQUENCE:
        return None
    count = len(data)
    places = credits.tickets.places(
        np.ascontiguousarray(data["ticket"]).view(np.uint64).reshape(count, t.HASH_WORDS)
    )
    if places is None:
        return None
    tickets = credits.tickets.columns.take(places, axis=1)
    counts = [len(e.indices) for e in events]
    of = np.repeat(np.arange(len(events)), counts)  # which event each receipt is of
    if (
        not tickets[t.IN_COLUMNS].all()
        or (tickets[t.ISSUED] >= np.array([s.position for s in served])[of]).any()
    ):
        return None
    if not _of_these_events(credits, broadcast, events, of, places, tickets):
        return None
    recorded = np.frombuffer(_joined(events, "verdicts"), np.uint8)
    start = tickets[t.CHUNK] * CELL_BITS  # of the ticket's first cell, in segments of the broadcast

    offset = base.astype(np.int64) - first - start
    bitmap = np.ascontiguousarray(data["bitmap"]).view("<u8").reshape(count, CELL_WORDS).astype(np.uint64)
    lowest, end, run = ends(bitmap)
    nothing, lowest, end = lowest == end, offset + lowest, offset + end
    outside = (lowest < tickets[t.LO]) | (end > np.minimum(tickets[t.HI], published - start))

    sums = Sums(broadcast.sums.tail, broadcast.sums.start)
    low, high = start + tickets[t.LO], np.minimum(start + tickets[t.HI], published)
    if sums.gone and (low < sums.gone).any():
        return None
    covered = sums.between(np.minimum(low, high), high)

    # What depends on the receipt before it, or on what only one receipt in a thousand needs, is judged by itself.
    single = (covered > tickets[t.BUDGET]) | (recorded == _MISMATCH) | nothing
    if len(set(tickets[t.GROUP].tolist())) < count:
        later = np.ones(count, np.bool_)
        later[np.unique(tickets[t.GROUP], return_index=True)[1]] = False
        single |= later
    claims = Claims(offset, bitmap, lowest, end, run)
    found = find(credits, tickets, claims, ~(outside | single), settings.prefix_sessions_max, sums)
    if found is None:
        return None
    units, sizes = found.units, found.sizes

    verdicts = np.full(count, _ACCEPTED, np.uint8)
    capped = np.concatenate(
        [
            _caps(credits, s.node, settings, tickets[:, to - n : to], units[to - n : to])
            for s, n, to in zip(served, counts, np.cumsum(counts).tolist(), strict=True)
        ]
    )
    now_s = np.array([e.at_us // 1_000_000 for e in events])[of]
    nodes = np.array([credits.tickets.numbers.get(b"k" + s.node.public_key, -1) for s in served])[of]
    for code, where in (  # the last that applies
        (_CAPPED, capped > 0),
        (_DUPLICATE, ~found.any),
        (_OUT_OF_RANGE, outside),
        (_LATE, now_s > tickets[t.SETTLE_S]),
        (_BAD_SIGNATURE, recorded == _BAD_SIGNATURE),  # verified to be one, with all other signatures
        (_WRONG_NODE, tickets[t.NODE] != nodes),
    ):
        verdicts[where] = code
    accepted = verdicts == _ACCEPTED
    same = (
        (verdicts == recorded)
        & (np.where(verdicts == _CAPPED, capped, 0) == np.frombuffer(_joined(events, "caps"), np.uint8))
        & (units * accepted == np.frombuffer(_joined(events, "units"), ">u2"))
        & ((sizes * accepted).astype(np.uint64) == np.frombuffer(_joined(events, "credited_bytes"), ">u8"))
    )
    rest = bool(single.any())
    if not (same | single if rest else same).all():
        return None

    undo = found.credit(accepted & ~single)
    if rest and not judge_rest(_by_event(single, of, counts)):
        undo()
        return None
    return Columns(tickets, credits.tickets.viewer_keys[places], recorded, first + start + end - 1)


def _joined(events: Sequence[SegmentsServed], column: str) -> bytes:
    return b"".join([getattr(e, column) for e in events]) if len(events) > 1 else getattr(events[0], column)


def _by_event(which: Bools, of: Ints, counts: list[int]) -> list[list[int]]:
    """For each event which of its receipts."""
    starts = np.cumsum([0, *counts])
    return [(np.flatnonzero(which & (of == n)) - starts[n]).tolist() for n in range(len(counts))]


def _of_these_events(
    credits: Credits,
    broadcast: Broadcast,
    events: Sequence[SegmentsServed],
    of: Ints,
    places: Ints,
    tickets: Ints,
) -> bool:
    """Whether the tickets are of the broadcast, and sessions and networks are theirs."""
    if (tickets[t.BROADCAST] != credits.tickets.numbers.get(b"b" + broadcast.key, -1)).any():
        return False
    known = np.frombuffer(_joined(events, "sessions"), np.uint64).reshape(-1, t.ID_WORDS)
    before = np.cumsum([0] + [len(e.sessions) // SESSION_BYTES for e in events])
    if (
        known[_index(_joined(events, "session_of")) + before[of]] != credits.tickets.session_ids[places]
    ).any():
        return False
    networks = list(chain.from_iterable([e.networks for e in events]))
    which = _index(_joined(events, "network_of")) + np.cumsum([0] + [len(e.networks) for e in events])[of]
    if set(map(len, networks)) == {t.NETWORK_BYTES} and tickets[t.NETWORK_WHOLE].all():
        known = np.frombuffer(b"".join(networks), np.uint64).reshape(-1, t.ID_WORDS)
        return bool((known[which] == credits.tickets.network_ids[places]).all())
    numbers = [credits.tickets.numbers.get(b"w" + network, -1) for network in networks]
    return bool((tickets[t.NETWORK] == np.array(numbers)[which]).all())


def _index(column: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(column, np.uint8)


def _caps(
    credits: Credits, node: NodeFacts, settings: Settings, tickets: Ints, units: Ints
) -> npt.NDArray[np.uint8]:
    """The cap that holds a receipt back, were it accepted otherwise; 0 where none does. Byte budgets are not here."""
    caps = np.zeros(len(units), np.uint8)
    caps[units == 0] = CAP_CODES["prefix_sessions"]
    if settings.same_network_forbidden:
        for network in node.networks - {b""}:
            caps[tickets[t.NETWORK] == credits.tickets.numbers.get(b"w" + network, -1)] = CAP_CODES[
                "same_network"
            ]
    friend = credits.tickets.numbers.get(b"f" + node.friend_id.bytes, -2)
    caps[tickets[t.ACCOUNT] == friend] = CAP_CODES["own_account"]
    if node.suspended:
        kept_out = (tickets[t.PLAIN] == 1) if settings.suspended_signed_paid else np.full(len(units), True)
        caps[kept_out] = CAP_CODES["node_suspended"]
    return caps
