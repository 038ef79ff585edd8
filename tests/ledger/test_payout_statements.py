"""Every command on money, killed before and after each SQL statement that changes something, and repeated by another
process: it is done exactly once. (To die at a statement that only reads is to die after the one before it.)"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from crew_life import LOG, Life, make_id
from forged_log import ORIGIN
from test_payout import AT, COMMITMENTS, DESTINATIONS, FRIENDS, STREAM, Killed, earn, rows

from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.application import Ledger
from ledger.audit import audit
from ledger.events import EpochSettled
from ledger.ids import BOOK_ID
from ledger.money import FEES, budget_account
from ledger.rails.csv_file import CsvRail
from ledger.rails.returned import Returns
from ledger.services import budgets, crew, destinations, disputes, payouts, returns, settle
from ledger.store.calls import Calls
from ledger.tlog.publisher import Publisher

Action = Callable[[Ledger], object]


@pytest.fixture
def everywhere(
    database_url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[int], Action], Callable[[int], None]], int]:
    """(work, check): `work(n)` gives the n-th piece of work, which dies at its n-th dangerous place; then it is done
    again, and `check(n)` looks. Until one piece of work lives through: returns how many there were."""
    execute, call = psycopg.Cursor.execute, Calls.call

    def run(work: Callable[[int], Action], check: Callable[[int], None]) -> int:
        n, survived = 0, False
        while not survived:
            n += 1
            left = n

            def step() -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed("here")

            def deadly_call(calls: Calls, name: bytes, params: Sequence[bytes]) -> int:
                if threading.current_thread() is not threading.main_thread():
                    return call(calls, name, params)
                step()
                done = call(calls, name, params)
                step()
                return done

            def deadly(cursor: psycopg.Cursor[Any], query: Any, *arguments: Any, **options: Any) -> Any:
                text = query.decode() if isinstance(query, bytes) else query
                text = text if isinstance(text, str) else text.as_string(cursor)
                if (
                    text.startswith("SELECT ") or threading.current_thread() is not threading.main_thread()
                ):  # the pool's own
                    return execute(cursor, query, *arguments, **options)
                step()
                done = execute(cursor, query, *arguments, **options)
                step()
                return done

            action = work(n)
            dying = Ledger(database_url)
            with monkeypatch.context() as patched, suppress(Killed):
                patched.setattr(psycopg.Cursor, "execute", deadly)
                patched.setattr(Calls, "call", deadly_call)
                action(dying)
                survived = True
            dying.close()
            action(ledger)
            check(n)
        return n

    return run


Everywhere = Callable[[Callable[[int], Action], Callable[[int], None]], int]


@pytest.fixture
def founded(ledger: Ledger) -> Ledger:
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    return ledger


def balance(ledger: Ledger, account: str) -> int:
    return ledger.load(Book, BOOK_ID).balance(account)


def test_deposits_and_withdrawals(founded: Ledger, everywhere: Everywhere) -> None:
    def work(n: int) -> Action:
        def action(ledger: Ledger) -> None:
            budgets.deposit(ledger, STREAM, amount_micro=1_000, reference=f"in {n}", at_us=AT)
            budgets.withdraw(ledger, STREAM, amount_micro=1, reference=f"out {n}", at_us=AT)

        return action

    def check(n: int) -> None:
        assert balance(founded, budget_account(STREAM)) == 999 * n

    assert everywhere(work, check) == 5  # each of 2 saves, before and after it, and once to the end


def test_tariffs_and_adjustments(founded: Ledger, everywhere: Everywhere) -> None:
    budgets.deposit(founded, STREAM, amount_micro=10**9, reference="d", at_us=AT)

    def work(n: int) -> Action:
        def action(ledger: Ledger) -> None:
            budgets.set_tariff(ledger, STREAM, rate_micro_per_gb=n, at_us=AT)
            disputes.adjust(
                ledger,
                source=budget_account(STREAM),
                target=FEES,
                amount_micro=10,
                reference=f"a {n}",
                reason="test",
                rests_on=(0,),
                at_us=AT,
            )

        return action

    def check(n: int) -> None:
        assert balance(founded, FEES) == 10 * n
        assert founded.load(Book, BOOK_ID).tariff_version(STREAM) == 1 + n

    assert everywhere(work, check) == 5


def test_settlements_holds_and_disputes(ledger: Ledger, everywhere: Everywhere, tmp_path: Path) -> None:
    """Each hour earns the same; one line of each is disputed and goes back to the budget."""
    life = Life(ledger)
    life.found()
    crew.change_settings(ledger, {"hold_s": 0}, at_us=life.tick())
    for name in ("anna", "ben"):
        life.join(name)
    life.go_live(4)

    def work(n: int) -> Action:
        for node in ("anna", "ben"):
            ticket = life.ticket(node, "vera")
            assert life.batch(node, life.receipt(ticket, "vera", [0, 1, 2])) == ["accepted"]
        life.tick(3_600)

        def action(ledger: Ledger) -> None:
            settle.settle_due_epochs(ledger, at_us=life.now_us)
            settled = [r for r in ledger.read(0, 50_000) if isinstance(r.event, EpochSettled)]
            with suppress(DomainError):  # it was done before
                disputes.open_dispute(ledger, settled[-1].position, 0, reason="test", at_us=life.tick())
            newest = len(disputes.disputes(ledger))
            with suppress(DomainError):
                disputes.decide_dispute(ledger, newest, uphold=True, reason="test", at_us=life.tick())
            settle.release_due_holds(ledger, hold_s=0, at_us=life.now_us)

        return action

    hourly: list[int] = []

    def check(n: int) -> None:
        book = ledger.load(Book, BOOK_ID)
        assert len(book.disputes) == n
        available = {f: book.balance(f"friend:{make_id(f'friend {f}')}:available") for f in ("anna", "ben")}
        pending = {f: book.balance(f"friend:{make_id(f'friend {f}')}:pending") for f in ("anna", "ben")}
        assert set(pending.values()) == {0}
        hourly.append(sum(available.values()))
        assert hourly[-1] == hourly[0] * n > 0

    assert everywhere(work, check) == 9  # a settlement, a dispute, its decision, a release
    Publisher(ledger, tmp_path, LOG, ORIGIN).publish(at_us=life.now_us)
    report = audit(tmp_path, jobs=1)
    assert report.problem is None
    book = ledger.load(Book, BOOK_ID)
    assert report.balances == {a: m for a, m in sorted(book.accounts.items()) if m}


def test_payouts(founded: Ledger, everywhere: Everywhere, tmp_path: Path) -> None:
    """Plan, approve, run and reconcile: who comes next goes on with the payout that is open."""
    earned = [0]

    def work(n: int) -> Action:
        earn(founded, n)
        book = founded.load(Book, BOOK_ID)
        earned.append(earned[-1] + sum(book.available().values()))

        def action(ledger: Ledger) -> None:
            with suppress(DomainError):  # planned already
                payouts.plan(ledger, rail="csv", threshold_micro=1, destinations=COMMITMENTS, at_us=AT)
            batch_id = payouts.batches(ledger)[-1].id
            rail = CsvRail(tmp_path / f"{batch_id}.csv")
            payouts.approve(ledger, batch_id, operator="op", at_us=AT)
            payouts.run(ledger, rail, batch_id, destinations=DESTINATIONS, at_us=AT)
            payouts.reconcile(ledger, rail, batch_id, at_us=AT)

        return action

    def check(n: int) -> None:
        paid = sum(balance(founded, f"friend:{f}:paid") for f in FRIENDS)
        written = [int(row["amount_micro"]) for file in tmp_path.glob("*.csv") for row in rows(file)]
        assert paid == sum(written) == earned[n]
        assert len(payouts.batches(founded)) == n

    assert everywhere(work, check) == 17  # a plan, its approval, and two saves for each of three lines


def test_returns(founded: Ledger, everywhere: Everywhere, tmp_path: Path) -> None:
    """What is killed between the book and the file is in both when it is said again."""
    earn(founded)
    payouts.plan(founded, rail="csv", threshold_micro=1, destinations=COMMITMENTS, at_us=AT)
    batch_id = payouts.batches(founded)[0].id
    payouts.approve(founded, batch_id, operator="op", at_us=AT)
    rail, memory = CsvRail(tmp_path / f"{batch_id}.csv"), Returns(tmp_path)
    payouts.run(founded, rail, batch_id, destinations=DESTINATIONS, at_us=AT)

    def work(n: int) -> Action:
        def action(ledger: Ledger) -> None:
            returns.return_line(
                ledger,
                batch_id,
                1,
                amount_micro=7,
                reference=f"back {n}",
                reason="test",
                at_us=AT,
                memory=memory,
            )

        return action

    def check(n: int) -> None:
        assert balance(founded, f"friend:{FRIENDS[0]}:available") == 7 * n
        assert [(r.reference, r.amount_micro) for r in memory.all()] == [
            (f"back {i}", 7) for i in range(1, n + 1)
        ]

    assert everywhere(work, check) == 3


def test_cancelling(founded: Ledger, everywhere: Everywhere) -> None:
    earn(founded)
    available = founded.load(Book, BOOK_ID).available()

    def work(n: int) -> Action:
        def action(ledger: Ledger) -> None:
            if len(payouts.batches(ledger)) < n:
                payouts.plan(ledger, rail="csv", threshold_micro=1, destinations=COMMITMENTS, at_us=AT)
            payouts.cancel(ledger, payouts.batches(ledger)[-1].id, reason="test", at_us=AT)

        return action

    def check(n: int) -> None:
        assert [p.state for p in payouts.batches(founded)] == ["cancelled"] * n
        assert founded.load(Book, BOOK_ID).available() == available

    assert everywhere(work, check) == 5


def test_a_destination_is_set_whole_or_not_at_all(
    ledger: Ledger, everywhere: Everywhere, database_url: str
) -> None:
    friend = UUID(int=77)

    def work(n: int) -> Action:
        def action(_: Ledger) -> None:
            with psycopg.connect(database_url, options="-c search_path=crew_main") as connection:
                destinations.set_destination(connection, friend, f"account {n}", salt=bytes([n]) * 16)

        return action

    def check(n: int) -> None:
        with psycopg.connect(database_url, options="-c search_path=crew_main") as connection:
            found = destinations.load_destinations(connection)
        assert (found[friend].text, found[friend].salt) == (f"account {n}", bytes([n]) * 16)

    assert everywhere(work, check) >= 3
