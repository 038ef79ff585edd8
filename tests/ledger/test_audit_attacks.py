"""A hub that owns every key and says many things at once that fit together: what it did is found where it stands."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from crew_life import HOUR_US, HUB, LOG, Life, make_id, make_key
from forged_log import publish_entries
from hostile_log import replayed

from bench.evening import MemoryLedger
from ledger.aggregates.book import Book
from ledger.aggregates.payout import payout_id
from ledger.audit import Open, audit
from ledger.batch import HEADER_BYTES, Batch
from ledger.event_codec import encode
from ledger.events import (
    AdjustmentBooked,
    BroadcastStarted,
    CrewFounded,
    EpochSettled,
    Event,
    NodeReinstated,
    PayoutApproved,
    PayoutAttempted,
    PayoutLine,
    PayoutPlanned,
    PayoutProposed,
    PayoutResolved,
    Posting,
    ReceiptsRefused,
    SegmentsPublished,
    SegmentsServed,
    SessionOpened,
    StreamRegistered,
    StreamWentLive,
    TariffSet,
    TicketIssued,
    Transfer,
)
from ledger.ids import BOOK_ID, delivery_id, stream_id, ticket_record_id
from ledger.judged import Judged, pack
from ledger.receipt import SIGNED_BYTES
from ledger.services import broadcasts, crew, nodes, settle
from ledger.services.credit_index import CreditIndex
from ledger.ticket import SignedTicket

Entries = list[bytes]


class World:
    """Two nodes, one broadcast, and the log as a list."""

    def __init__(self) -> None:
        self.ledger: Any = MemoryLedger()
        self.life = Life(self.ledger)
        self.life.found()
        for name in ("anna", "ben"):
            self.life.join(name)
        self.life.go_live()

    @property
    def entries(self) -> Entries:
        return [r.data for r in self.ledger.log]

    @property
    def events(self) -> list[Event]:
        return [r.event for r in self.ledger.log]

    def find(self, kind: type[Event], nth: int = -1) -> tuple[int, Any]:
        return [(i, e) for i, e in enumerate(self.events) if isinstance(e, kind)][nth]

    def next_of(self, originator_id: UUID) -> dict[str, Any]:
        """What the next event of an aggregate begins with."""
        version = max(
            (e.originator_version for e in self.events if e.originator_id == originator_id), default=0
        )
        return {
            "originator_id": originator_id,
            "originator_version": version + 1,
            "at_us": self.life.tick(),
        }

    def node(self, name: str) -> UUID:
        return self.life.nodes[name][1].id

    def served(
        self, name: str, *receipts: tuple[SignedTicket, bytes, Judged], **fields: Any
    ) -> SegmentsServed:
        """Verdicts as the hub likes them, on a batch that the node did sign; or on a receipt alone."""
        data = [receipt for _, receipt, _ in receipts]
        key, at_s = self.life.nodes[name][0], self.life.now_us // 1_000_000
        header = Batch.sign(key, at_s - 10, at_s, data).encode()[:HEADER_BYTES]
        sessions = [ticket.ticket.session_id for ticket, _, _ in receipts]
        opened = {e.session_id: e for e in self.events if isinstance(e, SessionOpened)}
        columns = pack(
            range(len(data)),
            sessions,
            [opened[s].prefix_commitment for s in sessions],
            [judged for _, _, judged in receipts],
        )
        known: dict[str, Any] = {
            **self.next_of(delivery_id(self.life.broadcast.id)),
            "node_id": self.node(name),
            "batch_header": header,
            "first_sequence": self.life.broadcast.first_sequence,
            "network_limit": 2,
            "receipts": b"".join(data),
            **columns,
        }
        return SegmentsServed(**known | fields)

    def refused(self, *more: Event | bytes) -> tuple[int | None, str]:
        """Where, and why, the log fails with these behind it."""
        data = [e if isinstance(e, bytes) else encode(e) for e in more]
        failure = replayed([*self.entries, *data])
        return (failure.position, failure.reason) if failure is not None else (None, "")


@pytest.fixture
def world() -> World:
    return World()


def replaced(event: Event, *fields: dict[str, Any], **changes: Any) -> Any:
    for some in fields:
        changes = some | changes
    return msgspec.structs.replace(event, **changes)


# --- a friend robbed


def test_a_receipt_that_a_viewer_sent_is_not_judged_in_the_name_of_another_node(world: World) -> None:
    ticket = world.life.ticket("anna", "vera")
    receipt = world.life.receipt(ticket, "vera", [0, 1])
    wrong = world.served("ben", (ticket, receipt, Judged("wrong_node")), batch_header=b"")
    position, why = world.refused(wrong)
    assert (position, "no such receipt by itself" in why) == (len(world.entries), True)


def test_a_verdict_dated_back_to_when_the_node_was_suspended(world: World) -> None:
    life, ben = world.life, world.node("ben")
    ticket = life.ticket("ben")
    nodes.suspend(world.ledger, ben, reason="r", at_us=life.tick())
    then_us = life.tick(30)
    nodes.reinstate(world.ledger, ben, reason="r", at_us=life.tick())
    life.tick(3_000)
    life.publish(1)
    receipt = life.receipt(ticket, "ben", [0, 1])
    capped = world.served("ben", (ticket, receipt, Judged("capped", cap="node_suspended")), at_us=then_us)
    position, why = world.refused(capped)
    assert (position, "the rules give accepted" in why) == (len(world.entries), True)


def test_a_verdict_dated_back_to_when_nothing_was_published(world: World) -> None:
    life = world.life
    ticket = life.ticket("anna", "vera")
    then_us = life.now_us
    life.tick(3_000)
    life.publish(3)
    life.tick(300)
    life.join("cleo")
    receipt = life.receipt(ticket, "vera", [12, 13])
    late = world.served("anna", (ticket, receipt, Judged("out_of_range")), at_us=then_us)
    position, why = world.refused(late)
    assert (position, "the rules give accepted" in why) == (len(world.entries), True)


@pytest.mark.parametrize("changes", [{"byte_budget": 1_000}, {"settle_by_s": 1}])
def test_a_ticket_on_which_nothing_can_be_earned(world: World, changes: dict[str, int]) -> None:
    world.life.ticket("anna", "vera")
    at, issued = world.find(TicketIssued)
    forged = replace(SignedTicket.decode(issued.ticket).ticket, **changes).sign(HUB)
    event = replaced(issued, originator_id=ticket_record_id(forged.ticket.hash), ticket=forged.encode())
    failure = replayed([*world.entries[:at], encode(event)])
    assert failure is not None
    assert (failure.position, "does not promise" in failure.reason) == (at, True)


def test_a_receipt_that_its_node_did_not_sign_for_is_not_put_into_a_batch_sent_again(world: World) -> None:
    life = world.life
    ticket = life.ticket("anna", "vera")
    assert life.batch("anna", life.receipt(ticket, "vera", [0])) == ["accepted"]
    _, first = world.find(SegmentsServed)
    other = life.receipt(ticket, "vera", [0, 1])
    again = replaced(
        world.served("anna", (ticket, other, Judged("digest_mismatch"))), batch_header=first.batch_header
    )
    position, why = world.refused(again)
    assert (position, "not those the node signed for" in why) == (len(world.entries), True)
    beyond = replaced(again, indices=b"\7", receipts=first.receipts)
    assert "no such receipt" in world.refused(beyond)[1]


def test_nobody_is_said_to_have_sent_what_belongs_to_nothing(world: World) -> None:
    refused = ReceiptsRefused(
        **world.next_of(world.node("anna")),
        batch_header=b"",
        indices=(0,),
        receipts=b"\xff" * SIGNED_BYTES,
        judged=(Judged("malformed"),),
    )
    assert "no such receipt by itself" in world.refused(refused)[1]


# --- paid too much


def test_a_segment_is_not_credited_again_as_one_of_a_second_broadcast(world: World) -> None:
    """The same rendition and sequence under another broadcast's name: the unit of credit would be the same."""
    life = world.life
    ticket = life.ticket("anna", "vera")
    assert life.batch("anna", life.receipt(ticket, "vera", [0, 1])) == ["accepted"]
    broadcasts.end_broadcast(world.ledger, life.broadcast.id, reason="over", at_us=life.tick())
    other = make_id("again")
    _, started = world.find(BroadcastStarted)
    live = StreamWentLive(**world.next_of(life.stream_id), broadcast_id=other)
    fields = {"originator_id": other, "at_us": live.at_us}
    again = replaced(started, **fields, first_sequence=12)
    position, why = world.refused(live, again)
    assert (position, "another broadcast's" in why) == (len(world.entries) + 1, True)
    back = replaced(started, **fields, rendition_id=make_id("new"))
    assert "does not go on" in world.refused(live, back)[1]


