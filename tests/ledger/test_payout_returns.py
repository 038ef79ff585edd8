"""Money that was paid and came back: booked once, never more than was paid, and not sent to the same place again."""

import csv
import io
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from log_ledger import LogLedger
from test_pain001 import IBANS
from test_payout import AT, COMMITMENTS, DESTINATIONS, FRIENDS, balances, earn, run
from test_payout_command import DESTINATION, FRIEND, Shell, earned, shell

from ledger.aggregates.base import DomainError
from ledger.aggregates.book import DAY_US, Book
from ledger.aggregates.payout import payout_id
from ledger.application import Ledger
from ledger.ids import BOOK_ID
from ledger.money import FEES, friend_account
from ledger.rails.csv_file import CsvRail
from ledger.rails.given import given
from ledger.rails.pain001_file import end_to_end_id
from ledger.rails.returned import NAME, Return, Returns
from ledger.services import budgets, crew, payouts, returns
from ledger.services.destinations import Destination
from ledger.services.disputes import adjust

__all__ = ["earned", "shell"]  # fixtures


@pytest.fixture
def paid(ledger: Ledger, tmp_path: Path) -> Ledger:
    """Each of three friends was paid all they had by line 1, 2, 3 of payout 1."""
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    earn(ledger)
    pay(ledger, tmp_path)
    return ledger


def pay(ledger: Any, folder: Path, where: dict[UUID, Destination] = DESTINATIONS) -> UUID | None:
    plan = payouts.plan(
        ledger,
        rail="csv",
        threshold_micro=1,
        destinations={f: d.commitment for f, d in where.items()},
        at_us=AT,
        remembered=Returns(folder).all(),
    )
    if plan.batch_id is not None:
        payouts.approve(ledger, plan.batch_id, operator="op", at_us=AT)
        rail = CsvRail(folder / f"{plan.batch_id}.csv")
        payouts.run(
            ledger, rail, plan.batch_id, destinations=where, at_us=AT, given=given(folder), dry_run=False
        )
    return plan.batch_id


def give_back(
    ledger: Any, line: int, amount: int | None = None, reference: str = "r1", **more: Any
) -> returns.Returned:
    options: dict[str, Any] = {"batch_id": payout_id(1), "reason": "account closed", "at_us": AT, **more}
    return returns.return_line(ledger, line=line, amount_micro=amount, reference=reference, **options)


def test_what_came_back_is_available_again(paid: Ledger) -> None:
    before = balances(paid, "paid")
    made = give_back(paid, 2)
    assert (made.friend_id, made.amount_micro, made.left_micro, made.booked) == (
        FRIENDS[1],
        before[1],
        0,
        True,
    )
    assert balances(paid, "paid") == [before[0], 0, before[2]]
    assert balances(paid, "available") == [0, before[1], 0]
    assert paid.load(Book, BOOK_ID).adds_up()


def test_a_bank_that_keeps_a_fee_gives_back_less_and_the_rest_stays_paid(paid: Ledger) -> None:
    before = balances(paid, "paid")
    made = give_back(paid, 1, before[0] - 500_000)
    assert made.left_micro == balances(paid, "paid")[0] == 500_000
    # The operator may spare the friend the fee, and the bank may give it back later.
    adjust(
        paid,
        source=friend_account(FRIENDS[0], "available"),
        target=FEES,
        amount_micro=1,
        reference="a",
        reason="x",
        at_us=AT,
    )
    assert give_back(paid, 1, reference="r2").amount_micro == 500_000
    assert balances(paid, "paid")[0] == 0


def test_never_more_comes_back_than_was_paid(paid: Ledger) -> None:
    whole = balances(paid, "paid")[0]
    for amount in (whole + 1, 10**15):
        with pytest.raises(DomainError, match="more came back"):
            give_back(paid, 1, amount)
    for amount in (0, -1):
        with pytest.raises(DomainError, match="whole number"):
            give_back(paid, 1, amount)
    give_back(paid, 1, whole - 1)
    with pytest.raises(DomainError, match=r"0\.000001 is left"):
        give_back(paid, 1, 2, "r2")
    give_back(paid, 1, 1, "r2")
    for amount in (None, 1):
        with pytest.raises(DomainError, match="come back already"):
            give_back(paid, 1, amount, "r3")
    assert balances(paid, "available") == [whole, 0, 0]


