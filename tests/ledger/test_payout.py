"""Payouts on a real ledger and a real file, killed at every save and at every call of the rail."""

import csv
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.aggregates.payout import MAX_LINES, Payout, payout_id
from ledger.application import Ledger, Unavailable
from ledger.events import PayoutLine
from ledger.ids import BOOK_ID
from ledger.rails import Answer, OtherPayment, Outcome, Payment
from ledger.rails.csv_file import CsvRail
from ledger.services import crew, payouts
from ledger.services.destinations import Destination
from ledger.settlement import Credit, Tariff, pages, settle

STREAM = UUID(int=1)
FRIENDS = [UUID(int=20 + i) for i in range(3)]
DESTINATIONS = {f: Destination(f'DE{i} "Öz", {i}', bytes([i]) * 16) for i, f in enumerate(FRIENDS)}
COMMITMENTS = {f: d.commitment for f, d in DESTINATIONS.items()}
AT = 10**15


class Killed(BaseException):
    """The process dies here: nothing catches this."""


def earn(ledger: Ledger, epoch: int = 0) -> None:
    """Every friend has 3.166666 or so available from each epoch."""
    book = ledger.load_or_new(Book, BOOK_ID)
    book.deposit(STREAM, amount_micro=10**7, reference=f"d{epoch}", at_us=AT)
    tariff = Tariff(
        version=0, rate_micro_per_gb=10**7, fee_bp=500, floor_bp=0, plain_bp=0, plain_income_cap_bp=0
    )
    credits = [
        Credit(
            stream_id=STREAM,
            node_id=UUID(int=100 + i),
            friend_id=f,
            plain=False,
            late=False,
            units=1,
            credited_bytes=10**9,
        )
        for i, f in enumerate(FRIENDS)
    ]
    book.settle_epoch(
        epoch,
        log_to=book.settled_to,
        pages=pages(settle(credits, {STREAM: tariff}, {STREAM: 10**7})),
        at_us=AT,
    )
    book.release_hold(epoch, at_us=AT)
    ledger.save(book)


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    earn(ledger)
    return ledger


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "payouts" / "batch.csv"


def planned(ledger: Ledger, *, threshold: int = 1, epoch_at: int = AT) -> UUID:
    plan = payouts.plan(
        ledger, rail="csv", threshold_micro=threshold, destinations=COMMITMENTS, at_us=epoch_at
    )
    assert plan.batch_id is not None
    payouts.approve(ledger, plan.batch_id, operator="op", at_us=epoch_at)
    return plan.batch_id


def run(ledger: Ledger, rail: Any, batch_id: UUID) -> list[payouts.LineResult]:
    return payouts.run(ledger, rail, batch_id, destinations=DESTINATIONS, at_us=AT)


def balances(ledger: Ledger, state: str) -> list[int]:
    book = ledger.load(Book, BOOK_ID)
    return [book.balance(f"friend:{f}:{state}") for f in FRIENDS]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def assert_each_paid_once(ledger: Ledger, file: Path, batch_id: UUID, amounts: list[int]) -> None:
    written = rows(file)
    assert sorted(r["friend_id"] for r in written) == sorted(str(f) for f in FRIENDS)
    assert {r["friend_id"]: int(r["amount_micro"]) for r in written} == {
        str(f): a for f, a in zip(FRIENDS, amounts, strict=True)
    }
    assert balances(ledger, "paid") == amounts
    assert balances(ledger, "available") == balances(ledger, "in_flight") == [0, 0, 0]
    assert ledger.load(Payout, batch_id).state == "finished"
    assert not ledger.load(Book, BOOK_ID).reservations


def test_a_batch_pays_everybody_what_is_available(funded: Ledger, file: Path) -> None:
    amounts = balances(funded, "available")
    batch_id = planned(funded)
    assert [r.state for r in run(funded, CsvRail(file), batch_id)] == ["confirmed"] * 3
    assert_each_paid_once(funded, file, batch_id, amounts)
    first = rows(file)[0]
    assert (first["amount"], first["unit"], first["key"]) == ("3.166667", "EUR", f"{batch_id}:1")
    assert [r["destination"] for r in rows(file)] == [DESTINATIONS[f].text for f in FRIENDS]
    assert [r.action for r in run(funded, CsvRail(file), batch_id)] == ["none"] * 3
    assert_each_paid_once(funded, file, batch_id, amounts)


