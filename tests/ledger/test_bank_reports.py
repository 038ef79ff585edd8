"""What banks say of a payout of three lines, contradict and repeat: told by line, and no money moves for it wrongly."""

import json
from pathlib import Path

import psycopg
import pytest
from test_pain001 import IBANS
from test_payout import AT, FRIENDS, balances, earn
from test_payout_command import Shell, shell

from ledger.aggregates.payout import payout_id
from ledger.application import Ledger
from ledger.rails.pain001_file import end_to_end_id
from ledger.rails.pain002 import COPIES, NOT_FINAL
from ledger.services import crew

__all__ = ["shell"]  # a fixture

MARCH = [f"2026-03-0{day}T10:00:00Z" for day in range(1, 8)]
FILE = f"{str(payout_id(1)).replace('-', '')[:28]}-1"


def name_of(line: int, batch: int = 1) -> str:
    return end_to_end_id(f"{payout_id(batch)}:{line}")


def tx(line: int, status: str, reason: str = "", amount: str = "", name: str = "") -> str:
    why = f"<StsRsnInf><Rsn><Cd>{reason}</Cd></Rsn></StsRsnInf>" if reason else ""
    value, _, unit = amount.partition(" ")
    said = f'<OrgnlTxRef><Amt><InstdAmt Ccy="{unit}">{value}</InstdAmt></Amt></OrgnlTxRef>' if amount else ""
    name = name or name_of(line)
    return f"<TxInfAndSts><OrgnlEndToEndId>{name}</OrgnlEndToEndId><TxSts>{status}</TxSts>{why}{said}</TxInfAndSts>"


def document(created: str, *lines: str, group: str = "", part: str = "") -> bytes:
    """`group` and `part` are what is said of the file as a whole, and of its payment information."""
    return (
        '<Document xmlns="urn:iso:std:iso:20022:tech:xsd:pain.002.001.10"><CstmrPmtStsRpt><GrpHdr><MsgId>X</MsgId>'
        f"<CreDtTm>{created}</CreDtTm></GrpHdr><OrgnlGrpInfAndSts><OrgnlMsgId>{FILE}</OrgnlMsgId>{group}"
        f"</OrgnlGrpInfAndSts><OrgnlPmtInfAndSts><OrgnlPmtInfId>{FILE}</OrgnlPmtInfId>{part}{''.join(lines)}"
        "</OrgnlPmtInfAndSts></CstmrPmtStsRpt></Document>"
    ).encode()


def reason(code: str) -> str:
    return f"<StsRsnInf><Rsn><Cd>{code}</Cd></Rsn></StsRsnInf>"


class Bank:
    """Three lines of 3.16, with the bank. `says` reconciles with a report; what it tells is kept."""

    def __init__(self, ledger: Ledger, shell: Shell, folder: Path) -> None:
        self.ledger, self.shell, self.path = ledger, shell, folder / "report.xml"
        for n in range(3):
            shell("destination", f"Friend {n}", f"{IBANS[n]};Friend {n}")
        shell("plan", "--rail", "pain.001")
        shell("approve", "1")
        shell("run", "1", "--from-account", f"{IBANS[0]};Crew", code=10)

    def says(self, data: bytes, *options: str, code: int, batch: int = 1) -> str:
        """The same twice, after a dry run: what is repeated changes no more money."""
        self.path.write_bytes(data)
        before = self.money()
        self.shell("reconcile", str(batch), "--status", str(self.path), *options, "--dry-run", code=None)
        assert self.money() == before
        told = self.shell("reconcile", str(batch), "--status", str(self.path), *options, code=code)
        told += self.shell.err if code == 0 else ""
        after = self.money()
        self.shell("reconcile", str(batch), "--status", str(self.path), *options, code=None)
        assert self.money() == after
        return told

    def money(self) -> dict[str, list[int]]:
        return {pot: balances(self.ledger, pot) for pot in ("available", "in_flight", "paid")}

    def where(self) -> list[str]:
        """In which pot the 3.16 of each line is."""
        money, amount = self.money(), 3_160_000
        return [next(pot for pot in money if money[pot][n] >= amount) for n in range(3)]