def test_a_retired_node_does_not_come_back(world: World) -> None:
    nodes.retire(world.ledger, world.node("ben"), reason="r", at_us=world.life.tick())
    back = NodeReinstated(**world.next_of(world.node("ben")), reason="again")
    assert world.refused(back) == (len(world.entries), "a retired node does not come back")


def test_nothing_is_published_after_the_end(world: World) -> None:
    life = world.life
    _, segments = world.find(SegmentsPublished)
    broadcasts.end_broadcast(world.ledger, life.broadcast.id, reason="over", at_us=life.tick())
    more = (replaced(segments.segments[0], sequence=12),)
    late = replaced(segments, segments=more, **world.next_of(life.broadcast.id))
    assert world.refused(late) == (len(world.entries), "the broadcast has ended")


# --- settlements


def served_for_an_hour(world: World) -> list[int]:
    """One receipt of each node. Returns where their verdicts stand."""
    life = world.life
    at = []
    for name, viewer in (("anna", "vera"), ("ben", "walt")):
        assert life.batch(name, life.receipt(life.ticket(name, viewer), viewer, [0, 1])) == ["accepted"]
        at.append(world.find(SegmentsServed)[0])
    return at


def settled_up_to(world: World, epoch: int, log_to: int) -> None:
    """As the hub settles, but of a part of the log that it chose."""
    index, book = CreditIndex(), world.ledger.load(Book, BOOK_ID)
    settle.catch_up(world.ledger, index)
    pages = settle.draft(index, book, epoch=epoch, log_to=log_to)
    book.settle_epoch(epoch, log_to=log_to, pages=pages, at_us=world.life.now_us)
    world.ledger.save(book)


