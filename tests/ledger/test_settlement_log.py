"""Settlement on a real ledger: real tickets, real signed receipts, a real database."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest

from ledger.aggregates.book import Book
from ledger.aggregates.broadcast import Broadcast
from ledger.application import Ledger, Unavailable
from ledger.batch import Batch
from ledger.events import EpochSettled, HoldsReleased, Segment, SettlementLine
from ledger.ids import BOOK_ID
from ledger.keys import KeyPair
from ledger.receipt import Receipt, fold_digests, to_bitmap
from ledger.services import broadcasts, budgets, crew, nodes, streams
from ledger.services.credit_index import BrokenLogError, CreditIndex
from ledger.services.delivery import DeliveryDesk
from ledger.services.explain import Earned, explain
from ledger.services.explain_log import LedgerLog, explain_recorded
from ledger.services.settle import GRACE_US, catch_up, draft, release_due_holds, settle_due_epochs
from ledger.ticket import SignedTicket, ViewerClass

SECOND = 1_000_000
HOUR = 3_600 * SECOND
START = 500_000 * HOUR  # an hour's beginning, in 2027
SEGMENT_BYTES = 1_000_000
RATE = 1_000_000_000  # a segment is worth 1.000000


class World:
    """A crew with one stream, its broadcast and two friends' nodes."""

    def __init__(self, ledger: Ledger, *, epoch_length_s: int = 3_600, budget_micro: int = 10**9) -> None:
        self.ledger = ledger
        crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=epoch_length_s, at_us=START)
        self.stream_id = streams.register_stream(
            ledger, slug="main", owner_id=UUID(int=9), stream_key="main_x", at_us=START
        )
        budgets.deposit(ledger, self.stream_id, amount_micro=budget_micro, reference="d1", at_us=START)
        budgets.set_tariff(ledger, self.stream_id, at_us=START, rate_micro_per_gb=RATE)
        self.hub_key = KeyPair(bytes([1]) * 32)
        self.node_keys = [KeyPair(bytes([50 + i]) * 32) for i in range(2)]
        self.friends = [UUID(int=70 + i) for i in range(2)]
        self.nodes = []
        for i, key in enumerate(self.node_keys):
            code = f"code-{i}" * 4
            nodes.create_invite(
                ledger, friend_id=self.friends[i], code=code, expires_us=START + HOUR, at_us=START
            )
            node, _ = nodes.join_node(
                ledger, code=code, public_key=key.public_key, prefix_commitment=bytes([i]) * 16, at_us=START
            )
            self.nodes.append(node)
        self.broadcast_id, self.rendition_id = UUID(int=80), UUID(int=81)
        broadcasts.start_or_resume(
            ledger,
            self.stream_id,
            new_broadcast_id=self.broadcast_id,
            new_rendition_id=self.rendition_id,
            video_codec="avc1",
            audio_codec="mp4a",
            grace_s=30,
            at_us=START,
        )
        self.published = 0
        self.desk = DeliveryDesk(ledger, digest_of=lambda _r, nonce, s: self.digest(nonce, s))
        self.counter = 0

    @staticmethod
    def digest(nonce: bytes, sequence: int) -> bytes:
        return hashlib.sha256(nonce + sequence.to_bytes(8, "big")).digest()

    def publish(self, count: int, at_us: int) -> None:
        made = [
            Segment(self.published + i, 2 * SECOND, SEGMENT_BYTES, bytes(32), at_us) for i in range(count)
        ]
        broadcasts.publish_segments(self.ledger, self.broadcast_id, made, at_us=at_us)
        self.published += count

    def ticket(self, node: int, at_us: int, *, first: int = 0, plain: bool = False) -> "Watching":
        self.counter += 1
        session = UUID(int=10_000 + self.counter)
        viewer = KeyPair(self.counter.to_bytes(32, "big"))
        self.desk.open_session(
            session_id=session,
            stream_id=self.stream_id,
            viewer_class=ViewerClass.PLAIN if plain else ViewerClass.SIGNING,
            viewer_key=b"" if plain else viewer.public_key,
            prefix_commitment=self.counter.to_bytes(16, "big"),
            account_id=None,
            at_us=at_us,
        )
        signed = self.desk.issue_ticket(
            hub_key=self.hub_key,
            ticket_id=UUID(int=20_000 + self.counter),
            session_id=session,
            node=self.nodes[node],
            broadcast=self.ledger.load(Broadcast, self.broadcast_id),
            first_sequence=first,
            nonce=self.counter.to_bytes(16, "big"),
            tariff_version=1,
            at_us=at_us,
        )
        return Watching(self, node, session, signed, self.node_keys[node] if plain else viewer)

    def book(self) -> Book:
        return self.ledger.load(Book, BOOK_ID)

    def balance(self, friend: int, state: str) -> int:
        return self.book().balance(f"friend:{self.friends[friend]}:{state}")

    def recorded(self, kind: type[Any]) -> list[Any]:
        return [r.event for r in self.ledger.read(0, 50_000) if isinstance(r.event, kind)]

    def lines(self) -> list[SettlementLine]:
        return [line for event in self.recorded(EpochSettled) for line in event.lines]