@pytest.fixture
def bank(ledger: Ledger, shell: Shell, database_url: str, tmp_path: Path) -> Bank:
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    earn(ledger)
    with psycopg.connect(database_url, autocommit=True) as connection:
        for n, friend in enumerate(FRIENDS):
            connection.execute(
                "INSERT INTO crew_main.people (person_id, display_name) VALUES (%s, %s)",
                (friend, f"Friend {n}"),
            )
    return Bank(ledger, shell, tmp_path)


def test_each_line_is_told_by_itself(bank: Bank) -> None:
    """Also those of which a bank says something that cannot be; the good ones are taken."""
    lines = (
        tx(1, "ACSC", amount="3.16 EUR"),
        tx(2, "ACSC", amount="3.17 EUR"),
        tx(3, "RJCT", amount="3.16 USD"),
    )
    told = bank.says(document(MARCH[0], *lines), code=1)
    assert bank.where() == ["paid", "in_flight", "in_flight"]
    assert "line 2: the report has '3.17 EUR' for it, and it was 3.16 EUR" in told
    assert "line 3: the report has '3.16 USD' for it, and it was 3.16 EUR" in told
    assert "line 1:" not in told


def test_what_is_not_final_is_told_and_stays_in_flight(bank: Bank) -> None:
    for status in (*NOT_FINAL, "XXXX", "acsc", "", "<x/>"):
        bank.path.write_bytes(document(MARCH[0], tx(1, "ACSC"), tx(2, status)))
        told = bank.shell("reconcile", "1", "--status", str(bank.path), code=10)
        assert "line 2: the bank says" in told
        assert NOT_FINAL.get(status, "no status that is known here") in told
        assert "given to the bank on 20" in told  # for how long it is pending
        assert bank.where() == ["paid", "in_flight", "in_flight"]


def test_the_operator_knows_better_than_a_bank_that_stays_pending(bank: Bank) -> None:
    told = bank.says(
        document(MARCH[0], tx(1, "PDNG"), tx(2, "PDNG")), "--paid", "1", "--refused", "2", code=10
    )
    assert "line 1:" not in told
    assert bank.where() == ["paid", "available", "in_flight"]


def test_two_things_said_of_a_line_in_one_report_are_none(bank: Bank) -> None:
    told = bank.says(document(MARCH[0], tx(1, "ACSC"), tx(1, "RJCT"), tx(2, "ACSC")), code=10)
    assert "line 1: the bank says ACSC and RJCT (the report says two things of it)" in told
    assert bank.where() == ["in_flight", "paid", "in_flight"]


@pytest.mark.parametrize("place", ["line", "part", "group"])
def test_a_second_copy_that_is_rejected_gives_nothing_away(bank: Bank, place: str) -> None:
    """The file was uploaded twice: the first copy pays."""

    def copy(created: str, code: str) -> bytes:
        if place == "line":
            return document(created, *(tx(n, "RJCT", code) for n in (1, 2, 3)))
        if place == "part":
            return document(created, tx(1, "RJCT"), part=f"<PmtInfSts>RJCT</PmtInfSts>{reason(code)}")
        return document(created, tx(1, "RJCT"), group=f"<GrpSts>RJCT</GrpSts>{reason(code)}")

    for code in sorted(COPIES):
        bank.path.write_bytes(copy(MARCH[0], code))
        told = bank.shell("reconcile", "1", "--status", str(bank.path), code=10)
        assert "second copy of what the bank had before: of the first that says nothing" in told
        assert bank.where() == ["in_flight"] * 3
    bank.says(document(MARCH[1], *(tx(n, "ACSC") for n in (1, 2, 3))), code=0)
    assert "it stays confirmed" in bank.says(copy(MARCH[2], "AM05"), code=0)  # the same, of what was debited
    assert bank.where() == ["paid"] * 3


