"""The book and the payouts against a small obvious model: dicts, loops and exact fractions."""

from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ledger import events as e
from ledger.aggregates.base import Aggregate, DomainError
from ledger.aggregates.book import Book
from ledger.aggregates.payout import LineState, Payout, payout_id
from ledger.event_codec import decode, encode
from ledger.ids import BOOK_ID
from ledger.rails import Answer, Outcome
from ledger.settlement import Credit, Page, Tariff, pages, settle

STREAMS = [UUID(int=i) for i in (1, 2)]
NODES = [UUID(int=10 + i) for i in range(4)]
FRIEND_OF = dict(zip(NODES, (UUID(int=20), UUID(int=21), UUID(int=21), UUID(int=22)), strict=True))
amounts = st.integers(1, 10**9)
bps = st.sampled_from([0, 1, 500, 3_333, 9_999, 10_000])


def split(total: int, weights: dict[Any, int]) -> dict[Any, int]:
    """Largest remainder, the obvious way."""
    whole = sum(weights.values())
    if not whole:
        return dict.fromkeys(weights, 0)
    quota = {k: Fraction(total * w, whole) for k, w in weights.items()}
    parts = {k: floor(q) for k, q in quota.items()}
    for key in sorted(quota, key=lambda k: (floor(quota[k]) - quota[k], k))[: total - sum(parts.values())]:
        parts[key] += 1
    return parts


def model_settle(credits: list[Credit], t: Tariff, budget: int) -> tuple[dict[UUID, int], int]:
    """(friend -> earned, fee) of one stream."""
    weight: dict[tuple[str, str], int] = defaultdict(int)
    for c in (c for c in credits if c.units):
        reason = ("plain_delivery" if c.plain else "delivery") + ("_late" if c.late else "")
        weight[str(c.node_id), reason] += c.credited_bytes * (t.plain_bp if c.plain else 10_000)
    nodes = {node for node, _ in weight}
    gross = min(budget, floor(Fraction(sum(weight.values()) * t.rate_micro_per_gb, 10**13)))
    pool = gross - floor(Fraction(gross * t.fee_bp, 10_000))
    floors = split(floor(Fraction(pool * t.floor_bp, 10_000)), dict.fromkeys(nodes, 1))
    parts = split(pool - sum(floors.values()), weight)
    earned: dict[UUID, int] = defaultdict(int)
    for node in nodes:
        plain = sum(x for (n, r), x in parts.items() if n == node and r.startswith("plain"))
        other = floors[node] + sum(
            x for (n, r), x in parts.items() if n == node and not r.startswith("plain")
        )
        if t.plain_income_cap_bp < 10_000:
            plain = min(plain, floor(Fraction(other * t.plain_income_cap_bp, 10_000 - t.plain_income_cap_bp)))
        earned[FRIEND_OF[UUID(node)]] += other + plain
    fee = gross - pool
    if t.fee_bp < 10_000:
        fee = min(fee, floor(Fraction(sum(earned.values()) * t.fee_bp, 10_000 - t.fee_bp)))
    return earned, fee