# --- killed anywhere


class Trap:
    """Kills at the n-th dangerous instruction: before or after each save, before or after each call of the rail."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, error: type[BaseException]) -> None:
        self.left -= 1
        if self.left == 0:
            raise error("here")


class TrappedRail:
    def __init__(self, rail: CsvRail, trap: Trap, error: type[BaseException]) -> None:
        self.rail, self.trap, self.error = rail, trap, error
        self.name, self.prepare = rail.name, rail.prepare

    def submit(self, payment: Payment) -> Answer:
        self.trap.step(self.error)
        answer = self.rail.submit(payment)
        self.trap.step(self.error)
        return answer

    def look_up(self, key: str) -> Answer:
        self.trap.step(self.error)
        return self.rail.look_up(key)


@pytest.mark.parametrize("error", [Killed, Unavailable])
def test_killed_at_any_instruction_everybody_is_still_paid_exactly_once(
    funded: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    save = funded.save
    survived = False
    for at in range(1, 40):
        file = tmp_path / f"{at}.csv"
        amounts = balances(funded, "available")
        before = balances(funded, "paid")
        batch_id = planned(funded)
        trap = Trap(at)

        def trapped(*aggregates: Any, trap: Trap = trap) -> list[int]:
            trap.step(error)  # not persisted
            positions = save(*aggregates)
            trap.step(error)  # persisted, but reported as failed
            return positions

        monkeypatch.setattr(funded, "save", trapped)
        try:
            run(funded, TrappedRail(CsvRail(file), trap, error), batch_id)
            survived = True
        except error:
            pass
        # Half the way it dies a second time, one step further than it came before.
        second = Trap(3)
        with suppress(error):
            run(funded, TrappedRail(CsvRail(file), second, error), batch_id)
        monkeypatch.setattr(funded, "save", save)
        run(funded, CsvRail(file), batch_id)
        assert {r["friend_id"]: int(r["amount_micro"]) for r in rows(file)} == {
            str(f): a for f, a in zip(FRIENDS, amounts, strict=True)
        }
        assert len(rows(file)) == 3
        assert balances(funded, "paid") == [b + a for b, a in zip(before, amounts, strict=True)]
        assert balances(funded, "in_flight") == [0, 0, 0]
        if survived:
            break
        earn(funded, at)
    assert survived
    assert at == 3 * 7 + 1  # seven dangerous instructions a line, all of them tried


def test_two_runs_at_once_pay_once(funded: Ledger, file: Path, database_url: str) -> None:
    amounts = balances(funded, "available")
    batch_id = planned(funded)
    ledgers = [Ledger(database_url) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda x: run(x, CsvRail(file), batch_id), ledgers))
    finally:
        for other in ledgers:
            other.close()
    assert_each_paid_once(funded, file, batch_id, amounts)


class Overtaken(CsvRail):
    """Whoever asks it first is overtaken by another run."""

    def __init__(self, path: Path, other: Callable[[], object]) -> None:
        super().__init__(path)
        self.others = [other]

    def look_up(self, key: str) -> Answer:
        if self.others:
            self.others.pop()()
        return super().look_up(key)


def test_a_run_that_is_overtaken_by_another_finds_all_of_it_done(funded: Ledger, file: Path) -> None:
    """What the rail knows all at once is no payment of a lost database."""
    amounts, batch_id = balances(funded, "available"), planned(funded)
    rail = Overtaken(file, lambda: run(funded, CsvRail(file), batch_id))
    assert states(run(funded, rail, batch_id)) == ["confirmed"] * 3
    assert_each_paid_once(funded, file, batch_id, amounts)


def test_what_a_run_that_died_has_paid_is_taken_up_also_when_the_destination_is_gone(
    funded: Ledger, file: Path
) -> None:
    amounts, batch_id = balances(funded, "available"), planned(funded)
    with suppress(Killed):
        run(
            funded, TrappedRail(CsvRail(file), Trap(5), Killed), batch_id
        )  # after the first is given to the rail
    assert states(payouts.run(funded, CsvRail(file), batch_id, destinations={}, at_us=AT))[0] == "confirmed"
    assert balances(funded, "paid") == [amounts[0], 0, 0]


class Poor(CsvRail):
    def prepare(self, amounts_micro: Sequence[int]) -> None:
        raise DomainError(f"cannot pay {sum(amounts_micro)}")


def test_what_cannot_be_paid_is_said_before_anything_is_reserved(funded: Ledger, file: Path) -> None:
    amounts = balances(funded, "available")
    batch_id = planned(funded)
    with pytest.raises(DomainError, match=f"cannot pay {sum(amounts)}"):
        run(funded, Poor(file), batch_id)
    assert balances(funded, "available") == amounts
    run(funded, CsvRail(file), batch_id)
    with pytest.raises(DomainError, match="cannot pay 0"):
        run(funded, Poor(file), batch_id)


# --- rails that do not know, and rails that lie


def lost_line(batch_id: UUID, amount_micro: int) -> Payment:
    """The second line of a payout of the same number, paid before the database was restored from an older backup."""
    return Payment(
        key=f"{batch_id}:2",
        friend_id=FRIENDS[1],
        amount_micro=amount_micro,
        unit="EUR",
        destination=DESTINATIONS[FRIENDS[1]].text,
    )


def test_the_payment_of_a_lost_line_does_not_count_for_another(funded: Ledger, file: Path) -> None:
    amounts, batch_id = balances(funded, "available"), planned(funded)
    CsvRail(file).submit(lost_line(batch_id, amounts[1] + 1))
    for _ in range(2):
        with pytest.raises(OtherPayment, match="older than what was paid"):
            run(funded, CsvRail(file), batch_id)
    payouts.reconcile(funded, CsvRail(file), batch_id, at_us=AT)
    assert balances(funded, "available") == amounts
    assert len(rows(file)) == 1


def test_a_line_that_was_paid_and_lost_is_not_paid_again(funded: Ledger, file: Path) -> None:
    amounts, batch_id = balances(funded, "available"), planned(funded)
    CsvRail(file).submit(lost_line(batch_id, amounts[1]))
    run(funded, CsvRail(file), batch_id)
    assert_each_paid_once(funded, file, batch_id, amounts)


class Says:
    """Answers as told for one friend, whatever the file rail under it did (or was not asked to do)."""

    def __init__(self, file: Path, outcome: Outcome, *, pays: bool) -> None:
        self.rail, self.outcome, self.pays = CsvRail(file), outcome, pays
        self.name, self.prepare = "csv", self.rail.prepare

    def submit(self, payment: Payment) -> Answer:
        if payment.friend_id != FRIENDS[1]:
            return self.rail.submit(payment)
        if self.pays:
            self.rail.submit(payment)
        return Answer(self.outcome, "told")

    def look_up(self, key: str) -> Answer:
        return self.rail.look_up(key)


def states(results: list[payouts.LineResult]) -> list[str]:
    return [r.state for r in results]


@pytest.mark.parametrize("pays", [True, False])
def test_unknown_stays_in_flight_until_the_rail_has_been_asked(
    funded: Ledger, file: Path, pays: bool
) -> None:
    amounts = balances(funded, "available")
    batch_id = planned(funded)
    rail = Says(file, Outcome.UNKNOWN, pays=pays)
    for _ in range(2):  # never tried again by itself
        assert states(run(funded, rail, batch_id)) == ["confirmed", "unknown", "confirmed"]
    assert balances(funded, "in_flight") == [0, amounts[1], 0]
    asked = payouts.reconcile(funded, rail, batch_id, at_us=AT)
    assert states(asked)[1] == ("confirmed" if pays else "attempted")
    run(funded, CsvRail(file), batch_id)
    assert_each_paid_once(funded, file, batch_id, amounts)


def test_failed_money_is_available_again_and_paid_by_the_next_batch(funded: Ledger, file: Path) -> None:
    amounts = balances(funded, "available")
    first = planned(funded)
    run(funded, Says(file, Outcome.FAILED, pays=False), first)
    assert balances(funded, "available") == [0, amounts[1], 0]
    assert states(payouts.reconcile(funded, CsvRail(file), first, at_us=AT))[1] == "failed"
    second = planned(funded)
    run(funded, CsvRail(file), second)
    assert_each_paid_once(funded, file, second, amounts)


def test_a_rail_that_said_failed_and_paid_is_found_by_reconciling(funded: Ledger, file: Path) -> None:
    amounts = balances(funded, "available")
    batch_id = planned(funded)
    rail = Says(file, Outcome.FAILED, pays=True)
    assert states(run(funded, rail, batch_id))[1] == "failed"
    assert states(payouts.reconcile(funded, rail, batch_id, at_us=AT, dry_run=True))[1] == "confirmed"
    assert balances(funded, "available") == [0, amounts[1], 0]
    assert states(payouts.reconcile(funded, rail, batch_id, at_us=AT))[1] == "confirmed"
    assert payouts.plan(funded, rail="csv", threshold_micro=1, destinations=COMMITMENTS, at_us=AT).lines == ()
    assert_each_paid_once(funded, file, batch_id, amounts)


def test_money_that_a_lying_rail_made_leave_twice_is_reported(funded: Ledger, tmp_path: Path) -> None:
    first = planned(funded)
    rail = Says(tmp_path / "1.csv", Outcome.FAILED, pays=True)
    run(funded, rail, first)
    run(funded, CsvRail(tmp_path / "2.csv"), planned(funded))
    before = dict(funded.load(Book, BOOK_ID).accounts)
    assert states(payouts.reconcile(funded, rail, first, at_us=AT))[1] == payouts.OVERPAID
    assert funded.load(Book, BOOK_ID).accounts == before


# --- planning


def test_what_is_below_the_threshold_or_without_destination_waits(funded: Ledger) -> None:
    amounts = balances(funded, "available")
    some = {FRIENDS[0]: COMMITMENTS[FRIENDS[0]]}
    plan = payouts.plan(funded, rail="csv", threshold_micro=amounts[0], destinations=some, at_us=AT)
    assert [(x.friend_id, x.amount_micro) for x in plan.lines] == [(FRIENDS[0], amounts[0])]
    assert [(w.friend_id, w.amount_micro, w.reason) for w in plan.waiting] == [
        (FRIENDS[1], amounts[1], "no_destination" if amounts[1] >= amounts[0] else "below_threshold"),
        (FRIENDS[2], amounts[2], "no_destination" if amounts[2] >= amounts[0] else "below_threshold"),
    ]
    assert balances(funded, "available") == amounts  # nothing is reserved by a plan


def test_whatever_is_not_planned_is_said_to_wait(funded: Ledger) -> None:
    """Less than the rail's smallest amount, or more than any day's limit, which no run would ever pay."""
    amounts = balances(funded, "available")
    arguments: dict[str, Any] = {"threshold_micro": 1, "destinations": COMMITMENTS, "at_us": AT}
    plan = payouts.plan(funded, rail="csv", quantum_micro=max(amounts) + 1, **arguments)
    assert (plan.lines, [w.reason for w in plan.waiting]) == ((), ["below_smallest"] * 3)
    assert sorted(w.amount_micro for w in plan.waiting) == sorted(amounts)
    crew.change_settings(funded, {"payout_day_max_micro": min(amounts)}, at_us=AT)
    plan = payouts.plan(funded, rail="csv", **arguments)
    fits = sum(amount == min(amounts) for amount in amounts)
    assert (len(plan.lines), [w.reason for w in plan.waiting]) == (fits, ["day_limit"] * (3 - fits))


def test_limits_are_what_may_be_paid_and_one_micro_unit_less_is_less(funded: Ledger, file: Path) -> None:
    """Of a payout when it is planned, of a day when it is run, to the micro-unit."""
    a, b, c = balances(funded, "available")
    arguments: dict[str, Any] = {
        "rail": "csv",
        "threshold_micro": 1,
        "destinations": COMMITMENTS,
        "at_us": AT,
    }
    for limit, parts in ((a + b + c, [3]), (a + b + c - 1, [2, 1]), (a + b, [2, 1]), (a + b - 1, [1, 2])):
        crew.change_settings(funded, {"payout_batch_max_micro": limit}, at_us=AT)
        plan = payouts.plan(funded, **arguments, dry_run=True)
        assert [len(p.lines) for p in (plan, *plan.further)] == parts
    crew.change_settings(
        funded, {"payout_batch_max_micro": 10**12, "payout_day_max_micro": a + b + c}, at_us=AT
    )
    batch_id = planned(funded)
    for less in (c, 1, 0):
        crew.change_settings(funded, {"payout_day_max_micro": a + b + c - less}, at_us=AT)
        assert [r.action for r in run(funded, CsvRail(file), batch_id)][2] == ("limit" if less else "submit")
    assert_each_paid_once(funded, file, batch_id, [a, b, c])


def test_a_line_that_another_run_finishes_between_two_looks_is_looked_at_again(
    funded: Ledger, file: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The payout is loaded before it, the book after it: decided on both, it would be an error."""
    amounts, batch_id = balances(funded, "available"), planned(funded)
    run(funded, Says(file, Outcome.UNKNOWN, pays=True), batch_id)
    look, others = funded.load_or_new, [Ledger(database_url)]

    def overtaken(cls: Any, aggregate_id: UUID) -> Any:
        while others:
            other = others.pop()
            assert states(payouts.reconcile(other, CsvRail(file), batch_id, at_us=AT))[1] == "confirmed"
            other.close()
        return look(cls, aggregate_id)

    monkeypatch.setattr(funded, "load_or_new", overtaken)
    assert states(payouts.reconcile(funded, CsvRail(file), batch_id, at_us=AT)) == ["confirmed"] * 3
    monkeypatch.undo()
    assert_each_paid_once(funded, file, batch_id, amounts)