@pytest.mark.parametrize("nobody", [False, True])
def test_a_settlement_does_not_leave_out_who_stands_at_its_end(world: World, nobody: bool) -> None:
    """They would be paid with the next epoch, as late; or, when nobody is paid, all are late."""
    anna, ben = served_for_an_hour(world)
    world.life.tick(50)
    world.life.join("cleo")  # whatever it is: the log goes on
    world.life.tick(3_600)
    settled_up_to(world, 0, anna if nobody else ben)
    position, why = world.refused()
    assert position == world.find(EpochSettled)[0]
    assert why == f"the settlement of epoch 0 leaves out what stands at {ben}"


def test_what_came_while_the_hub_settled_may_be_left_for_the_next_epoch(world: World) -> None:
    _, ben = served_for_an_hour(world)
    world.life.tick(3_600 - world.life.now_us // 1_000_000 % 3_600 - 5)
    ticket = world.life.ticket("anna", "vera")
    size = len(world.entries)
    assert world.life.batch("anna", world.life.receipt(ticket, "vera", [0])) == ["accepted"]
    world.life.tick(10)
    settled_up_to(world, 0, size)
    assert ben < size
    assert world.refused() == (None, "")


def tariff(world: World, **changes: Any) -> TariffSet:
    _, known = world.find(TariffSet)
    version = known.tariff_version + 1
    return replaced(known, world.next_of(BOOK_ID), tariff_version=version, **changes)


def test_a_tariff_that_is_dated_back_does_not_price_what_was_delivered(world: World) -> None:
    life = world.life
    served_for_an_hour(world)
    life.tick(3_600)
    life.settle()
    before_us = life.now_us
    life.tick(3_600)
    life.publish(5)
    epoch = (life.now_us - world.find(CrewFounded)[1].genesis_us) // HOUR_US
    assert life.batch("anna", life.receipt(life.ticket("anna", "vera"), "vera", [15])) == ["accepted"]
    lower = tariff(world, effective_epoch=epoch, rate_micro_per_gb=1, at_us=before_us)
    position, why = world.refused(lower)
    assert (position, "work that stands in the log" in why) == (len(world.entries), True)
    assert world.refused(tariff(world, effective_epoch=epoch + 1, rate_micro_per_gb=1)) == (None, "")


@pytest.mark.parametrize("changes", [{"rate_micro_per_gb": -1}, {"fee_bp": 10_001}, {"plain_bp": -1}])
def test_a_tariff_that_cannot_be(world: World, changes: dict[str, int]) -> None:
    assert "a rate of zero or more" in world.refused(tariff(world, effective_epoch=5, **changes))[1]


# --- payouts


def planned(world: World, *, operator: str) -> list[Event]:
    life = world.life
    served_for_an_hour(world)
    life.tick(3_600)
    life.settle()
    life.tick(72 * 3_600)
    hold_s = crew.settings(world.ledger).hold_s
    settle.release_due_holds(world.ledger, hold_s=hold_s, at_us=life.now_us)
    common = {"originator_id": payout_id(1), "at_us": life.tick()}
    book = world.ledger.load(Book, BOOK_ID)
    lines = [PayoutLine(n, friend, 10, b"c" * 16) for n, friend in enumerate(book.available(), 1)]
    return [
        PayoutPlanned(**common, originator_version=1, rail="csv", lines=tuple(lines)),
        PayoutProposed(**common, originator_version=2, operator=operator),
        PayoutApproved(**common, originator_version=3, operator="Olga "),
    ]


def test_the_second_pair_of_eyes_is_not_the_first_in_capitals(world: World) -> None:
    limit = {"payout_second_above_micro": 1}
    crew.change_settings(world.ledger, limit, at_us=world.life.tick())
    plan = planned(world, operator="olga")
    assert "by the operator who planned it" in world.refused(*plan)[1]
    other = replaced(plan[1], operator="oleg")
    assert world.refused(plan[0], other, plan[2]) == (None, "")


def test_a_rail_is_not_called_for_money_that_stays_available(world: World) -> None:
    plan = planned(world, operator="olga")
    common = {"originator_id": plan[0].originator_id, "at_us": world.life.tick(), "line": 1, "attempt": 1}
    key = f"{plan[0].originator_id}:1"
    attempted = PayoutAttempted(**common, originator_version=4, key=key)
    answered = PayoutResolved(**common, originator_version=5, outcome="unknown", reference="")
    position, why = world.refused(*plan, attempted, answered)
    assert (position, "its money stays available" in why) == (len(world.entries) + 4, True)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"operator": ""}, "nobody approves"), ({"originator_version": 4}, "approved before")],
)
def test_an_approval_that_is_none(world: World, changes: dict[str, Any], why: str) -> None:
    plan = planned(world, operator="olga")
    again = [replaced(plan[2], **changes)] if "operator" not in changes else []
    last = plan[2] if again else replaced(plan[2], **changes)
    assert why in world.refused(*plan[:2], last, *again)[1]