class Money(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.book = Book(BOOK_ID)
        self.payouts: list[Payout] = []
        self.now = 1_000
        self.accounts: dict[str, int] = defaultdict(int)  # the model's
        self.earned: dict[UUID, int] = defaultdict(int)
        self.held: dict[int, dict[UUID, int]] = {}
        self.references: set[str] = set()
        self.epoch = 0
        self.voided: dict[UUID, int] = defaultdict(int)
        self.settlements: list[tuple[int, int]] = []  # (version of the book, epoch)
        self.disputes: dict[int, tuple[int, UUID, UUID, int]] = {}  # open: epoch, friend, stream, amount
        self.disputed: set[tuple[int, int]] = set()
        self.unreleased: set[int] = set()

    def move(self, source: str, target: str, amount: int) -> None:
        self.accounts[source] -= amount
        self.accounts[target] += amount

    def refused(self, command: Any, *args: Any, **kwargs: Any) -> None:
        version, pending = self.book.version, len(self.book._pending)
        with pytest.raises(DomainError):
            command(*args, **kwargs)
        assert (self.book.version, len(self.book._pending)) == (version, pending)
        self.book = self.again(self.book)

    def again(self, aggregate: Any) -> Any:
        """What a reader of the log would have: the fold of the stored bytes."""
        fresh: Aggregate = type(aggregate)(aggregate.id)
        for event in aggregate._pending:
            fresh.mutate(decode(encode(event)))
        fresh._pending = list(aggregate._pending)
        return fresh

    # --- budgets

    @rule(
        stream=st.sampled_from(STREAMS),
        rate=st.integers(0, 10**9),
        parts=st.tuples(bps, bps, bps, bps),
        ahead=st.integers(-1, 3),
    )
    def set_tariff(self, stream: UUID, rate: int, parts: tuple[int, int, int, int], ahead: int) -> None:
        known = self.book._tariffs.get(stream, [])
        effective = self.epoch + ahead
        names = ("fee_bp", "floor_bp", "plain_bp", "plain_income_cap_bp")
        numbers = {"rate_micro_per_gb": rate, **dict(zip(names, parts, strict=True))}
        earliest = max(self.epoch + 1, known[-1].effective_epoch) if known else self.epoch
        command = self.book.set_tariff
        if effective < earliest:
            self.refused(command, stream, effective_epoch=effective, at_us=self.now, **numbers)
        else:
            before = self.book.tariff(stream, self.epoch)
            command(stream, effective_epoch=effective, at_us=self.now, **numbers)
            if before is not None:
                assert self.book.tariff(stream, self.epoch) == before  # never under running work

    @rule(stream=st.sampled_from(STREAMS), amount=amounts, reference=st.sampled_from("abcdefghij"))
    def deposit(self, stream: UUID, amount: int, reference: str) -> None:
        if reference in self.references:
            same = self.book._references[reference]
            if same == ("deposit", stream, amount):
                assert not self.book.deposit(stream, amount_micro=amount, reference=reference, at_us=self.now)
            else:
                self.refused(
                    self.book.deposit, stream, amount_micro=amount, reference=reference, at_us=self.now
                )
            return
        assert self.book.deposit(stream, amount_micro=amount, reference=reference, at_us=self.now)
        assert not self.book.deposit(stream, amount_micro=amount, reference=reference, at_us=self.now)
        self.references.add(reference)
        self.move("external", f"budget:{stream}", amount)

    @rule(stream=st.sampled_from(STREAMS), amount=amounts)
    def withdraw(self, stream: UUID, amount: int) -> None:
        reference = f"w{len(self.references)}"
        if amount > self.accounts[f"budget:{stream}"]:
            self.refused(self.book.withdraw, stream, amount_micro=amount, reference=reference, at_us=self.now)
            return
        self.book.withdraw(stream, amount_micro=amount, reference=reference, at_us=self.now)
        self.references.add(reference)
        self.move(f"budget:{stream}", "external", amount)

    # --- settlement and holds

    @rule(
        drawn=st.lists(
            st.tuples(
                st.sampled_from(STREAMS),
                st.sampled_from(NODES),
                st.booleans(),
                st.booleans(),
                st.integers(0, 10**10),
            ),
            max_size=8,
        ),
        skip=st.integers(0, 2),
    )
    def settle(self, drawn: list[tuple[UUID, UUID, bool, bool, int]], skip: int) -> None:
        credits = [
            Credit(
                stream_id=s, node_id=n, friend_id=FRIEND_OF[n], plain=p, late=late, units=1, credited_bytes=b
            )
            for s, n, p, late, b in drawn
        ]
        epoch = self.epoch + skip
        tariffs = {s: t for s in STREAMS if (t := self.book.tariff(s, epoch))}
        entries = settle(credits, tariffs, {s: self.book.budget(s) for s in STREAMS})
        # Two entries a page, so that page borders are met.
        cut = [p for i in range(0, len(entries), 2) for p in pages(entries[i : i + 2])] or [Page((), ())]
        log_to = self.book.settled_to + len(credits)
        first = self.book.version + 1
        self.book.settle_epoch(epoch, log_to=log_to, pages=cut, at_us=self.now)
        self.settlements += [(first + n, epoch) for n in range(len(cut))]
        held: dict[UUID, int] = defaultdict(int)
        for stream, tariff in tariffs.items():
            mine = [c for c in credits if c.stream_id == stream]
            earned, fee = model_settle(mine, tariff, self.accounts[f"budget:{stream}"])
            self.move(f"budget:{stream}", "fees", fee)
            for friend, amount in earned.items():
                self.move(f"budget:{stream}", f"friend:{friend}:pending", amount)
                self.earned[friend] += amount
                held[friend] += amount
        if any(held.values()):
            self.held[epoch] = {f: a for f, a in held.items() if a}
            self.unreleased.add(epoch)
        self.epoch = epoch + 1
        self.refused(self.book.settle_epoch, epoch, log_to=log_to, pages=[Page((), ())], at_us=self.now)

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        epoch = data.draw(st.sampled_from(sorted(e for e, held in self.held.items() if held)))
        self.book.release_hold(epoch, at_us=self.now)
        self.unreleased.discard(epoch)
        for friend, amount in self.held.pop(epoch).items():
            self.move(f"friend:{friend}:pending", f"friend:{friend}:available", amount)
        self.refused(self.book.release_hold, epoch, at_us=self.now)

    # --- disputes and adjustments

    @precondition(lambda self: self.settlements)
    @rule(data=st.data(), by=st.sampled_from(["operator", "friend", "creator"]))
    def dispute(self, data: st.DataObject, by: str) -> None:
        version, epoch = data.draw(st.sampled_from(self.settlements))
        event = self.book._pending[version - 1]
        assert isinstance(event, e.EpochSettled)
        if not event.lines:
            return
        number = data.draw(st.integers(0, len(event.lines) - 1))
        line = event.lines[number]
        arguments: dict[str, Any] = {
            "epoch": epoch,
            "position": version,
            "settled_version": version,
            "number": number,
            "opened_by": by,
            "reason": "why",
            "at_us": self.now,
        }
        if (version, number) in self.disputed or epoch not in self.unreleased or not line.amount_micro:
            self.refused(self.book.open_dispute, line, **arguments)
            return
        made = self.book.open_dispute(line, **arguments)
        self.disputed.add((version, number))
        self.disputes[made] = (epoch, line.friend_id, line.stream_id, line.amount_micro)
        self.held[epoch][line.friend_id] -= line.amount_micro
        if not self.held[epoch][line.friend_id]:
            del self.held[epoch][line.friend_id]

    @precondition(lambda self: self.disputes)
    @rule(data=st.data(), uphold=st.booleans())
    def decide(self, data: st.DataObject, uphold: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.disputes)))
        epoch, friend, stream, amount = self.disputes.pop(number)
        command = self.book.uphold_dispute if uphold else self.book.reject_dispute
        command(number, reason="because", at_us=self.now)
        if uphold:
            self.move(f"friend:{friend}:pending", f"budget:{stream}", amount)
            self.voided[friend] += amount
        elif epoch in self.unreleased:
            held = self.held[epoch]
            held[friend] = held.get(friend, 0) + amount
        else:
            self.move(f"friend:{friend}:pending", f"friend:{friend}:available", amount)
        still_open = any(d[0] == epoch for d in self.disputes.values())
        if epoch in self.unreleased and not self.held[epoch] and not still_open:
            self.unreleased.discard(epoch)
            del self.held[epoch]
        self.refused(self.book.uphold_dispute, number, reason="again", at_us=self.now)

    @rule(data=st.data(), amount=amounts, reference=st.sampled_from("abcklmn"))
    def adjust(self, data: st.DataObject, amount: int, reference: str) -> None:
        places = [f"budget:{s}" for s in STREAMS] + [f"friend:{f}:available" for f in FRIEND_OF.values()]
        places += ["fees", "external", f"friend:{UUID(int=20)}:paid"]
        source, target = data.draw(st.sampled_from(places)), data.draw(st.sampled_from(places))
        arguments: dict[str, Any] = {
            "source": source,
            "target": target,
            "amount_micro": amount,
            "reference": reference,
            "reason": "corrected",
            "at_us": self.now,
        }
        known = self.book._references.get(reference)
        if known == ("adjustment", source, target, amount):
            assert not self.book.adjust(**arguments)
            return
        friends = [x.startswith("friend:") for x in (source, target)]
        forbidden = source == target or all(friends) or {source, target} & set(places[-2:])
        if known or forbidden or amount > self.accounts[source]:
            self.refused(self.book.adjust, **arguments)
            return
        assert self.book.adjust(**arguments)
        assert not self.book.adjust(**arguments)
        self.references.add(reference)
        self.move(source, target, amount)
        if friends[1]:
            self.earned[UUID(target.split(":")[1])] += amount
        if friends[0]:
            self.voided[UUID(source.split(":")[1])] += amount

    # --- payouts

    @rule(threshold=st.sampled_from([1, 1_000, 10**6]))
    def plan(self, threshold: int) -> None:
        busy = {
            line.planned.friend_id
            for p in self.payouts
            if p.open
            for line in p.lines.values()
            if line.state is LineState.PLANNED
        }
        rich = [(f, a) for f, a in self.book.available().items() if a >= threshold and f not in busy]
        if rich:
            payout = Payout(payout_id(len(self.payouts) + 1))
            lines = [e.PayoutLine(i, f, a, b"") for i, (f, a) in enumerate(rich, 1)]
            payout.plan(rail="csv", lines=lines, at_us=self.now)
            with pytest.raises(DomainError):
                self.again(payout).attempt(1, at_us=self.now)  # not approved
            payout.approve(operator="op", at_us=self.now)
            self.payouts.append(payout)

    @precondition(lambda self: self.payouts)
    @rule(data=st.data(), outcome=st.sampled_from([Outcome.CONFIRMED, Outcome.FAILED, Outcome.UNKNOWN]))
    def pay(self, data: st.DataObject, outcome: Outcome) -> None:
        payout = data.draw(st.sampled_from(self.payouts))
        number = data.draw(st.sampled_from(sorted(payout.lines)))
        line = payout.lines[number]
        friend, amount = line.planned.friend_id, line.planned.amount_micro
        base = f"friend:{friend}"
        if line.state is LineState.PLANNED:
            if amount > self.accounts[f"{base}:available"]:
                self.refused(
                    self.book.reserve_payout_line,
                    payout.id,
                    number,
                    friend_id=friend,
                    amount_micro=amount,
                    at_us=self.now,
                )
                return
            payout.attempt(number, at_us=self.now)
            self.book.reserve_payout_line(
                payout.id, number, friend_id=friend, amount_micro=amount, at_us=self.now
            )
            self.move(f"{base}:available", f"{base}:in_flight", amount)
        elif line.state is LineState.CONFIRMED:
            with pytest.raises(DomainError):
                self.again(payout).resolve(number, Answer(outcome), at_us=self.now)
            self.refused(self.book.confirm_payout_line, payout.id, number, at_us=self.now)
            return
        elif line.state is LineState.FAILED:
            if outcome is not Outcome.CONFIRMED or amount > self.accounts[f"{base}:available"]:
                return
            self.book.reserve_payout_line(
                payout.id, number, friend_id=friend, amount_micro=amount, at_us=self.now
            )
            self.move(f"{base}:available", f"{base}:in_flight", amount)
        elif outcome is Outcome.UNKNOWN:
            payout.attempt(number, at_us=self.now)  # the rail never saw the key
        payout.resolve(number, Answer(outcome), at_us=self.now)
        if outcome is Outcome.CONFIRMED:
            self.book.confirm_payout_line(payout.id, number, at_us=self.now)
            self.move(f"{base}:in_flight", f"{base}:paid", amount)
        elif outcome is Outcome.FAILED:
            self.book.fail_payout_line(payout.id, number, at_us=self.now)
            self.move(f"{base}:in_flight", f"{base}:available", amount)

    # --- after each step

    @invariant()
    def the_book_is_what_the_model_says(self) -> None:
        self.now += 1
        assert {a: x for a, x in self.book.accounts.items() if x} == {
            a: x for a, x in self.accounts.items() if x
        }
        assert sum(self.book.accounts.values()) == 0
        assert self.book.adds_up()
        assert all(x >= 0 for a, x in self.book.accounts.items() if a != "external")
        for friend, earned in self.earned.items():
            states = ("pending", "available", "in_flight", "paid")
            there = sum(self.book.balance(f"friend:{friend}:{s}") for s in states)
            assert there + self.voided[friend] == earned
            assert self.book.earned.get(str(friend), 0) == earned
            assert self.book.voided.get(str(friend), 0) == self.voided[friend]
        frozen = sum(amount for _, _, _, amount in self.disputes.values())
        held = sum(sum(x.values()) for x in self.held.values())
        pending = sum(x for a, x in self.book.accounts.items() if a.endswith(":pending"))
        assert pending == held + frozen

    def teardown(self) -> None:
        replayed = self.again(self.book)
        names = ("accounts", "holds", "reservations", "next_epoch", "settled_to", "version")
        for name in (*names, "disputes", "earned", "voided"):
            assert getattr(replayed, name) == getattr(self.book, name)
        for payout in self.payouts:
            assert self.again(payout).lines == payout.lines