def test_what_failed_leaves_its_room_in_the_limit_of_the_day(funded: Ledger, tmp_path: Path) -> None:
    a, b, c = balances(funded, "available")
    crew.change_settings(funded, {"payout_day_max_micro": a + b + c}, at_us=AT)
    run(funded, Says(tmp_path / "1.csv", Outcome.FAILED, pays=False), planned(funded))
    assert funded.load(Book, BOOK_ID).paid_out_on(AT) == a + c
    run(funded, CsvRail(tmp_path / "2.csv"), planned(funded))
    assert balances(funded, "paid") == [a, b, c]


def test_a_line_is_reserved_once_whatever_is_available(funded: Ledger) -> None:
    book, batch_id = funded.load(Book, BOOK_ID), planned(funded)
    arguments: dict[str, Any] = {"friend_id": FRIENDS[0], "amount_micro": 1, "at_us": AT}
    book.reserve_payout_line(batch_id, 1, **arguments)
    with pytest.raises(DomainError, match="reserved already"):
        book.reserve_payout_line(batch_id, 1, **arguments)
    assert book.balance(f"friend:{FRIENDS[0]}:in_flight") == book.paid_out_on(AT) == 1


class Mute(CsvRail):
    def look_up(self, key: str) -> Answer:
        raise AssertionError(f"asked about {key}")