# --- other bytes, same meaning


Spoil = Callable[[SegmentsServed], dict[str, Any]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda e: {"networks": (*e.networks, b"n" * 16)},
        lambda e: {"networks": (*e.networks, e.networks[0])},
        lambda e: {"networks": (*e.networks, bytes(16))},
        lambda e: {"sessions": e.sessions + bytes(16)},
        lambda e: {"sessions": e.sessions[16:] + e.sessions[:16], "session_of": b"\1\0"},
    ],
)
@pytest.mark.parametrize("by_layout", [True, False])
def test_sessions_and_networks_stand_once_each_in_their_order(
    world: World, spoil: Spoil, by_layout: bool
) -> None:
    life = world.life
    tickets = [(life.ticket("anna", viewer), viewer) for viewer in ("vera", "walt")]
    life.batch("anna", *[life.receipt(ticket, viewer, [0]) for ticket, viewer in tickets])
    at, event = world.find(SegmentsServed)
    changed = replaced(event, **spoil(event))
    if not by_layout:  # what the fast reader leaves to the decoder
        changed = replaced(changed, at_us=-1)
    failure = replayed([*world.entries[:at], encode(changed)])
    assert failure is not None
    assert (failure.position, "stand once each" in failure.reason) == (at, True)


def test_an_aggregate_begins_once_and_with_its_first_event(world: World) -> None:
    live = StreamWentLive(**world.next_of(make_id("a stream")), broadcast_id=make_id("b"))
    assert "begin with the event that founds it" in world.refused(live)[1]
    _, registered = world.find(StreamRegistered)
    again = replaced(registered, **world.next_of(world.life.stream_id), owner_id=make_id("me"))
    assert "begin with the event that founds it" in world.refused(again)[1]