TestMoney = Money.TestCase
TestMoney.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


# --- what a forged or damaged log says must not be folded


def settled_book() -> tuple[Book, list[e.Event]]:
    book = Book(BOOK_ID)
    numbers = {"fee_bp": 500, "floor_bp": 0, "plain_bp": 0, "plain_income_cap_bp": 0}
    book.set_tariff(STREAMS[0], effective_epoch=0, rate_micro_per_gb=10**6, at_us=1, **numbers)
    book.deposit(STREAMS[0], amount_micro=10**7, reference="r", at_us=2)
    tariff = book.tariff(STREAMS[0], 0)
    assert tariff is not None
    credits = [
        Credit(
            stream_id=STREAMS[0],
            node_id=n,
            friend_id=FRIEND_OF[n],
            plain=False,
            late=False,
            units=1,
            credited_bytes=10**9,
        )
        for n in NODES
    ]
    entries = settle(credits, {STREAMS[0]: tariff}, {STREAMS[0]: 10**7})
    book.settle_epoch(0, log_to=9, pages=[*pages(entries[:2]), *pages(entries[2:])], at_us=3)
    book.release_hold(0, at_us=4)
    friend = FRIEND_OF[NODES[0]]
    book.reserve_payout_line(payout_id(1), 1, friend_id=friend, amount_micro=5, at_us=5)
    book.confirm_payout_line(payout_id(1), 1, at_us=6)
    return book, list(book._pending)