def test_the_same_return_is_booked_once(paid: Ledger) -> None:
    budgets.deposit(paid, UUID(int=1), amount_micro=5, reference="deposit", at_us=AT)
    assert give_back(paid, 1, 1_000).booked
    size = paid.size()
    for amount in (1_000, None):
        again = give_back(paid, 1, amount)
        assert (again.booked, again.amount_micro) == (False, 1_000)
    for line, amount, reference in ((1, 1_001, "r1"), (2, 1_000, "r1"), (2, None, "r1"), (1, 5, "deposit")):
        with pytest.raises(DomainError, match="another movement"):
            give_back(paid, line, amount, reference)
    with pytest.raises(DomainError, match="another movement"):
        budgets.deposit(paid, UUID(int=1), amount_micro=1_000, reference="r1", at_us=AT)
    assert paid.size() == size


def test_a_dry_run_and_what_is_not_allowed_change_nothing(paid: Ledger, tmp_path: Path) -> None:
    size = paid.size()
    memory = Returns(tmp_path)
    assert give_back(paid, 1, memory=memory, dry_run=True).booked
    for change in ({"reason": ""}, {"reason": "ü"}, {"reason": "x" * 101}, {"reference": "y" * 101}):
        with pytest.raises(DomainError):
            give_back(paid, 1, memory=memory, **change)
    for batch, line in ((1, 4), (2, 1)):
        with pytest.raises(DomainError, match="was not paid"):
            give_back(paid, line, batch_id=payout_id(batch), memory=memory)
    assert (paid.size(), memory.all()) == (size, [])


def test_only_what_is_paid_comes_back(ledger: Ledger, tmp_path: Path) -> None:
    """A line that is planned, in flight or has failed has nothing to give back."""
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    earn(ledger)
    plan = payouts.plan(ledger, rail="csv", threshold_micro=1, destinations=COMMITMENTS, at_us=AT)
    assert plan.batch_id is not None
    book = ledger.load(Book, BOOK_ID)
    book.reserve_payout_line(plan.batch_id, 1, friend_id=FRIENDS[0], amount_micro=5, at_us=AT)
    book.reserve_payout_line(plan.batch_id, 2, friend_id=FRIENDS[1], amount_micro=5, at_us=AT)
    book.fail_payout_line(plan.batch_id, 2, at_us=AT)
    ledger.save(book)
    for line in (1, 2, 3):
        with pytest.raises(DomainError, match="was not paid"):
            give_back(ledger, line)


def test_the_limit_of_a_day_counts_what_left_on_it(paid: Ledger) -> None:
    given_micro = paid.load(Book, BOOK_ID).paid_out_on(AT)
    give_back(paid, 1, at_us=AT + 3 * DAY_US)
    assert paid.load(Book, BOOK_ID).paid_out_on(AT) == given_micro
    assert paid.load(Book, BOOK_ID).paid_out_on(AT + 3 * DAY_US) == 0


# --- where it goes next


def test_it_is_not_paid_to_the_same_place_again(paid: Ledger, tmp_path: Path) -> None:
    whole = balances(paid, "paid")[1]
    give_back(paid, 2)
    plan = payouts.plan(paid, rail="csv", threshold_micro=1, destinations=COMMITMENTS, at_us=AT)
    assert (plan.batch_id, plan.lines) == (None, ())
    assert [(w.friend_id, w.amount_micro, w.reason) for w in plan.waiting] == [
        (FRIENDS[1], whole, "came_back")
    ]
    # The same text, said again, is an answer too: the bank was wrong.
    text = DESTINATIONS[FRIENDS[1]].text
    assert pay(paid, tmp_path, {**DESTINATIONS, FRIENDS[1]: Destination(text, b"x" * 16)}) == payout_id(2)
    assert balances(paid, "paid")[1] == whole