def test_what_is_confirmed_is_not_asked_about(funded: Ledger, file: Path) -> None:
    batch_id = planned(funded)
    run(funded, CsvRail(file), batch_id)
    assert {r.action for r in payouts.reconcile(funded, Mute(file), batch_id, at_us=AT)} == {"none"}
    assert {r.action for r in run(funded, Mute(file), batch_id)} == {"none"}


@pytest.mark.parametrize("name", ["x" * 101, "a\nb", "\udcff", "Zoë"])
def test_what_the_log_cannot_forget_is_short_and_plain(funded: Ledger, name: str) -> None:
    arguments: dict[str, Any] = {
        "rail": "csv",
        "threshold_micro": 1,
        "destinations": COMMITMENTS,
        "at_us": AT,
    }
    with pytest.raises(DomainError, match="printable ASCII"):
        payouts.plan(funded, operator=name, **arguments)
    plan = payouts.plan(funded, **arguments)
    assert plan.batch_id is not None
    with pytest.raises(DomainError, match="printable ASCII"):
        payouts.approve(funded, plan.batch_id, operator=name, at_us=AT)
    with pytest.raises(DomainError, match="printable ASCII"):
        payouts.cancel(funded, plan.batch_id, reason=name, at_us=AT)


def test_a_blank_or_a_capital_makes_no_second_operator(funded: Ledger) -> None:
    crew.change_settings(funded, {"payout_second_above_micro": 1}, at_us=AT)
    plan = payouts.plan(
        funded, rail="csv", threshold_micro=1, destinations=COMMITMENTS, at_us=AT, operator="ada"
    )
    assert plan.batch_id is not None
    for name in ("ada", "ada ", "Ada"):
        with pytest.raises(DomainError, match="somebody else"):
            payouts.approve(funded, plan.batch_id, operator=name, at_us=AT)
    payouts.approve(funded, plan.batch_id, operator="bob", at_us=AT)