class Watching:
    def __init__(self, world: World, node: int, session: UUID, signed: SignedTicket, key: KeyPair) -> None:
        self.world, self.node, self.session, self.ticket, self.key = world, node, session, signed.ticket, key

    def served(self, sequences: Sequence[int], at_us: int) -> None:
        """The node sends the viewer's receipt, and it is accepted."""
        receipt = Receipt(
            ticket_hash=self.ticket.hash,
            counter=1,
            base_sequence=sequences[0],
            bitmap=to_bitmap(sequences[0], sequences),
            digest=fold_digests(self.world.digest(self.ticket.nonce, s) for s in sequences),
        ).sign(self.key)
        batch = Batch.sign(self.world.node_keys[self.node], 0, 1, [receipt.encode()])
        answers = self.world.desk.judge_batch(batch.encode(), at_us=at_us)
        assert [a.verdict for a in answers] == ["accepted"]

    def observed(self, polled: Sequence[int], fetched: Sequence[int], at_us: int) -> None:
        base = polled[0]
        self.world.desk.observe(
            self.session,
            base_sequence=base,
            polled=to_bitmap(base, polled),
            fetched_at_hub=to_bitmap(base, fetched),
            at_us=at_us,
        )


def test_an_epoch_is_settled_once_by_the_tariff_in_force(ledger: Ledger) -> None:
    world = World(ledger)
    world.publish(20, START + 60 * SECOND)
    world.ticket(0, START).served(range(10), START + 120 * SECOND)
    world.ticket(1, START).served(range(5), START + 130 * SECOND)
    assert settle_due_epochs(ledger, at_us=START + HOUR - 1) == []
    # The first deposit set the crew's default price; the tariff that was set after it waits for the next epoch.
    assert settle_due_epochs(ledger, at_us=START + HOUR) == [0]
    assert settle_due_epochs(ledger, at_us=START + HOUR) == []
    assert {(x.tariff_version, x.rate_micro_per_gb) for x in world.lines()} == {(1, 10_000)}
    world.publish(10, START + HOUR + SECOND)
    world.ticket(0, START + HOUR, first=20).served(range(20, 24), START + HOUR + 60 * SECOND)
    assert settle_due_epochs(ledger, at_us=START + 2 * HOUR) == [1]
    last = world.recorded(EpochSettled)[-1]
    assert [(x.reason, x.units, x.rate_micro_per_gb, x.amount_micro) for x in last.lines] == [
        ("delivery", 4, RATE, 3_420_000),
        ("floor_share", 0, RATE, 380_000),
    ]
    assert last.log_from == world.recorded(EpochSettled)[0].log_to
    assert sum(world.book().accounts.values()) == 0