# --- a database from an older backup


def lived(folder: Path) -> tuple[LogLedger, int]:
    """Paid by payout 1, a return of line 2, its money paid elsewhere by payout 2. The size before the return."""
    ledger: Any = LogLedger()
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    earn(ledger)
    pay(ledger, folder)
    size = ledger.size()
    assert give_back(ledger, 2, 3_000_000, memory=Returns(folder)).booked
    assert pay(ledger, folder, elsewhere()) == payout_id(2)
    return ledger, size


def elsewhere() -> dict[UUID, Destination]:
    return {**DESTINATIONS, FRIENDS[1]: Destination("elsewhere", b"x" * 16)}


def test_a_restored_database_plans_nothing_until_it_has_the_return_again(tmp_path: Path) -> None:
    ledger, size = lived(tmp_path)
    whole = list(ledger.log)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ledger.cut(size)
    with pytest.raises(returns.LostReturns, match="r1"):
        pay(ledger, tmp_path, elsewhere())
    assert ledger.size() == size
    for dry_run in (True, False):
        (made,) = returns.book_forgotten(
            ledger, payout_id(1), Returns(tmp_path).all(), at_us=AT, dry_run=dry_run
        )
        assert (made.line, made.amount_micro, made.left_micro) == (2, 3_000_000, 166_667)
    assert returns.book_forgotten(ledger, payout_id(1), Returns(tmp_path).all(), at_us=AT) == []
    pay(ledger, tmp_path, elsewhere())
    assert ledger.log == whole  # the very same events
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_return_that_only_the_files_know_is_not_booked_a_second_time_by_hand(tmp_path: Path) -> None:
    ledger, size = lived(tmp_path)
    ledger.cut(size)
    memory = Returns(tmp_path)
    with pytest.raises(returns.LostReturns):
        give_back(ledger, 2, 100_000, "another name for it", memory=memory)
    with pytest.raises(DomainError, match="in the payment files"):
        give_back(ledger, 2, 1, memory=memory)
    with pytest.raises(DomainError, match="in the payment files"):
        give_back(ledger, 1, memory=memory)
    made = give_back(ledger, 2, memory=memory)  # of all that is left, but the files know how much it was
    assert (made.booked, made.amount_micro) == (True, 3_000_000)
    assert give_back(ledger, 1, reference="another line", memory=memory).booked


def test_a_return_that_was_booked_under_another_name_is_not_missed_for_ever(
    paid: Ledger, tmp_path: Path
) -> None:
    """The files remember it, and there is no room for it in what is left of the line."""
    give_back(paid, 2, 3_000_000, "another name for it")
    memory = Returns(tmp_path)
    memory.remember(Return(payout_id(1), 2, 3_000_000, "r1", "account closed"))
    assert returns.book_forgotten(paid, payout_id(1), memory.all(), at_us=AT) == []
    assert pay(paid, tmp_path, elsewhere()) == payout_id(2)
    memory.remember(Return(payout_id(1), 2, 166_667, "r2", "the rest"))  # there is room for this
    with pytest.raises(returns.LostReturns, match="r2"):
        pay(paid, tmp_path, elsewhere())


def test_a_return_that_no_file_knows_is_written_when_it_is_said_again(tmp_path: Path) -> None:
    """The process died between the book and the file."""
    ledger, size = lived(tmp_path)
    (tmp_path / NAME).unlink()
    ledger.cut(size)
    give_back(ledger, 2, 7)
    again = give_back(ledger, 2, memory=Returns(tmp_path))
    assert not again.booked
    assert Returns(tmp_path).all() == [Return(payout_id(1), 2, 7, "r1", "account closed")]


# --- the commands