def raised(transfer: e.Transfer, by: int) -> e.Transfer:
    source, target = transfer.postings
    return e.Transfer(
        transfer.reason,
        (
            e.Posting(source.account, source.amount_micro - by),
            e.Posting(target.account, target.amount_micro + by),
        ),
    )


def tampered(event: Any) -> list[e.Event]:
    """Copies of an event that moves money, each wrong in one way."""

    change = msgspec.structs.replace
    transfers = getattr(event, "transfers", None) or (event.transfer,)
    one = transfers[0]
    unbalanced = e.Transfer(one.reason, (*one.postings, e.Posting("fees", 1)))
    stolen = e.Transfer(
        one.reason, (one.postings[0], e.Posting("friend:thief:available", one.postings[1].amount_micro))
    )
    wrong = [unbalanced, stolen, e.Transfer("gift", one.postings), e.Transfer(one.reason, ())]
    if hasattr(event, "transfers"):
        # Of a fee only its own settlement, made again, can say that it is too high: not the first transfer.
        return [change(event, transfers=(w, *transfers[1:])) for w in wrong] + [
            change(event, transfers=(*transfers[:-1], raised(transfers[-1], 1))),
            change(event, transfers=transfers[:-1]),
            change(event, page=event.page + 1),
            change(event, epoch=event.epoch + 1),
            change(event, pages=event.pages + 1, page=event.pages + 1),
        ]
    if not isinstance(event, e.BudgetDeposited | e.PayoutLineReserved):  # whose amount is theirs to say
        wrong.append(raised(one, 1))
    return [change(event, transfer=w) for w in wrong]