def test_a_file_that_is_rejected_as_a_whole_after_something_in_it_was_paid(bank: Bank) -> None:
    bank.says(document(MARCH[0], tx(1, "ACSC"), tx(2, "PDNG")), code=10)
    told = bank.says(document(MARCH[1], group="<GrpSts>RJCT</GrpSts>"), code=1)
    for line in (1, 2, 3):
        assert f"line {line}: its file is rejected as a whole (RJCT), and something in it was paid" in told
    assert bank.where() == ["paid", "in_flight", "in_flight"]


def test_a_file_that_is_rejected_as_a_whole_by_a_report_that_has_one_of_it_as_paid(bank: Bank) -> None:
    told = bank.says(document(MARCH[0], tx(2, "ACSC"), part="<PmtInfSts>RJCT</PmtInfSts>"), code=1)
    assert "line 1: its file is rejected as a whole" in told
    assert bank.where() == ["in_flight", "paid", "in_flight"]


def test_a_file_of_another_sum_is_not_the_one_that_was_given(bank: Bank) -> None:
    told = bank.says(
        document(MARCH[0], group="<OrgnlCtrlSum>9.49</OrgnlCtrlSum><GrpSts>ACSC</GrpSts>"), code=1
    )
    assert "line 1: the report has '9.49' as the sum of its file, and that was 9.48 EUR" in told
    assert bank.where() == ["in_flight"] * 3
    bank.says(document(MARCH[0], group="<OrgnlCtrlSum>9.480</OrgnlCtrlSum><GrpSts>ACSC</GrpSts>"), code=0)


@pytest.mark.parametrize(("group", "part", "pot"), [
    ("ACCP", "ACSC", "paid"), ("PART", "", "in_flight"), ("ACSC", "PDNG", "in_flight"),
    ("RJCT", "ACSC", "in_flight"), ("RJCT", "RJCT", "available"), ("", "RJCT", "available"),
])  # fmt: skip
def test_what_is_said_of_the_payment_information_goes_before_what_is_said_of_the_file(
    bank: Bank, group: str, part: str, pot: str
) -> None:
    both = {"group": f"<GrpSts>{group}</GrpSts>", "part": f"<PmtInfSts>{part}</PmtInfSts>" if part else ""}
    bank.says(document(MARCH[0], **both), code={"paid": 0, "in_flight": 10, "available": 1}[pot])
    assert bank.where() == [pot] * 3


def test_payments_of_another_payout_and_of_nobody_are_told(bank: Bank) -> None:
    earn(bank.ledger, 1)
    bank.shell("plan", "--rail", "pain.001")
    bank.shell("approve", "2")
    bank.shell("run", "2", "--from-account", f"{IBANS[0]};Crew", code=10)
    others = (
        tx(0, "ACSC", name=name_of(1, 2)) + tx(0, "ACSC", name="someone else's") + tx(0, "RJCT", name=" ")
    )
    told = bank.says(document(MARCH[0], tx(1, "ACSC"), others), code=10)
    assert f"of 1 payment(s) of payout 2 too: streamrp2p payout reconcile 2 --status {bank.path}" in told
    assert "1 payment(s) that are none of ours: someone else's" in told
    assert "1 payment(s) that it does not name" in told
    assert bank.money()["paid"] == [3_160_000, 0, 0]
    bank.path.write_bytes(document(MARCH[0], tx(0, "ACSC", name=name_of(2, 2))))
    told = bank.shell("reconcile", "1", "--status", str(bank.path), code=1)
    assert (
        "says nothing of a payment of this payout; the report says something of 1 payment(s) of payout 2"
        in told
    )


def test_a_report_cut_off_anywhere_changes_nothing(bank: Bank) -> None:
    data = document(MARCH[0], tx(1, "ACSC"), tx(2, "RJCT"), tx(3, "ACSC"))
    before = bank.ledger.size()
    for end in range(0, len(data), 101):
        bank.path.write_bytes(data[:end])
        assert "not all of it" in bank.shell("reconcile", "1", "--status", str(bank.path), code=1)
    assert bank.ledger.size() == before
    assert bank.where() == ["in_flight"] * 3