def test_nobody_is_the_second_operator_of_a_plan_that_nobody_is_known_to_have_made(funded: Ledger) -> None:
    total = sum(balances(funded, "available"))
    crew.change_settings(funded, {"payout_second_above_micro": total - 1}, at_us=AT)
    plan = payouts.plan(funded, rail="csv", threshold_micro=1, destinations=COMMITMENTS, at_us=AT)
    assert plan.batch_id is not None
    with pytest.raises(DomainError, match="nobody known planned this payout"):
        payouts.approve(funded, plan.batch_id, operator="ada", at_us=AT)
    crew.change_settings(funded, {"payout_second_above_micro": total}, at_us=AT)  # not more than that
    assert payouts.approve(funded, plan.batch_id, operator="ada", at_us=AT).state == "approved"


def test_a_plan_is_refused_while_an_open_batch_would_pay_the_same_friend(funded: Ledger) -> None:
    batch_id = planned(funded)
    with pytest.raises(DomainError, match="run or cancel it first"):
        planned(funded)
    payouts.cancel(funded, batch_id, reason="wrong threshold", at_us=AT)
    assert planned(funded) == payout_id(2)
    assert [p.state for p in payouts.batches(funded)] == ["cancelled", "approved"]


def test_a_line_that_is_stuck_in_flight_does_not_hold_up_new_earnings(funded: Ledger, file: Path) -> None:
    run(funded, Says(file, Outcome.UNKNOWN, pays=False), planned(funded))
    earn(funded, 1)
    assert len(funded.load(Payout, planned(funded)).lines) == 3