@pytest.mark.parametrize(
    "moves",
    [
        {"fees": 1},
        {"fees": -1, "friend:%s:available": 1},  # balanced, and nobody earned it
        {"friend:%s:available": -1, "friend:%s:pending": 1},  # held by nothing
        {"friend:%s:available": -1, "friend:%s:in_flight": 1},  # reserved for nothing
        {"external": -1, "friend:%s:paid": 1},
    ],
)
def test_a_book_that_does_not_add_up_is_known(moves: dict[str, int]) -> None:
    book, _ = settled_book()
    assert book.adds_up()
    for account, amount in moves.items():
        name = account.replace("%s", str(FRIEND_OF[NODES[0]]))
        book.accounts[name] = book.accounts.get(name, 0) + amount
    assert not book.adds_up()


def test_an_untouched_log_folds() -> None:
    book, log = settled_book()
    again = Book(BOOK_ID)
    for event in log:
        again.mutate(event)
    assert again.accounts == book.accounts


def test_no_tampered_movement_is_ever_folded() -> None:
    _, log = settled_book()
    for i, event in enumerate(log):
        if isinstance(event, e.TariffSet):
            continue
        for bad in tampered(event):
            book = Book(BOOK_ID)
            for before in log[:i]:
                book.mutate(before)
            accounts = dict(book.accounts)
            try:
                book.mutate(bad)
                # A page that claims another place is only found out when its followers come.
                assert isinstance(bad, e.EpochSettled)
                for after in log[i + 1 :]:
                    book.mutate(after)
            except DomainError:
                assert isinstance(bad, e.EpochSettled) or book.accounts == accounts
            else:
                raise AssertionError(f"folded {bad}")


