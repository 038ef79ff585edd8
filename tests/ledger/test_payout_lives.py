"""Payouts as people and rails make them, in any order: plans, second operators, limits, new destinations, deaths, rails
that know nothing or lie, banks that give back, corrections and disputes between, and a database that forgets what the
files remember.

The model is what really left, and what really came back: lists of (friend, amount) that only grow.
"""

import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from log_ledger import Died, LogLedger

from ledger.aggregates.base import DomainError
from ledger.aggregates.book import DAY_US, Book
from ledger.aggregates.payout import LineState, Payout
from ledger.application import NotFound
from ledger.bookkeeping import FORMATS, plain_text
from ledger.events import EpochSettled, PayoutLineFailed, PayoutLineReserved
from ledger.ids import BOOK_ID
from ledger.money import FEES, budget_account, friend_account
from ledger.rails import Answer, OtherPayment, Outcome, Payment
from ledger.rails.csv_file import CsvRail
from ledger.rails.given import given
from ledger.rails.returned import Returns
from ledger.services import crew, payouts, returns
from ledger.services.destinations import Destination
from ledger.settlement import Credit, Tariff, pages, settle

STREAM = UUID(int=1)
FRIENDS = [UUID(int=20 + i) for i in range(3)]
POTS = ("pending", "available", "in_flight", "paid")
T0 = 20_000 * DAY_US + DAY_US - 2  # two microseconds before midnight
SELDOM = ["release", "dispute", "decide", "adjust", "limits", "limits", "move", "move", "wait"]
sizes = st.lists(st.sampled_from([2_345_678, 10**6, 234_567, 1, 0]), min_size=3, max_size=3)
some_friend = st.sampled_from([None, None, None, *FRIENDS])
# What a rail answers to a payment, and whether it pays.
whims = st.tuples(st.sampled_from(["confirmed", "unknown", "failed", "failed", "dies"]), st.booleans())
operators = st.sampled_from(["ada", "Ada ", "bob"])


class Rail:
    """Writes the real file, when it pays at all, and answers as told. It may die before or after it paid."""

    name = "csv"

    def __init__(self, life: "PayoutLives", file: CsvRail, whims: list[tuple[str, bool]]) -> None:
        self.life, self.file, self.whims = life, file, whims

    def prepare(self, amounts_micro: Any) -> None:
        pass

    def submit(self, payment: Payment) -> Answer:
        known = payment.key in self.file.keys()  # noqa: SIM118 - no mapping
        assert not known or self.life.restored  # a ledger that forgot nothing asks about it
        whim, pays = self.whims.pop() if self.whims and not known else ("confirmed", True)
        if whim == "dies" and not pays:
            raise Died
        if pays or known:
            self.file.submit(payment)
        if pays and not known:
            self.life.left.append((payment.friend_id, payment.amount_micro))
            if whim == "failed":
                self.life.lies[payment.key] = (payment.friend_id, payment.amount_micro)
        if whim == "dies":
            raise Died
        if whim == "confirmed":
            return Answer(Outcome.CONFIRMED if pays or known else Outcome.UNKNOWN)
        return Answer(Outcome(whim))

    def look_up(self, key: str) -> Answer:
        return self.file.look_up(key)