def test_plans_made_at_once_make_one_batch(funded: Ledger, database_url: str) -> None:
    def try_plan(ledger: Ledger) -> UUID | None:
        try:
            return planned(ledger)
        except DomainError:
            return None

    ledgers = [Ledger(database_url) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(try_plan, ledgers))
    finally:
        for other in ledgers:
            other.close()
    assert sorted(m is None for m in made) == [False, True, True, True]
    assert len(payouts.batches(funded)) == 1


def test_an_unapproved_a_cancelled_or_another_rails_batch_is_not_run(funded: Ledger, file: Path) -> None:
    plan = payouts.plan(funded, rail="csv", threshold_micro=1, destinations=COMMITMENTS, at_us=AT)
    assert plan.batch_id is not None
    for dry_run in (True, False):
        with pytest.raises(
            DomainError, match="only an approved one"
        ):  # before the rail is asked for anything
            payouts.run(
                funded, Poor(file), plan.batch_id, destinations=DESTINATIONS, at_us=AT, dry_run=dry_run
            )
    other = CsvRail(file)
    with pytest.raises(DomainError, match="planned for csv"):
        payouts.run(funded, Named(other, "evm"), plan.batch_id, destinations=DESTINATIONS, at_us=AT)
    payouts.cancel(funded, plan.batch_id, reason="no", at_us=AT)
    with pytest.raises(DomainError, match="cancelled"):
        payouts.approve(funded, plan.batch_id, operator="op", at_us=AT)
    assert not file.exists()