def test_the_command(earned: Ledger, shell: Shell, tmp_path: Path) -> None:
    said = ("--reference", "bank 7", "--reason", "account closed")
    shell("destination", "Anna", DESTINATION)
    shell("plan")
    shell("approve", "1")
    assert "was not paid" in shell("return", "1", "1", *said, code=1)
    shell("run", "1")
    assert "no line 2" in shell("return", "1", "2", *said, code=2)
    assert "more came back" in shell("return", "1", "1", "4.76", *said, code=1)
    dry = shell("return", "1", "1", "4.70", *said, "--dry-run")
    assert (
        "line 1: 4.70 CHF came back (account closed): would be available to Anna again; 0.05 stay paid" in dry
    )
    assert shell.json("show", "1")["lines"][0]["returned_micro"] == 0
    made = shell("return", "1", "1", "4.70", *said)
    assert "available to Anna again; 0.05 stay paid" in made
    assert "streamrp2p payout destination Anna" in made
    assert "was booked before" in shell("return", "1", "1", "4.70", *said)
    assert shell.json("return", "1", "1", *said)["booked"] is False
    assert "line 1: 4.70 of it came back" in shell("show", "1")
    (row,) = csv.DictReader(io.StringIO(shell("export", "1")))
    assert (row["state"], row["returned_micro"]) == ("confirmed", "4700000")
    waiting = shell("plan")
    assert "came_back" in waiting
    assert f"streamrp2p payout destination {FRIEND} WHERE" in waiting
    shell("destination", "Anna", "DE75 5121 0800 1245 1261 99")
    assert [x["amount_micro"] for x in shell.json("plan")["lines"]] == [4_700_000]


def test_reconciling_takes_up_what_the_files_remember(earned: Ledger, shell: Shell, tmp_path: Path) -> None:
    shell("destination", "Anna", DESTINATION)
    shell("plan")
    shell("approve", "1")
    shell("run", "1")
    Returns(tmp_path / "payouts").remember(Return(payout_id(1), 1, 1_000_000, "bank 7", "account closed"))
    assert "streamrp2p payout reconcile" in shell("plan", code=5)
    dry = shell.json("reconcile", "1", "--dry-run")
    assert [(x["was"], x["state"], x["action"]) for x in dry["lines"]] == [
        ("confirmed", "returned", "return")
    ]
    assert shell.json("show", "1")["lines"][0]["returned_micro"] == 0
    assert "1.00 CHF came back (account closed)" in shell("reconcile", "1", code=1)
    assert shell.json("reconcile", "1")["returned"] == []
    assert "came_back" in shell("plan")


# --- the bank's report


def report(created: str, *lines: tuple[str, str, str]) -> bytes:
    """(end-to-end id, status, reason)"""
    body = "".join(
        f"<TxInfAndSts><OrgnlEndToEndId>{name}</OrgnlEndToEndId><TxSts>{status}</TxSts>"
        f"<StsRsnInf><Rsn><Cd>{reason}</Cd></Rsn></StsRsnInf></TxInfAndSts>"
        for name, status, reason in lines
    )
    return (
        '<Document xmlns="urn:iso:std:iso:20022:tech:xsd:pain.002.001.10"><CstmrPmtStsRpt>'
        f"<GrpHdr><MsgId>X</MsgId><CreDtTm>{created}</CreDtTm></GrpHdr><OrgnlPmtInfAndSts>"
        f"{body}</OrgnlPmtInfAndSts></CstmrPmtStsRpt></Document>"
    ).encode()


class Bank:
    """One line in the bank's file; `says` reconciles with a report of the bank's on it."""

    def __init__(self, shell: Shell, folder: Path) -> None:
        self.shell, self.path = shell, folder / "report.xml"
        shell("destination", "Anna", f"{IBANS[2]};Anna")
        shell("plan", "--rail", "pain.001")
        shell("approve", "1")
        shell("run", "1", "--from-account", f"{IBANS[0]};Crew", code=10)
        self.name = end_to_end_id(f"{payout_id(1)}:1")

    def says(self, created: str, status: str, reason: str = "AC04", *, code: int, dry: bool = False) -> str:
        self.path.write_bytes(report(created, (self.name, status, reason)))
        return self.again(code=code, dry=dry)

    def again(self, *, code: int, dry: bool = False) -> str:
        options = ["--dry-run"] if dry else []
        return self.shell("reconcile", "1", "--status", str(self.path), *options, code=code)


