"""A dishonest hub alters what became of money after it was earned: disputes, corrections, releases, the order of lines.
The audit names the position."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from crew_life import LOG, Life, make_id
from forged_log import ORIGIN, altered, find, publish_entries

from ledger.application import Ledger
from ledger.audit import audit
from ledger.event_codec import decode, encode
from ledger.events import (
    AdjustmentBooked,
    DisputeOpened,
    DisputeRejected,
    DisputeUpheld,
    EpochSettled,
    Event,
    HoldsReleased,
    PayoutAttempted,
    PayoutLineConfirmed,
    PayoutLineReserved,
    PayoutLineReturned,
    PayoutPlanned,
    Posting,
    StateRecorded,
    Transfer,
)
from ledger.services import crew, disputes, payouts, returns, settle
from ledger.tlog.publisher import Publisher

Entries = list[bytes]


def lived(ledger: Ledger, folder: Path) -> list[Event]:
    """A dispute upheld, one rejected before and one after its hold was released, corrections, and a payout."""
    life = Life(ledger)
    life.found()
    crew.change_settings(ledger, {"hold_s": 7_200, "payout_threshold_micro": 1}, at_us=life.tick())
    for name in ("anna", "ben"):
        life.join(name)
    life.go_live()
    for name, viewer, some in (("anna", "vera", [0, 1, 2]), ("ben", "walt", [0, 1, 2, 3])):
        life.batch(name, life.receipt(life.ticket(name, viewer), viewer, some))
    life.tick(3_600)
    life.settle()
    (at,) = [
        r.position for r in ledger.read(0, 10_000) if isinstance(r.event, EpochSettled) and r.event.lines
    ]
    for line in (0, 1, 2):
        disputes.open_dispute(ledger, at, line, reason="why", at_us=life.tick())
    disputes.decide_dispute(ledger, 1, uphold=True, reason="so", at_us=life.tick())
    disputes.decide_dispute(ledger, 2, uphold=False, reason="so", at_us=life.tick())
    life.tick(7_200)
    settle.release_due_holds(ledger, hold_s=7_200, at_us=life.now_us)
    disputes.decide_dispute(ledger, 3, uphold=False, reason="so", at_us=life.tick())
    for n, (source, target) in enumerate(
        [(f"budget:{life.stream_id}", "friend"), ("friend", "fees"), ("fees", f"budget:{life.stream_id}")]
    ):
        friend = f"friend:{life.nodes['anna'][1].friend_id}:available"
        disputes.adjust(
            ledger,
            source=source.replace("friend", friend),
            target=target.replace("friend", friend),
            amount_micro=10,
            reference=f"a{n}",
            reason="counted",
            rests_on=(at,),
            at_us=life.tick(),
        )
    life.pay(folder)
    batch_id = payouts.batches(ledger)[0].id
    for n, amount in enumerate((7, None)):
        returns.return_line(
            ledger,
            batch_id,
            1,
            amount_micro=amount,
            reference=f"back {n}",
            reason="account closed",
            at_us=life.tick(),
        )
    Publisher(ledger, folder / "log", LOG, ORIGIN).publish(at_us=life.tick())  # writes a state leaf
    return [r.event for r in ledger.read(0, 10_000)]


def report_of(folder: Path, entries: Entries) -> tuple[int | None, str]:
    publish_entries(folder, entries)
    problem = audit(folder, jobs=1).problem
    return (None, "") if problem is None else (problem.position, problem.reason)


def dropped(events: list[Event], at: int) -> Entries:
    """Without one event; the later ones of its aggregate move up, as a careful forger would have it."""
    gone = events[at]
    left = []
    for i, event in enumerate(events):
        if i == at:
            continue
        if i > at and event.originator_id == gone.originator_id:
            event = msgspec.structs.replace(event, originator_version=event.originator_version - 1)
        left.append(encode(event))
    return left


def moved(transfer: Transfer, **accounts: str) -> Transfer:
    """To or from other accounts."""
    source, target = transfer.postings
    return Transfer(
        transfer.reason,
        (
            Posting(accounts.get("source", source.account), source.amount_micro),
            Posting(accounts.get("target", target.account), target.amount_micro),
        ),
        transfer.rests_on,
    )


def raised(transfer: Transfer) -> Transfer:
    source, target = transfer.postings
    return Transfer(
        transfer.reason,
        (
            Posting(source.account, source.amount_micro - 1),
            Posting(target.account, target.amount_micro + 1),
        ),
        transfer.rests_on,
    )


def swapped(event: EpochSettled) -> dict[str, Any]:
    return {"lines": (event.lines[1], event.lines[0], *event.lines[2:])}


def first(
    kind: type[Event], nth: int = 0, /, **changes: Any
) -> tuple[type[Event], int, Callable[[Any], Any]]:
    return kind, nth, lambda _: changes


def of(kind: type[Event], change: Callable[[Any], dict[str, Any]], nth: int = 0) -> Any:
    return kind, nth, change


# What is altered, and part of the reason; found where it was altered.
FORGERIES: dict[str, tuple[Any, str]] = {
    "lines in another order": (of(EpochSettled, swapped), "by the rules"),
    "a dispute of more": (
        of(DisputeOpened, lambda e: {"amount_micro": e.amount_micro + 1}),
        "not of that line",
    ),
    "a dispute of another line": (first(DisputeOpened, line=3), "not of that line"),
    "a dispute of no line": (first(DisputeOpened, line=99), "no such line"),
    "a dispute of another friend": (first(DisputeOpened, friend_id=make_id("me")), "not of that line"),
    "a dispute by anybody": (first(DisputeOpened, opened_by="viewer"), "nobody may open"),
    "a dispute with another number": (first(DisputeOpened, 1, dispute=3), "not the next one"),
    "a line disputed twice": (first(DisputeOpened, 1, line=0), "disputed before"),
    "a decision on another dispute": (first(DisputeUpheld, dispute=2), "another amount"),
    "an upheld amount that goes elsewhere": (
        of(DisputeUpheld, lambda e: {"transfers": (moved(e.transfers[0], target="fees"),)}),
        "must move from",
    ),
    "an upheld dispute that takes more": (
        of(DisputeUpheld, lambda e: {"transfers": (raised(e.transfers[0]),)}),
        "were disputed",
    ),
    "an upheld dispute that takes nothing": (first(DisputeUpheld, transfers=()), "too much or too little"),
    "a rejected one that is not released": (
        first(DisputeRejected, 1, transfers=()),
        "too much or too little",
    ),
    "a release of what is in dispute": (
        of(HoldsReleased, lambda e: {"transfers": (raised(e.transfers[0]), *e.transfers[1:])}),
        "not what is held",
    ),
    "a correction from friend to friend": (
        of(
            AdjustmentBooked,
            lambda e: {"transfer": moved(e.transfer, source=f"friend:{make_id('friend ben')}:available")},
        ),
        "from friend to friend",
    ),
    "a correction out of the pending": (
        of(
            AdjustmentBooked,
            lambda e: {"transfer": moved(e.transfer, source=f"friend:{make_id('friend ben')}:pending")},
            1,
        ),
        "negative",
    ),
    "a correction to the outside": (
        of(AdjustmentBooked, lambda e: {"transfer": moved(e.transfer, target="external")}, 1),
        "is adjusted",
    ),
    "a correction that rests on what comes": (
        of(
            AdjustmentBooked,
            lambda e: {"transfer": Transfer("adjustment", e.transfer.postings, (10**6,))},
        ),
        "not there yet",
    ),
    "a correction booked twice": (first(AdjustmentBooked, 1, reference="a0"), "used before"),
    "a payout line of another friend": (
        of(
            PayoutLineReserved,
            lambda e: {
                "transfer": moved(
                    e.transfer,
                    source=f"friend:{make_id('me')}:available",
                    target=f"friend:{make_id('me')}:in_flight",
                )
            },
        ),
        "must move from",
    ),
    "more that comes back than was paid": (
        of(PayoutLineReturned, lambda e: {"transfer": raised(e.transfer)}, 1),
        "",  # of the line, or of all that the friend was ever paid
    ),
    "a return booked twice": (first(PayoutLineReturned, 1, reference="back 0"), "used before"),
    "a return under a deposit's name": (first(PayoutLineReturned, 0, reference="a1"), "used before"),
    "a return of no line": (first(PayoutLineReturned, line=99), "has no line"),
    "a return of another friend's line": (first(PayoutLineReturned, line=2), "must move from"),
    "a return of no payout": (first(PayoutLineReturned, batch_id=make_id("none")), "never planned"),
    "a return into the budget": (
        of(PayoutLineReturned, lambda e: {"transfer": moved(e.transfer, target="fees")}),
        "must move from",
    ),
    "a return out of what is available": (
        of(
            PayoutLineReturned,
            lambda e: {
                "transfer": moved(
                    e.transfer, source=e.transfer.postings[0].account.replace("paid", "available")
                )
            },
        ),
        "must move from",
    ),
    "a return by another name": (
        of(PayoutLineReturned, lambda e: {"transfer": Transfer("payout_failed", e.transfer.postings)}),
        "should say",
    ),
    "a payout that is not the next": (
        of(PayoutPlanned, lambda e: {"lines": (*e.lines, e.lines[0])}),
        "numbered from 1",
    ),
}


@pytest.fixture
def events(ledger: Ledger, tmp_path: Path) -> list[Event]:
    return lived(ledger, tmp_path)


def test_each_forgery_is_found_where_it_stands(events: list[Event], tmp_path: Path) -> None:
    assert report_of(tmp_path / "honest", [encode(e) for e in events]) == (None, "")
    wrong = {}
    for n, (name, ((kind, nth, change), why)) in enumerate(FORGERIES.items()):
        some = (lambda e: bool(e.lines)) if kind is EpochSettled else bool
        at = find(events, kind, nth, some)
        entries = [encode(e) for e in events]
        entries[at] = altered(events[at], **change(events[at]))
        assert decode(entries[at]) != events[at], name
        found, reason = report_of(tmp_path / f"{n}", entries)
        if found != at or why not in reason:
            wrong[name] = (at, found, reason)
    assert wrong == {}


@pytest.mark.parametrize(
    ("kind", "nth", "found", "why"),
    [
        (DisputeOpened, 0, DisputeOpened, "not the next one"),  # the second says that it is the second
        (DisputeOpened, 2, HoldsReleased, "not what is held"),
        (DisputeUpheld, 0, StateRecorded, ""),  # it might be open still, but for the balances
        (DisputeRejected, 0, HoldsReleased, ""),
        (HoldsReleased, 0, DisputeRejected, ""),
        (AdjustmentBooked, 0, PayoutLineReserved, "negative"),
        (PayoutLineConfirmed, 0, PayoutAttempted, "its money stays in_flight"),
    ],
)
def test_what_is_dropped_is_missed_by_what_rests_on_it(
    events: list[Event], tmp_path: Path, kind: type[Event], nth: int, found: type[Event], why: str
) -> None:
    at = find(events, kind, nth)
    position, reason = report_of(tmp_path / "log", dropped(events, at))
    assert position is not None
    left = [e for i, e in enumerate(events) if i != at]
    assert (type(left[position]), why in reason) == (found, True), reason


def test_an_upheld_dispute_is_not_called_rejected(events: list[Event], tmp_path: Path) -> None:
    at = find(events, DisputeUpheld)
    event = events[at]
    assert isinstance(event, DisputeUpheld)
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    entries = [encode(e) for e in events]
    for transfers in ((), event.transfers):
        entries[at] = encode(DisputeRejected(**{**fields, "transfers": transfers}))
        position, reason = report_of(tmp_path / f"{len(transfers)}", entries)
        assert position is not None, reason
        assert position >= at
        assert position == at or isinstance(events[position], HoldsReleased)


# --- payouts that lie: what the log shows, and what only an account outside shows


def inserted(events: list[Event], at: int, *new: Event) -> Entries:
    """With more events from `at` on; what follows of their aggregates is numbered on."""
    left, more = [], {}
    for event in (*events[:at], *new, *events[at:]):
        more.setdefault(event.originator_id, 0)
        more[event.originator_id] += 1
        left.append(encode(msgspec.structs.replace(event, originator_version=more[event.originator_id])))
    return left


def test_a_line_that_is_paid_twice_is_found(events: list[Event], tmp_path: Path) -> None:
    """Whole, as an honest run would have written it; and its second confirmation alone."""
    attempted = find(events, PayoutAttempted)
    confirmed = find(events, PayoutLineConfirmed)
    for n, again in enumerate((events[attempted : confirmed + 1], events[confirmed : confirmed + 1])):
        position, reason = report_of(
            tmp_path / f"{n}",
            inserted(events, confirmed + 1, *(e for e in again if not isinstance(e, StateRecorded))),
        )
        assert position is not None
        assert confirmed < position <= confirmed + 1 + len(again)
        assert "confirmed" in reason or "money" in reason, reason


def test_a_frozen_line_is_not_paid(events: list[Event], tmp_path: Path) -> None:
    """What is in dispute stays pending: a payout that counts it in takes what is not available."""
    line = events[find(events, DisputeOpened, 2)]
    assert isinstance(line, DisputeOpened)
    planned = find(events, PayoutPlanned)
    plan = events[planned]
    assert isinstance(plan, PayoutPlanned)
    lines = tuple(
        msgspec.structs.replace(x, amount_micro=x.amount_micro + line.amount_micro)
        if x.friend_id == line.friend_id
        else x
        for x in plan.lines
    )
    entries = dropped(events, find(events, DisputeRejected, 1))  # it was released by its rejection alone
    at = planned - 1
    entries[at] = altered(plan, lines=lines)
    position, reason = report_of(tmp_path / "log", entries)
    assert position is not None
    assert position > at
    assert "negative" in reason or "planned" in reason, reason


def test_a_return_that_never_was_and_one_that_is_hidden_are_not_in_the_log(
    events: list[Event], tmp_path: Path
) -> None:
    """docs/auditors.md says so. They are in the friend's account, and the friend reads of them in the statement."""
    stands = [i for i, e in enumerate(events) if isinstance(e, PayoutLineReturned)]
    honest = [encode(e) for e in events[: stands[0]]]  # of a hub that books no return at all
    assert report_of(tmp_path / "hidden", honest) == (None, "")
    forged = [*honest, altered(events[stands[0]], reason="invented", reference="never")]
    assert report_of(tmp_path / "invented", forged) == (None, "")