def test_a_stream_is_not_called_almost_as_another(world: World) -> None:
    _, registered = world.find(StreamRegistered)
    for name in ("Main", "main ", "mаin", "m"):  # the third has a letter of another alphabet
        other = replaced(registered, world.next_of(stream_id(name)), name=name)
        assert "a stream's name is" in world.refused(other)[1]


# --- what is told


def test_a_checkpoint_is_not_signed_by_a_key_that_was_retired(world: World, tmp_path: Path) -> None:
    publish_entries(tmp_path / "before", world.entries)
    assert audit(tmp_path / "before").problem is None
    crew.add_key(world.ledger, "log", make_key("next").public_key, at_us=world.life.tick())
    crew.retire_key(world.ledger, "log", LOG.key_id, at_us=world.life.tick())
    publish_entries(tmp_path / "after", world.entries)
    problem = audit(tmp_path / "after").problem
    assert problem is not None
    assert problem.reason == "the key that signs the checkpoint was retired"


def test_what_a_hub_calls_things_does_not_repaint_the_terminal(world: World, tmp_path: Path) -> None:
    paint = "fees\x1b[2J\x9b1m\r\nEverything holds.\u202e" + "x" * 5_000
    moved = Transfer("adjustment", (Posting(paint, -1), Posting("fees", 1)))
    adjusted = AdjustmentBooked(**world.next_of(BOOK_ID), reference="r", reason="why", transfer=moved)
    publish_entries(tmp_path, [*world.entries, encode(adjusted)])
    done = subprocess.run(
        [sys.executable, "-m", "hub.cli", "audit", str(tmp_path), "--state", str(tmp_path / "state")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert "\\x1b[2J" in done.stdout
    assert "Everything holds." not in done.stdout.splitlines()
    assert not any(c in done.stdout for c in "\x1b\x9b\r\u202e")
    assert len(done.stdout) < 5_000


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\xa1a" + b"\x91" * 60_000 + b"\xc0",
        b"\x82\xa1a" + b"\x81\xc0" * 30_000 + b"\xc0" + b"\xa4type\xb1crew.key_added.v1",
    ],
)
@pytest.mark.parametrize("jobs", [1, 2])
def test_bytes_that_are_very_deep_are_an_event_that_does_not_hold(
    world: World, tmp_path: Path, data: bytes, jobs: int
) -> None:
    publish_entries(tmp_path, [*world.entries, data])
    problem = audit(tmp_path, jobs=jobs).problem
    assert problem is not None
    assert problem.position == len(world.entries)


def test_what_is_left_open_is_told(world: World, tmp_path: Path) -> None:
    """No rule says how soon a hub settles and releases: whoever waits can see it."""
    served_for_an_hour(world)
    publish_entries(tmp_path / "1", world.entries)
    credited = audit(tmp_path / "1")
    assert credited.open == Open(unsettled_bytes=credited.counts.credited_bytes)
    world.life.tick(3_600)
    world.life.settle()
    world.life.tick(100 * 3_600)
    world.life.join("cleo")
    publish_entries(tmp_path / "2", world.entries)
    overdue = audit(tmp_path / "2")
    pending = sum(amount for account, amount in overdue.balances.items() if account.endswith(":pending"))
    assert overdue.open == Open(overdue_micro=pending)
    assert pending > 0


def test_an_event_that_is_dated_back_is_told(world: World, tmp_path: Path) -> None:
    early = encode(tariff(world, effective_epoch=5, at_us=world.life.now_us - HOUR_US))
    publish_entries(tmp_path, [*world.entries, early])
    report = audit(tmp_path)
    assert report.problem is None
    assert report.open.dated_back_at == len(world.entries)
    assert 3_500 < report.open.dated_back_s <= 3_600