@pytest.fixture
def bank(earned: Ledger, shell: Shell, tmp_path: Path) -> Bank:
    return Bank(shell, tmp_path)


def available(ledger: Ledger) -> int:
    return ledger.load(Book, BOOK_ID).balance(friend_account(FRIEND, "available"))


def test_a_payment_rejected_after_it_was_debited_has_come_back(earned: Ledger, bank: Bank) -> None:
    bank.says("2026-03-01T10:00:00Z", "ACSC", code=0)
    size = earned.size()
    dry = bank.says("2026-03-05T10:00:00+01:00", "RJCT", code=0, dry=True)
    assert "would be" in dry
    assert "line 1: 4.75 CHF came back (account closed (AC04)): would be available to Anna again" in dry
    assert (earned.size(), available(earned)) == (size, 0)
    assert "available to Anna again" in bank.again(code=1)
    assert available(earned) == 4_750_000
    for _ in range(2):
        assert "came back" not in bank.again(code=0)
    assert available(earned) == 4_750_000
    assert bank.shell.json("show", "1")["lines"][0]["returned_micro"] == 4_750_000


def test_an_older_report_read_again_is_no_return(earned: Ledger, bank: Bank) -> None:
    """The bank refused, and then paid after all. What it said first would give the money away again."""
    refused = ("2026-03-01T10:00:00", "RJCT")
    bank.says(*refused, code=1)
    assert available(earned) == 4_750_000
    bank.says("2026-03-02T10:00:00", "ACSC", code=0)
    for dry in (True, False):
        assert "recorded as confirmed already" in bank.says(*refused, code=1, dry=dry)
    assert available(earned) == 0


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("2026-03-01T10:00:00Z", "ACCC"), ("2026-03-05T10:00:00Z", "RJCT")),  # it is on the friend's account
        (("2026-03-01T10:00:00Z", "ACSC"), ("2026-03-01T10:00:00Z", "RJCT")),
        (("2026-03-01T10:00:00Z", "ACSC"), ("2026-03-05T10:00:00", "RJCT")),  # which is later?
        (("2026-03-01T10:00:00Z", "ACSC"), ("one day", "RJCT")),
        (("", "ACSC"), ("2026-03-05T10:00:00Z", "RJCT")),
    ],
)
def test_what_does_not_say_that_it_came_back_is_refused(
    earned: Ledger, bank: Bank, first: tuple[str, str], then: tuple[str, str]
) -> None:
    bank.says(*first, code=0)
    assert "streamrp2p payout return" in bank.says(*then, code=1)
    assert available(earned) == 0


def test_a_whole_file_refused_later_brings_nothing_back(earned: Ledger, bank: Bank) -> None:
    bank.says("2026-03-01T10:00:00Z", "ACSC", code=0)
    message = f"{str(payout_id(1)).replace('-', '')[:28]}-1"
    bank.path.write_bytes(
        b"<Document><GrpHdr><CreDtTm>2026-03-05T10:00:00Z</CreDtTm></GrpHdr><OrgnlGrpInfAndSts><OrgnlMsgId>"
        + message.encode()
        + b"</OrgnlMsgId><GrpSts>RJCT</GrpSts></OrgnlGrpInfAndSts></Document>"
    )
    assert "rejected as a whole (RJCT), and something in it was paid" in bank.again(code=1)
    assert available(earned) == 0