def test_what_is_not_approved_is_not_attempted_whoever_asks(funded: Ledger) -> None:
    plan = payouts.plan(funded, rail="csv", threshold_micro=1, destinations=COMMITMENTS, at_us=AT)
    assert plan.batch_id is not None
    payout = funded.load(Payout, plan.batch_id)
    with pytest.raises(DomainError, match="only an approved payout"):
        payout.attempt(1, at_us=AT)
    with pytest.raises(DomainError, match="only an approved payout"):
        payout.resolve(1, Answer(Outcome.FAILED, "no"), at_us=AT)


def test_a_payout_has_as_many_lines_as_fit_into_its_event() -> None:
    def lines(count: int) -> list[PayoutLine]:
        return [PayoutLine(n, UUID(int=n), 1, bytes(32)) for n in range(1, count + 1)]

    Payout(payout_id(1)).plan(rail="csv", lines=lines(MAX_LINES), at_us=AT)
    for wrong in (lines(MAX_LINES + 1), [], lines(3)[1:]):
        with pytest.raises(DomainError, match="1 to 500 lines"):
            Payout(payout_id(1)).plan(rail="csv", lines=wrong, at_us=AT)


class Named:
    def __init__(self, rail: CsvRail, name: str) -> None:
        self.prepare, self.submit, self.look_up, self.name = rail.prepare, rail.submit, rail.look_up, name


def test_a_payout_that_has_begun_cannot_be_cancelled(funded: Ledger, file: Path) -> None:
    batch_id = planned(funded)
    run(funded, Says(file, Outcome.UNKNOWN, pays=False), batch_id)
    with pytest.raises(DomainError, match="has begun"):
        payouts.cancel(funded, batch_id, reason="late", at_us=AT)


def test_a_destination_changed_after_planning_is_not_paid(funded: Ledger, file: Path) -> None:
    amounts = balances(funded, "available")
    batch_id = planned(funded)
    moved = {**DESTINATIONS, FRIENDS[1]: Destination("elsewhere", bytes(16))}
    shown = payouts.run(funded, CsvRail(file), batch_id, destinations=moved, at_us=AT, dry_run=True)
    assert [r.action for r in shown] == ["submit", "fail", "submit"]
    results = payouts.run(funded, CsvRail(file), batch_id, destinations=moved, at_us=AT)
    assert states(results) == ["confirmed", "failed", "confirmed"]
    assert balances(funded, "available") == [0, amounts[1], 0]
    assert len(rows(file)) == 2


def test_a_dry_run_changes_nothing(funded: Ledger, file: Path) -> None:
    def size_after(action: Any) -> int:
        action()
        return funded.size()

    before = funded.size()
    arguments: dict[str, Any] = {"rail": "csv", "threshold_micro": 1, "destinations": COMMITMENTS}
    dry = payouts.plan(funded, **arguments, at_us=AT, dry_run=True)
    assert (dry.batch_id, len(dry.lines), funded.size()) == (None, 3, before)
    plan = payouts.plan(funded, **arguments, at_us=AT)
    assert plan.lines == dry.lines
    batch_id = plan.batch_id
    assert batch_id is not None
    before = funded.size()
    options: dict[str, Any] = {"at_us": AT, "dry_run": True}
    assert size_after(lambda: payouts.approve(funded, batch_id, operator="op", **options)) == before
    assert size_after(lambda: payouts.cancel(funded, batch_id, reason="x", **options)) == before
    payouts.approve(funded, batch_id, operator="op", at_us=AT)
    before = funded.size()
    shown = payouts.run(funded, CsvRail(file), batch_id, destinations=DESTINATIONS, **options)
    assert [(r.state, r.action) for r in shown] == [("planned", "submit")] * 3
    assert size_after(lambda: payouts.reconcile(funded, CsvRail(file), batch_id, **options)) == before
    assert not file.exists()


def test_a_line_for_which_too_little_is_left_fails_and_the_others_are_paid(
    funded: Ledger, file: Path
) -> None:
    batch_id = planned(funded)
    book = funded.load(Book, BOOK_ID)
    source = f"friend:{FRIENDS[0]}:available"
    book.adjust(source=source, target="fees", amount_micro=1, reference="a", reason="x", at_us=AT)
    funded.save(book)
    results = run(funded, CsvRail(file), batch_id)
    assert [r.state for r in results] == ["failed", "confirmed", "confirmed"]
    assert results[0].reference == "less available than planned"