def test_every_recorded_settlement_is_what_a_replay_drafts(ledger: Ledger) -> None:
    world = World(ledger)
    index = CreditIndex()
    for hour in range(4):
        now = START + hour * HOUR
        world.publish(30, now + SECOND)
        for node in (0, 1):
            watching = world.ticket(node, now + SECOND, first=30 * hour, plain=node == 1)
            watching.served(range(30 * hour, 30 * hour + 10), now + 60 * SECOND)
            if node == 1:
                watching.observed(
                    range(30 * hour, 30 * hour + 12), [30 * hour + 3], now + (HOUR if hour == 1 else SECOND)
                )
        settle_due_epochs(ledger, at_us=now + HOUR, index=index)
    replayed, book = CreditIndex(), Book(BOOK_ID)
    expected: list[Any] = []
    checked = 0
    for entry in ledger.read(0, 50_000):
        event = entry.event
        if isinstance(event, EpochSettled):
            if event.page == 1:
                assert (event.log_from, event.epoch) == (replayed.settled_to, replayed.next_epoch)
                expected = draft(replayed, book, epoch=event.epoch, log_to=event.log_to)
            page = expected[event.page - 1]
            assert (page.lines, page.transfers, len(expected)) == (event.lines, event.transfers, event.pages)
            checked += 1
        replayed.apply(entry.position, event)
        if event.originator_id == BOOK_ID:
            book.mutate(event)
    assert checked == 4
    assert book.accounts == world.book().accounts
    assert {line.reason for line in world.lines()} >= {"delivery", "plain_delivery", "plain_delivery_late"}


@pytest.mark.parametrize("persisted", [False, True])
def test_a_save_that_fails_settles_nothing_twice(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, persisted: bool
) -> None:
    world = World(ledger)
    world.publish(5, START)
    world.ticket(0, START).served(range(5), START + SECOND)
    index, save = CreditIndex(), ledger.save

    def failing(*aggregates: Any) -> list[int]:
        if persisted:
            save(*aggregates)
        raise Unavailable("the connection was lost")

    monkeypatch.setattr(ledger, "save", failing)
    with pytest.raises(Unavailable):
        settle_due_epochs(ledger, at_us=START + HOUR, index=index)
    monkeypatch.setattr(ledger, "save", save)
    assert settle_due_epochs(ledger, at_us=START + HOUR, index=index) == ([] if persisted else [0])
    assert [e.epoch for e in world.recorded(EpochSettled)] == [0]
    assert sum(line.units for line in world.lines()) == 5


def test_settlers_at_once_settle_each_epoch_once(ledger: Ledger, database_url: str) -> None:
    world = World(ledger)
    for hour in range(6):
        world.publish(5, START + hour * HOUR)
        world.ticket(0, START + hour * HOUR, first=5 * hour).served(
            range(5 * hour, 5 * hour + 5), START + hour * HOUR + SECOND
        )
    others = [Ledger(database_url) for _ in range(3)]
    try:
        with ThreadPoolExecutor(3) as pool:
            done = list(pool.map(lambda x: settle_due_epochs(x, at_us=START + 6 * HOUR), others))
    finally:
        for other in others:
            other.close()
    assert sorted(epoch for one in done for epoch in one) == list(range(6))
    assert [e.epoch for e in world.recorded(EpochSettled)] == list(range(6))
    assert sum(line.units for line in world.lines()) == 30


def test_a_month_of_empty_epochs_is_one_event_and_credits_keep_their_own(ledger: Ledger) -> None:
    world = World(ledger, epoch_length_s=10)
    epoch = 10 * SECOND
    for n in (3, 7):
        world.publish(5, START + n * epoch)
        world.ticket(0, START + n * epoch, first=5 * (n == 7)).served(
            range(5 * (n == 7), 5 * (n == 7) + 5), START + n * epoch + SECOND
        )
    month = 30 * 24 * 360
    assert settle_due_epochs(ledger, at_us=START + month * epoch) == [3, 7, month - 1]
    assert settle_due_epochs(ledger, at_us=START + (month + 1) * epoch - 1) == []
    by_epoch = {e.epoch: sum(x.units for x in e.lines) for e in world.recorded(EpochSettled)}
    assert by_epoch == {3: 5, 7: 5, month - 1: 0}