def test_nothing_comes_between_the_pages_of_an_epoch() -> None:
    _, log = settled_book()
    first = next(i for i, event in enumerate(log) if isinstance(event, e.EpochSettled))
    book = Book(BOOK_ID)
    for event in log[: first + 1]:
        book.mutate(event)
    with pytest.raises(DomainError, match="not complete"):
        book.deposit(STREAMS[0], amount_micro=1, reference="x", at_us=9)


def test_a_line_without_its_transfer_is_refused() -> None:
    _, log = settled_book()
    first = next(i for i, event in enumerate(log) if isinstance(event, e.EpochSettled))
    page = log[first]
    assert isinstance(page, e.EpochSettled)

    paid = next(i for i, x in enumerate(page.lines) if x.amount_micro)
    more = msgspec.structs.replace(page.lines[paid], amount_micro=page.lines[paid].amount_micro + 1)
    lines = (*page.lines[:paid], more, *page.lines[paid + 1 :])
    book = Book(BOOK_ID)
    for event in log[:first]:
        book.mutate(event)
    with pytest.raises(DomainError, match="differ"):
        book.mutate(msgspec.structs.replace(page, lines=lines))


def test_the_tariff_in_force_is_the_newest_effective_one() -> None:
    book = Book(BOOK_ID)
    base = {"fee_bp": 0, "floor_bp": 0, "plain_bp": 0, "plain_income_cap_bp": 0}
    for version, epoch in enumerate((0, 3, 3, 5), 1):
        book.set_tariff(STREAMS[0], effective_epoch=epoch, rate_micro_per_gb=version, at_us=1, **base)
    found = [book.tariff(STREAMS[0], epoch) for epoch in range(7)]
    assert [t.version for t in found if t] == [1, 1, 1, 3, 3, 4, 4]
    assert book.newest_tariff(STREAMS[0]) == replace(found[-1], version=4)  # type: ignore[type-var]