class PayoutLives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        # In memory where there is such a place: here nothing is lost with the power.
        memory = Path("/dev/shm")
        self.folder = tempfile.TemporaryDirectory(
            prefix="streamrp2p-payouts-", dir=memory if memory.is_dir() else None
        )
        self.memory = Returns(Path(self.folder.name))
        self.ledger: Any = LogLedger()
        self.now = T0
        crew.found_crew(self.ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=T0)
        self.where = {f: Destination(f"place of {f.int}", bytes(16)) for f in FRIENDS}
        self.left: list[tuple[UUID, int]] = []
        self.back: list[tuple[UUID, int]] = []
        self.back_of: dict[tuple[UUID, int], int] = defaultdict(int)  # payout, line -> what came back of it
        self.lies: dict[str, tuple[UUID, int]] = {}  # keys that a rail paid and called failed
        self.taken: dict[UUID, int] = defaultdict(int)
        self.unreachable: set[bytes] = set()  # destinations that something came back from
        self.serial = 0
        self.kept = 0  # no backup is older than this
        self.forgets = True
        self.restored = False

    def teardown(self) -> None:
        self.folder.cleanup()
        for name in FORMATS:
            assert sum(1 for _ in plain_text(self.ledger.events(), name)) >= 1

    @property
    def book(self) -> Book:
        return self.ledger.load_or_new(Book, BOOK_ID)

    def save(self, book: Book) -> None:
        self.ledger.save(book)
        self.kept = self.ledger.size()

    def commitments(self) -> dict[UUID, bytes]:
        return {f: d.commitment for f, d in self.where.items()}

    def rail(self, payout: Payout, whims: list[tuple[str, bool]]) -> Rail:
        return Rail(self, CsvRail(Path(self.folder.name) / f"{payout.id}.csv"), whims)

    def given(self) -> Any:
        return given(Path(self.folder.name))

    # --- money comes

    @initialize(sizes=sizes, forgets=st.booleans())
    def begin(self, sizes: list[int], forgets: bool) -> None:
        """More can be said of lives whose database never forgets: every other one."""
        self.forgets = forgets
        self.earn(sizes, held=False)

    @rule(sizes=sizes, held=st.booleans())
    def earn(self, sizes: list[int], held: bool) -> None:
        book, self.serial = self.book, self.serial + 1
        book.deposit(STREAM, amount_micro=10**7, reference=f"d{self.serial}", at_us=self.now)
        tariff = Tariff(
            version=0, rate_micro_per_gb=10**9, fee_bp=500, floor_bp=0, plain_bp=0, plain_income_cap_bp=0
        )
        made = [
            Credit(
                stream_id=STREAM,
                node_id=UUID(int=100 + i),
                friend_id=f,
                plain=False,
                late=False,
                units=1,
                credited_bytes=size,
            )
            for i, (f, size) in enumerate(zip(FRIENDS, sizes, strict=True))
        ]
        entries = settle(made, {STREAM: tariff}, {STREAM: book.budget(STREAM)})
        epoch = book.next_epoch
        book.settle_epoch(epoch, log_to=book.settled_to, pages=pages(entries), at_us=self.now)
        if not held and epoch in book.holds:
            book.release_hold(epoch, at_us=self.now)
        self.save(book)

    @rule(data=st.data(), what=st.sampled_from(SELDOM))
    def something_else(self, data: st.DataObject, what: str) -> None:
        """One rule for all of these: each for itself would be a step as often as a payout is run."""
        forgotten, voided = {f: self.forgotten(f) for f in FRIENDS}, dict(self.book.voided)
        getattr(self, what)(data)
        for friend in FRIENDS:
            more = self.book.voided.get(str(friend), 0) - voided.get(str(friend), 0)
            self.taken[friend] += max(0, min(more, forgotten[friend]))

    def forgotten(self, friend: UUID) -> int:
        """What left for a friend and is not in the books, since the database is an older one."""
        known = sum(self.book.balance(friend_account(friend, pot)) for pot in ("in_flight", "paid"))
        return max(0, self.net(friend) - self.lied(friend) - known)

    def net(self, friend: UUID) -> int:
        """What a friend really got and kept."""
        got = sum(amount for who, amount in self.left if who == friend)
        return got - sum(amount for who, amount in self.back if who == friend)

    def lied(self, friend: UUID) -> int:
        """What a rail paid, and the books do not have, since it said that it had not."""
        total = 0
        for key, (who, amount) in self.lies.items():
            payout_, _, number = key.partition(":")
            with suppress(NotFound):
                line = payouts.load(self.ledger, UUID(payout_)).lines.get(int(number))
                if line is not None and line.state is LineState.CONFIRMED:
                    continue
            total += amount if who == friend else 0
        return total

    def release(self, _: st.DataObject) -> None:
        book = self.book
        for epoch in [e for e, hold in book.holds.items() if hold.amounts]:
            book.release_hold(epoch, at_us=self.now)
        self.save(book)

    def dispute(self, data: st.DataObject) -> None:
        by = data.draw(st.sampled_from(["operator", "friend"]))
        lines = [
            (position, n, event)
            for position, event in self.ledger.events()
            if isinstance(event, EpochSettled)
            for n in range(len(event.lines))
        ]
        if not lines:
            return
        book = self.book
        position, number, event = data.draw(st.sampled_from(lines))
        with suppress(DomainError):
            book.open_dispute(
                event.lines[number],
                epoch=event.epoch,
                position=position,
                settled_version=event.originator_version,
                number=number,
                opened_by=by,
                reason="why",
                at_us=self.now,
            )
            self.save(book)

    def decide(self, data: st.DataObject) -> None:
        uphold = data.draw(st.booleans())
        book = self.book
        for number in [n for n, d in book.disputes.items() if d.state == "open"][:1]:
            (book.uphold_dispute if uphold else book.reject_dispute)(number, reason="so", at_us=self.now)
        self.save(book)

    def adjust(self, data: st.DataObject) -> None:
        friend, up = data.draw(st.sampled_from(FRIENDS)), data.draw(st.booleans())
        amount = data.draw(st.integers(1, 10**6))
        book, self.serial = self.book, self.serial + 1
        pots = [budget_account(STREAM), friend_account(friend, "available")]
        if not up:
            pots = [pots[1], FEES]
        with suppress(DomainError):
            book.adjust(
                source=pots[0],
                target=pots[1],
                amount_micro=amount,
                reference=f"a{self.serial}",
                reason="counted",
                at_us=self.now,
            )
            self.save(book)

    # --- rules and places change, time passes, also backwards

    def limits(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from([500_000, 10**6, 10**11]))
        # Also one micro-unit less than, or just, what somebody would get today.
        given = self.book.paid_out_on(self.now)
        edges = [given + amount - less for amount in self.book.available().values() for less in (0, 1)]
        day = data.draw(st.sampled_from([0, 10**6, 2 * 10**6, 10**11, *edges, *edges]))
        second = data.draw(st.sampled_from([0, 10**6]))
        changes = {
            "payout_batch_max_micro": batch,
            "payout_day_max_micro": day,
            "payout_second_above_micro": second,
        }
        crew.change_settings(self.ledger, changes, at_us=self.now)
        self.kept = self.ledger.size()

    def move(self, data: st.DataObject) -> None:
        friend, text = data.draw(st.sampled_from(FRIENDS)), data.draw(st.sampled_from(["here", "there", ""]))
        self.serial += 1
        self.where.pop(friend, None)
        if text:
            self.where[friend] = Destination(text, self.serial.to_bytes(16))

    def wait(self, data: st.DataObject) -> None:
        self.now += data.draw(st.sampled_from([1, DAY_US, -1, -DAY_US]))

    # --- payouts

    @rule(
        threshold=st.sampled_from([1, 10**6]),
        quantum=st.sampled_from([1, 10_000]),
        operator=operators,
        approver=operators,
    )
    def plan(self, threshold: int, quantum: int, operator: str, approver: str) -> None:
        options: dict[str, Any] = {
            "rail": "csv",
            "threshold_micro": threshold,
            "destinations": self.commitments(),
            "quantum_micro": quantum,
            "operator": operator,
            "at_us": self.now,
            "remembered": self.memory.all(),
        }
        size, available = self.ledger.size(), self.book.available()
        try:
            dry = payouts.plan(self.ledger, dry_run=True, **options)
        except DomainError:
            return
        except returns.LostReturns:
            self.recover()
            return
        assert self.ledger.size() == size
        made = payouts.plan(self.ledger, **options)
        assert (made.lines, made.waiting) == (dry.lines, dry.waiting)
        limit = crew.settings(self.ledger).payout_batch_max_micro
        parts = [p.lines for p in (made, *made.further)]
        assert all(sum(x.amount_micro for x in lines) <= limit for lines in parts)
        planned = {x.friend_id: x.amount_micro for lines in parts for x in lines}
        assert planned.keys().isdisjoint(w.friend_id for w in made.waiting)
        assert {*planned, *(w.friend_id for w in made.waiting)} == available.keys()  # nobody vanishes
        assert all(0 < a <= available[f] and available[f] - a < quantum for f, a in planned.items())
        assert all(threshold <= available[f] for f in planned)
        for w in made.waiting:
            assert (w.reason == "below_threshold") == (available[w.friend_id] < threshold)
        for lines in parts:
            for x in lines:
                assert self.restored or x.destination_commitment not in self.unreachable

        second = crew.settings(self.ledger).payout_second_above_micro
        for payout in payouts.batches(self.ledger):
            with suppress(DomainError):
                payouts.approve(self.ledger, payout.id, operator=approver, at_us=self.now)
                same = approver.strip().lower() == payout.planned_by.strip().lower()
                assert payout.approved_by or not (0 < second < payout.total_micro and same)

    def drawn(self, data: st.DataObject) -> Payout | None:
        """Mostly one that is not over."""
        known = payouts.batches(self.ledger)
        some = [p for p in known if p.open] or known
        return data.draw(st.sampled_from(some)) if some else None

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        payout = self.drawn(data)
        if payout is not None:
            with suppress(DomainError, payouts.LostPayments):
                payouts.cancel(self.ledger, payout.id, reason="no", at_us=self.now, given=self.given())

    @rule(
        data=st.data(),
        some=st.lists(whims, max_size=3),
        dies_at=st.sampled_from([-1, -1, -1, 1, 2, 3, 4, 5]),
        dies_after=st.booleans(),
    )
    def run(self, data: st.DataObject, some: list[tuple[str, bool]], dies_at: int, dies_after: bool) -> None:
        payout = self.drawn(data)
        if payout is None:
            return
        size, before = self.ledger.size(), len(self.left)
        options: dict[str, Any] = {"destinations": self.where, "at_us": self.now}
        with suppress(DomainError, payouts.LostPayments):
            payouts.run(
                self.ledger, self.rail(payout, []), payout.id, dry_run=True, given=self.given(), **options
            )
        assert (self.ledger.size(), len(self.left)) == (size, before)
        self.ledger.saves_left, self.ledger.dies_after = dies_at, dies_after
        self.run_it(payout, some)

    @rule(data=st.data())
    def reconcile(self, data: st.DataObject) -> None:
        payout = self.drawn(data)
        if payout is not None:
            before = len(self.left)
            rail = self.rail(payout, [])
            size = self.ledger.size()
            dry = payouts.reconcile(self.ledger, rail, payout.id, at_us=self.now, dry_run=True)
            assert self.ledger.size() == size
            done = payouts.reconcile(self.ledger, rail, payout.id, at_us=self.now)
            assert done == dry
            assert len(self.left) == before
            self.nothing_is_overlooked(payout.id)

    @precondition(lambda self: len(self.lies) > 0)
    @rule()
    def the_truth_comes_out(self) -> None:
        """A rail that paid what it had called failed says so at last: booked, or reported as paid twice."""
        for payout in payouts.batches(self.ledger):
            before = {n: line.state for n, line in payout.lines.items()}
            lied = [n for n in before if payout.key(n) in self.lies and before[n] is LineState.FAILED]
            for result in payouts.reconcile(self.ledger, self.rail(payout, []), payout.id, at_us=self.now):
                if result.line in lied and payout.lines[result.line].attempt:
                    assert result.state in ("confirmed", payouts.OVERPAID)

    def nothing_is_overlooked(self, batch_id: UUID) -> None:
        """After the rail was asked: what it paid is booked, or it is one of its lies, or there is no attempt of it."""
        payout = payouts.load(self.ledger, batch_id)
        for number, line in payout.lines.items():
            known = self.rail(payout, []).look_up(payout.key(number)).outcome is Outcome.CONFIRMED
            if known and line.attempt and payout.key(number) not in self.lies:
                assert line.state is LineState.CONFIRMED

    @rule(data=st.data(), dies_at=st.sampled_from([-1, 1]), dies_after=st.booleans())
    def give_back(self, data: st.DataObject, dies_at: int, dies_after: bool) -> None:
        """A bank gives back all of a payment, or keeps a fee; who is told of it may die, and says it again."""
        left = {
            key: min(line.left_micro, line.amount_micro - self.back_of[key])
            for key, line in self.book.paid.items()
        }
        some = sorted(key for key, amount in left.items() if amount > 0)
        if not some:
            return
        key = data.draw(st.sampled_from(some))
        amount = data.draw(st.sampled_from([left[key], left[key], 1, max(1, left[key] - 250_000)]))
        self.serial += 1
        friend = self.book.paid[key].friend_id
        self.back.append((friend, amount))
        self.back_of[key] += amount
        options: dict[str, Any] = {
            "amount_micro": amount,
            "reference": f"r{self.serial}",
            "reason": "account closed",
            "at_us": self.now,
            "memory": self.memory,
        }
        with suppress(returns.LostReturns):
            size, dry = self.ledger.size(), returns.return_line(self.ledger, *key, dry_run=True, **options)
            assert self.ledger.size() == size
            assert dry.booked
        self.recover()  # of this line, what is forgotten comes first
        self.ledger.saves_left, self.ledger.dies_after = dies_at, dies_after
        with suppress(Died):
            returns.return_line(self.ledger, *key, **options)
        self.ledger.saves_left = -1
        before = self.book.paid[key].left_micro
        again = returns.return_line(self.ledger, *key, **options)
        assert again.booked == (dies_at == 1 and not dies_after)
        assert self.book.paid[key].left_micro == before - (amount if again.booked else 0)
        size, most = self.ledger.size(), self.book.paid[key].left_micro
        for options["reference"], options["amount_micro"] in ((f"r{self.serial}+", most + 1), ("r0", 0)):
            try:
                returns.return_line(self.ledger, *key, **options)
            except DomainError:
                assert self.ledger.size() == size
            else:
                raise AssertionError("more came back than was paid")
        planned = payouts.load(self.ledger, key[0]).lines[key[1]].planned
        self.unreachable.add(planned.destination_commitment)

    def recover(self) -> None:
        for payout in payouts.batches(self.ledger):
            returns.book_forgotten(self.ledger, payout.id, self.memory.all(), at_us=self.now)
        assert returns.forgotten(self.book, self.memory.all()) == []

    @rule(without=some_friend, moved=some_friend, some=st.lists(whims, max_size=2))
    def pay_everybody(self, without: UUID | None, moved: UUID | None, some: list[tuple[str, bool]]) -> None:
        """All of it at once, so that random steps often get this far; one has no destination, one has another now."""
        if moved in self.where:
            self.serial += 1
            self.where[moved] = Destination("elsewhere", self.serial.to_bytes(16))
        self.recover()
        with suppress(DomainError):
            payouts.plan(
                self.ledger,
                rail="csv",
                threshold_micro=1,
                remembered=self.memory.all(),
                destinations={f: c for f, c in self.commitments().items() if f != without},
                operator="ada",
                at_us=self.now,
            )
        for payout in payouts.batches(self.ledger):
            with suppress(DomainError):
                payouts.approve(self.ledger, payout.id, operator="bob", at_us=self.now)
            self.run_it(payout, some)  # whims are used up as they come

    @rule()
    def start_over(self) -> None:
        for payout in payouts.batches(self.ledger):
            with suppress(DomainError, payouts.LostPayments):
                payouts.cancel(self.ledger, payout.id, reason="x", at_us=self.now, given=self.given())
        self.pay_everybody(None, None, [])

    def run_it(self, payout: Payout, whims: list[tuple[str, bool]]) -> None:
        before = self.book.paid_out_on(self.now)
        payout = payouts.load(self.ledger, payout.id)
        allowed = bool(payout.approved_by) and not payout.cancelled
        try:
            payouts.run(
                self.ledger,
                self.rail(payout, whims),
                payout.id,
                destinations=self.where,
                at_us=self.now,
                given=self.given(),
            )
            assert allowed
        except DomainError:
            assert not allowed  # of those that may be run, each line comes to something
        except (Died, OtherPayment, payouts.LostPayments):
            pass
        self.ledger.saves_left = -1
        limit = crew.settings(self.ledger).payout_day_max_micro
        assert self.book.paid_out_on(self.now) <= max(limit, before)

    # --- the database is lost, the files are not

    @precondition(lambda self: self.forgets and len(self.left) > 0)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """A backup from after the last earnings: what was earned since would be lost with it, of no interest here."""
        old = [n for n in self.ledger.saved if n >= self.kept]
        if old:
            self.restored = True
            self.ledger.cut(data.draw(st.sampled_from(old[:4])))  # what was planned, mostly

    # --- after each step

    @invariant()
    def nobody_is_paid_what_they_did_not_earn(self) -> None:
        book = self.book
        assert sum(book.accounts.values()) == 0
        assert all(amount >= 0 for account, amount in book.accounts.items() if account != "external")
        for friend in FRIENDS:
            pots = {pot: book.balance(friend_account(friend, pot)) for pot in POTS}
            earned, voided = book.earned.get(str(friend), 0), book.voided.get(str(friend), 0)
            assert sum(pots.values()) + voided == earned
            got = self.net(friend)
            # A rail that pays what it says it never will can make it leave twice, once. And people may take back, by an
            # adjustment or a dispute, what the database has forgotten that it left.
            assert got - self.lied(friend) - self.taken[friend] <= earned - voided
            # A database that forgot a return has more as paid, until it is told.
            forgotten = sum(
                one.amount_micro
                for one in returns.forgotten(book, self.memory.all())
                if book.paid[one.batch_id, one.line].friend_id == friend
            )
            assert pots["paid"] <= got + forgotten
            if not self.restored:
                assert got - self.lied(friend) <= pots["paid"] + pots["in_flight"]

    @invariant()
    def what_was_given_to_rails_on_a_day_was_reserved_on_it_and_has_not_failed(self) -> None:
        days: dict[int, int] = defaultdict(int)
        reserved: dict[tuple[UUID, int], tuple[int, int]] = {}
        for _, event in self.ledger.events():
            if isinstance(event, PayoutLineReserved):
                day, amount = event.at_us // DAY_US, event.transfer.postings[-1].amount_micro
                reserved[event.batch_id, event.line] = (day, amount)
                days[day] += amount
            elif isinstance(event, PayoutLineFailed):
                day, amount = reserved[event.batch_id, event.line]
                days[day] -= amount
        assert {d: m for d, m in self.book.reserved_on.items() if m} == {d: m for d, m in days.items() if m}


TestPayoutLives = PayoutLives.TestCase
TestPayoutLives.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