def test_a_receipt_that_comes_in_a_later_epoch_is_paid_there_and_marked_late(ledger: Ledger) -> None:
    world = World(ledger)
    world.publish(10, START + SECOND)
    slow, quick = world.ticket(0, START), world.ticket(1, START)
    quick.served(range(10), START + 60 * SECOND)
    assert settle_due_epochs(ledger, at_us=START + HOUR) == [0]
    world.publish(2, START + HOUR + SECOND)
    slow.served(range(10), START + HOUR + 60 * SECOND)
    world.ticket(1, START + HOUR, first=8).served(range(8, 12), START + HOUR + 60 * SECOND)
    assert settle_due_epochs(ledger, at_us=START + 2 * HOUR) == [1]
    last = world.recorded(EpochSettled)[-1]
    reasons = {(x.node_id, x.reason): x.units for x in last.lines if x.units}
    assert reasons == {
        (world.nodes[0].id, "delivery_late"): 10,
        (world.nodes[1].id, "delivery"): 4,
    }


@pytest.mark.parametrize(("own", "price"), [(1, RATE), (0, RATE // 10)])
def test_what_was_delivered_before_the_price_fell_is_paid_as_it_was_promised(
    ledger: Ledger, own: int, price: int
) -> None:
    world = World(ledger)
    crew.change_settings(ledger, {"late_by_own_tariff": own}, at_us=START)
    second, third = START + HOUR, START + 2 * HOUR
    world.publish(10, second + SECOND)  # by then the tariff that `World` has set is in force
    slow, quick = world.ticket(0, second), world.ticket(1, second)
    quick.served(range(10), second + 60 * SECOND)
    settle_due_epochs(ledger, at_us=third)
    budgets.set_tariff(ledger, world.stream_id, at_us=third, rate_micro_per_gb=RATE // 10)
    fourth = third + HOUR
    world.publish(2, fourth + SECOND)
    slow.served(range(10), fourth + 60 * SECOND)
    world.ticket(1, fourth, first=10).served(range(10, 12), fourth + 60 * SECOND)
    settle_due_epochs(ledger, at_us=fourth + HOUR)
    last = world.recorded(EpochSettled)[-1]
    paid = {(x.node_id, x.reason): (x.units, x.rate_micro_per_gb) for x in last.lines if x.units}
    assert paid == {
        (world.nodes[0].id, "delivery_late"): (10, price),
        (world.nodes[1].id, "delivery"): (2, RATE // 10),
    }
    log = LedgerLog(ledger)
    for position, event in log.events(0, None):
        for n, line in enumerate(event.lines if isinstance(event, EpochSettled) else ()):
            made = explain(log, position, n)
            assert isinstance(made, Earned)
            assert made.amount_micro == line.amount_micro
            assert made.receipts is not None
            assert sum(r.units for r in made.receipts) == line.units
            quick_made = explain_recorded(ledger, position, n)
            assert isinstance(quick_made, Earned)
            assert (quick_made.steps, quick_made.tariff) == (made.steps, made.tariff)


def test_what_is_on_its_way_into_the_log_when_its_epoch_ends_is_settled_with_it(ledger: Ledger) -> None:
    """Judged in the epoch's last microsecond, appended a second later; the next epoch has another tariff."""
    world, end = World(ledger), START + HOUR
    world.publish(10, START + SECOND)
    slow = world.ticket(0, START)
    index = CreditIndex()
    for after in (0, SECOND):
        assert settle_due_epochs(ledger, at_us=end + after, index=index, grace_us=GRACE_US) == []
    slow.served(range(10), end - 1)
    assert settle_due_epochs(ledger, at_us=end + GRACE_US - 1, index=index, grace_us=GRACE_US) == []
    assert settle_due_epochs(ledger, at_us=end + GRACE_US, index=index, grace_us=GRACE_US) == [0]
    assert [(x.units, x.tariff_version) for x in world.lines() if x.units] == [(10, 1)]
    # What is over for long is settled at once, also in the first moments of another epoch, and no later one with it.
    world.publish(1, end + SECOND)
    world.ticket(1, end + SECOND, first=10).served([10], end + 2 * SECOND)
    world.publish(1, end + 2 * HOUR)
    world.ticket(1, end + 2 * HOUR, first=11).served([11], end + 2 * HOUR + 1)
    assert settle_due_epochs(ledger, at_us=end + 2 * HOUR + SECOND, index=index, grace_us=GRACE_US) == [1]
    assert sum(x.units for x in world.lines()) == 11


@pytest.mark.parametrize(("after_us", "epoch"), [(-1, 0), (0, 1), (1, 1)])
def test_the_border_of_an_epoch_is_its_last_microsecond(ledger: Ledger, after_us: int, epoch: int) -> None:
    world, border = World(ledger), START + HOUR
    world.publish(1, border + after_us)
    world.ticket(0, START).served([0], border + after_us)
    assert settle_due_epochs(ledger, at_us=border - 1) == []
    settle_due_epochs(ledger, at_us=border + HOUR)
    found = {e.epoch: [x.reason for x in e.lines if x.units] for e in world.recorded(EpochSettled)}
    assert found == {epoch: ["delivery"]} | ({1: []} if epoch == 0 else {})


def test_plain_claims_count_ten_times_what_the_hub_saw_and_wait_for_it(ledger: Ledger) -> None:
    world = World(ledger)
    world.publish(40, START + SECOND)
    plain = world.ticket(0, START, plain=True)
    world.ticket(0, START).served(range(40), START + 50 * SECOND)
    plain.served(range(30), START + 60 * SECOND)
    assert settle_due_epochs(ledger, at_us=START + HOUR) == [0]
    assert [x.reason for x in world.lines() if x.units] == ["delivery"]  # nothing was observed yet
    plain.observed(range(40), [4], START + HOUR + SECOND)
    plain.observed(range(40), [4], START + HOUR + 2 * SECOND)  # seen again: counts once
    assert settle_due_epochs(ledger, at_us=START + 2 * HOUR) == [1]
    plain.observed(range(40), [4, 9, 14, 20], START + 2 * HOUR + SECOND)
    assert settle_due_epochs(ledger, at_us=START + 3 * HOUR) == [2]
    units = [
        (e.epoch, x.reason, x.units, x.credited_bytes)
        for e in world.recorded(EpochSettled)
        for x in e.lines
        if x.reason.startswith("plain")
    ]
    assert units == [
        (1, "plain_delivery_late", 10, 10 * SEGMENT_BYTES),
        (2, "plain_delivery_late", 20, 20 * SEGMENT_BYTES),
    ]


def test_plain_claims_never_exceed_what_the_player_was_listed(ledger: Ledger) -> None:
    world = World(ledger)
    world.publish(40, START + SECOND)
    plain = world.ticket(0, START, plain=True)
    plain.observed(range(12), range(12), START + 30 * SECOND)
    plain.served(range(40), START + 60 * SECOND)
    settle_due_epochs(ledger, at_us=START + HOUR)
    assert [x.units for x in world.lines() if x.reason == "plain_delivery"] == [12]


def test_an_event_from_the_future_ends_no_epoch(ledger: Ledger) -> None:
    world = World(ledger)
    world.publish(5, START + SECOND)
    crew.change_settings(ledger, {"hold_s": 5}, at_us=START + 999 * HOUR)
    world.ticket(0, START).served(range(5), START + 60 * SECOND)
    assert settle_due_epochs(ledger, at_us=START + HOUR) == [0]
    assert sum(line.units for line in world.lines()) == 5


def test_an_index_kept_between_calls_is_the_fold_of_the_whole_log(ledger: Ledger) -> None:
    world = World(ledger)
    kept = CreditIndex()
    for hour in range(3):
        now = START + hour * HOUR
        world.publish(10, now)
        world.ticket(0, now, first=10 * hour).served(range(10 * hour, 10 * hour + 7), now + SECOND)
        catch_up(ledger, kept)
        fresh = CreditIndex()
        catch_up(ledger, fresh)
        assert kept.due(now + HOUR) == fresh.due(now + HOUR)
        assert kept.credits(hour, kept.position) == fresh.credits(hour, fresh.position)
        settle_due_epochs(ledger, at_us=now + HOUR, index=kept)


def test_old_tickets_are_forgotten(ledger: Ledger) -> None:
    world = World(ledger)
    index = CreditIndex()
    world.publish(5, START)
    for node in (0, 1):
        world.ticket(node, START, plain=node == 1).served(range(5), START + SECOND)
    settle_due_epochs(ledger, at_us=START + HOUR, index=index)
    assert len(index._tickets) == 2
    settle_due_epochs(ledger, at_us=START + 96 * HOUR, index=index)
    catch_up(ledger, index)
    assert not index._tickets
    assert not index._pools
    assert not index._plain_tickets


def test_a_credit_for_a_ticket_that_was_never_issued_is_named(ledger: Ledger) -> None:
    world = World(ledger)
    world.publish(5, START)
    world.ticket(0, START).served(range(5), START + SECOND)
    *before, served = ledger.read(0, 50_000)
    index = CreditIndex()
    for entry in before:
        index.apply(entry.position, entry.event)
    index._tickets.clear()
    with pytest.raises(BrokenLogError, match=f"position {served.position}"):
        index.apply(served.position, served.event)


def test_holds_are_released_once_and_not_before_their_time(ledger: Ledger) -> None:
    world = World(ledger)
    for hour in (0, 1):
        world.publish(5, START + hour * HOUR)
        world.ticket(0, START + hour * HOUR, first=5 * hour).served(
            range(5 * hour, 5 * hour + 5), START + hour * HOUR + SECOND
        )
        settle_due_epochs(ledger, at_us=START + (hour + 1) * HOUR)
    earned = world.balance(0, "pending")
    assert earned > 0
    hold_s = 72 * 3_600
    first = START + HOUR + 72 * HOUR
    assert release_due_holds(ledger, hold_s=hold_s, at_us=first - 1) == []
    assert release_due_holds(ledger, hold_s=hold_s, at_us=first) == [0]
    assert release_due_holds(ledger, hold_s=hold_s, at_us=first) == []
    assert 0 < world.balance(0, "available") < earned
    assert release_due_holds(ledger, hold_s=hold_s, at_us=first + HOUR) == [1]
    assert (world.balance(0, "available"), world.balance(0, "pending")) == (earned, 0)
    assert [e.epoch for e in world.recorded(HoldsReleased)] == [0, 1]


def test_a_deposit_counts_once_per_reference(ledger: Ledger) -> None:
    world = World(ledger, budget_micro=100)
    for _ in range(2):
        assert budgets.deposit(ledger, world.stream_id, amount_micro=50, reference="d2", at_us=START) == 150
    assert budgets.withdraw(ledger, world.stream_id, amount_micro=30, reference="w1", at_us=START) == 120
    assert budgets.withdraw(ledger, world.stream_id, amount_micro=30, reference="w1", at_us=START) == 120
    version = budgets.set_tariff(ledger, world.stream_id, at_us=START, rate_micro_per_gb=RATE)
    assert version == world.book().tariff_version(world.stream_id) == 2  # the same numbers again