def test_a_file_debited_as_a_whole_and_one_payment_of_it_returned(earned: Ledger, bank: Bank) -> None:
    message = f"{str(payout_id(1)).replace('-', '')[:28]}-1"
    bank.path.write_bytes(
        b"<Document><GrpHdr><CreDtTm>2026-03-01T10:00:00Z</CreDtTm></GrpHdr><OrgnlGrpInfAndSts><OrgnlMsgId>"
        + message.encode()
        + b"</OrgnlMsgId><GrpSts>ACSC</GrpSts></OrgnlGrpInfAndSts></Document>"
    )
    bank.again(code=0)
    assert "(recipient refused it (MS02))" in bank.says("2026-03-05T10:00:00Z", "RJCT", "MS02", code=1)
    assert available(earned) == 4_750_000


def test_how_much_came_back_is_said_by_hand_first(earned: Ledger, bank: Bank) -> None:
    """The report would have all of it come back; the operator saw in the account that the bank kept a fee."""
    bank.says("2026-03-01T10:00:00Z", "ACSC", code=0)
    bank.shell("return", "1", "1", "4.25", "--reference", "bank 7", "--reason", "account closed")
    bank.says("2026-03-05T10:00:00Z", "RJCT", code=0)
    assert available(earned) == 4_250_000


def test_a_report_on_a_line_that_the_books_do_not_have_as_paid_yet(earned: Ledger, bank: Bank) -> None:
    """Killed between the rail's file and the book: the next report is of the return already."""
    from hub.rails import open_rail
    from hub.settings import load_settings
    from ledger.rails import Outcome
    from ledger.rails.pain001 import Pain001Rail, Said

    payout = payouts.load(earned, payout_id(1))
    with open_rail(load_settings(), payout) as rail:
        assert isinstance(rail, Pain001Rail)
        rail.record(payout.key(1), Said(Outcome.CONFIRMED, "ACSC", "2026-03-01T10:00:00Z", alone=True))
    dry = bank.says("2026-03-05T10:00:00Z", "RJCT", code=0, dry=True)
    assert "4.75 CHF came back" in dry
    assert available(earned) == 0
    assert "4.75 CHF came back" in bank.again(code=1)
    assert available(earned) == 4_750_000


@pytest.mark.parametrize("status", ["ACSC", "RJCT", "PDNG"])
def test_a_dry_run_says_what_the_report_would_change(earned: Ledger, bank: Bank, status: str) -> None:
    bank.path.write_bytes(
        report("2026-03-01T10:00:00Z", (bank.name, status, "AC04"), ("another's", "RJCT", "AC04"))
    )
    files = {path: path.read_bytes() for path in bank.path.parent.glob("payouts/*")}
    size = earned.size()
    if status == "PDNG":
        for dry_run, code in ((True, 0), (False, 10)):
            bank.again(code=code, dry=dry_run)
            assert bank.shell.json("show", "1")["lines"][0]["state"] == "unknown"
        return
    dry = bank.shell.json("reconcile", "1", "--status", str(bank.path), "--dry-run")
    after = {"ACSC": "confirmed", "RJCT": "failed"}[status]
    assert [(x["line"], x["was"], x["state"], x["reference"]) for x in dry["lines"]] == [
        (1, "unknown", after, f"{status} AC04")
    ]
    assert earned.size() == size
    assert {path: path.read_bytes() for path in bank.path.parent.glob("payouts/*")} == files
    shown = bank.again(code=0 if status == "ACSC" else 1)
    assert after in shown
    assert bank.shell.json("show", "1")["lines"][0]["state"] == after


def test_a_dry_run_says_that_the_bank_paid_twice(earned: Ledger, bank: Bank) -> None:
    bank.says("2026-03-01T10:00:00Z", "RJCT", code=1)
    adjust(
        earned,
        source=friend_account(FRIEND, "available"),
        target=FEES,
        amount_micro=1,
        reference="a",
        reason="x",
        at_us=AT,
    )
    assert "overpaid" in bank.says("2026-03-02T10:00:00Z", "ACSC", code=0, dry=True)
    assert "overpaid" in bank.again(code=5)


def test_a_run_shows_where_each_line_stood(paid: Ledger, tmp_path: Path) -> None:
    assert {r.was for r in run(paid, CsvRail(tmp_path / f"{payout_id(1)}.csv"), payout_id(1))} == {
        "confirmed"
    }