# --- after a return


def come_back(bank: Bank) -> None:
    """Line 1, debited on the first of March, came back on the third; the others are paid."""
    bank.says(document(MARCH[0], *(tx(n, "ACSC") for n in (1, 2, 3))), code=0)
    bank.path.write_bytes(document(MARCH[2], tx(1, "RJCT", "AC04")))
    assert "came back" in bank.shell("reconcile", "1", "--status", str(bank.path), code=1)


@pytest.mark.parametrize("status", ["ACSC", "ACCC"])
def test_paid_said_after_a_return_is_told_and_moves_nothing(bank: Bank, status: str) -> None:
    come_back(bank)
    for read_again in (MARCH[0], MARCH[1], MARCH[2]):  # not after what the return was told by
        assert "line 1" not in bank.says(document(read_again, tx(1, status)), code=0)
    told = bank.says(document(MARCH[4], tx(1, status), tx(2, status)), code=5)
    assert (
        f"line 1: it is said to be paid ({status}) by the report of {MARCH[4]}, and 3.16 of it is booked"
        in told
    )
    assert "line 2" not in told
    assert "line 1: it is said to be paid (operator), and 3.16" in bank.shell(
        "reconcile", "1", "--paid", "1", code=5
    )
    told = bank.says(document(MARCH[5], tx(1, "RJCT", "AC04")), code=5)
    assert "line 1: it is said to be rejected" in told
    assert bank.where() == ["available", "paid", "paid"]


def test_paid_said_after_a_return_that_was_booked_by_hand(bank: Bank) -> None:
    bank.says(document(MARCH[0], *(tx(n, "ACSC") for n in (1, 2, 3))), code=0)
    bank.shell("return", "1", "1", "1.00", "--reference", "bank 7", "--reason", "account closed")
    assert "line 1" not in bank.says(document(MARCH[0], tx(1, "ACSC")), code=0)
    told = bank.says(document(MARCH[1], tx(1, "ACSC")), code=5)
    assert "and 1.00 of it is booked as come back" in told
    shown = bank.shell("reconcile", "1", "--status", str(bank.path), "--json", code=5)
    out = json.loads(shown[: shown.index("\n")])
    assert [(remark["line"], remark["wrong"]) for remark in out["remarks"]] == [(1, True)]


@pytest.mark.parametrize("order", [(0, 2), (2, 0)])
def test_a_debit_read_after_its_rejection_pays_nothing(bank: Bank, order: tuple[int, int]) -> None:
    """The reports of the first and the third of March, read in any order: what was paid has come back."""
    said = {0: tx(1, "ACSC"), 2: tx(1, "RJCT", "AC04")}
    for day in order:
        bank.path.write_bytes(document(MARCH[day], said[day]))
        told = bank.shell("reconcile", "1", "--status", str(bank.path), code=None)
    assert bank.where() == ["available", "in_flight", "in_flight"]
    if order == (2, 0):
        assert "line 1: ACSC is said of it in a report from before the one that rejected it" in told
        # What the recipient has is paid, whenever it is said.
        bank.says(document(MARCH[1], tx(1, "ACCC")), code=10)
        assert bank.where()[0] == "paid"


def test_a_report_of_a_hundred_thousand_levels_is_read_or_refused(bank: Bank) -> None:
    deep = b"<a>" * 100_000 + tx(1, "ACSC").encode() + b"</a>" * 100_000
    bank.path.write_bytes(deep)
    bank.shell("reconcile", "1", "--status", str(bank.path), code=None)
    assert bank.where()[1:] == ["in_flight"] * 2


def test_lines_are_named_for_what_no_file_holds(bank: Bank) -> None:
    (bank.path.parent / "payouts" / f"{payout_id(1)}-1.xml").unlink()
    told = bank.shell("reconcile", "1", "--paid", "2", code=1)
    assert "line 2: no file for the bank holds this payment" in told
    assert "3 of its payments are in no file for the bank yet" in told
