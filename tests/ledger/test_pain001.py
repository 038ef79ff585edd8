"""The bank rail: what the bank gets is whole, exact, by the standard, and each payment once."""

import contextlib
import json
import re
import xml.etree.ElementTree as ET
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_payout import AT, FRIENDS, Killed, Trap, TrappedRail, balances, earn
from test_payout_command import Shell, earned

from ledger.aggregates.base import DomainError
from ledger.aggregates.payout import Payout
from ledger.application import Ledger
from ledger.rails import Answer, OtherPayment, Outcome, Payment
from ledger.rails.bank_account import BankAccount, BankAccountError, check_bic, check_iban, sepa_text
from ledger.rails.pain001 import BankAnswerError, News, NoDebtorError, Pain001Rail, Said, Told
from ledger.rails.pain001_file import NAMESPACE, end_to_end_id
from ledger.rails.pain002 import StatusReportError, read_report
from ledger.services import crew, payouts
from ledger.services.destinations import Destination

__all__ = ["earned"]  # a fixture

IBANS = ["DE02120300000000202051", "GB82WEST12345698765432", "CH9300762011623852957"]
DEBTOR = BankAccount.parse("DE89370400440532013000;COBADEFFXXX;Crew & Söhne")
DESTINATIONS = {
    f: Destination(f"{iban};Anna Ångström <{i}>", bytes([i]) * 16)
    for i, (f, iban) in enumerate(zip(FRIENDS, IBANS, strict=True))
}

# --- the schema, as far as these files use it: children in order, (tag, minimum, maximum)

TEXT = {
    "MsgId": r".{1,35}",
    "PmtInfId": r".{1,35}",
    "EndToEndId": r"[A-Za-z0-9/\-?:().,'+ ]{1,35}",
    "NbOfTxs": r"[0-9]{1,15}",
    "CtrlSum": r"[0-9]{1,15}\.[0-9]{2}",
    "InstdAmt": r"[0-9]{1,13}\.[0-9]{2}",
    "Nm": r"[A-Za-z0-9/\-?:().,'+ ]{1,70}",
    "PmtMtd": "TRF",
    "Cd": r"[A-Z]{1,4}",
    "Dt": r"\d{4}-\d\d-\d\d",
    "CreDtTm": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    "IBAN": r"[A-Z]{2}[0-9]{2}[a-zA-Z0-9]{1,30}",
    "BICFI": r"[A-Z0-9]{4}[A-Z]{2}[A-Z0-9]{2}([A-Z0-9]{3})?",
    "ChrgBr": "SLEV|SHAR",
    "Ustrd": r".{1,140}",
    "NOT": "",
}
ACCOUNT = [("Id", 1, 1)]
CHILDREN: dict[str, list[tuple[str, int, int]]] = {
    "Document": [("CstmrCdtTrfInitn", 1, 1)],
    "CstmrCdtTrfInitn": [("GrpHdr", 1, 1), ("PmtInf", 1, 1)],
    "GrpHdr": [
        ("MsgId", 1, 1),
        ("CreDtTm", 1, 1),
        ("NbOfTxs", 1, 1),
        ("CtrlSum", 0, 1),
        ("InitgPty", 1, 1),
    ],
    "InitgPty": [("Nm", 0, 1)],
    "PmtInf": [
        ("PmtInfId", 1, 1),
        ("PmtMtd", 1, 1),
        ("NbOfTxs", 0, 1),
        ("CtrlSum", 0, 1),
        ("PmtTpInf", 0, 1),
        ("ReqdExctnDt", 1, 1),
        ("Dbtr", 1, 1),
        ("DbtrAcct", 1, 1),
        ("DbtrAgt", 1, 1),
        ("ChrgBr", 0, 1),
        ("CdtTrfTxInf", 1, 500),
    ],
    "PmtTpInf": [("SvcLvl", 0, 1)],
    "SvcLvl": [("Cd", 1, 1)],
    "ReqdExctnDt": [("Dt", 1, 1)],
    "Dbtr": [("Nm", 0, 1)],
    "Cdtr": [("Nm", 0, 1)],
    "DbtrAcct": ACCOUNT,
    "CdtrAcct": ACCOUNT,
    "DbtrAgt": [("FinInstnId", 1, 1)],
    "CdtrAgt": [("FinInstnId", 1, 1)],
    "FinInstnId": [("BICFI", 0, 1), ("Othr", 0, 1)],
    "Othr": [("Id", 1, 1)],
    "CdtTrfTxInf": [
        ("PmtId", 1, 1),
        ("Amt", 1, 1),
        ("CdtrAgt", 0, 1),
        ("Cdtr", 0, 1),
        ("CdtrAcct", 0, 1),
        ("RmtInf", 0, 1),
    ],
    "PmtId": [("EndToEndId", 1, 1)],
    "Amt": [("InstdAmt", 1, 1)],
    "RmtInf": [("Ustrd", 0, 1)],
}


def local(element: ET.Element) -> str:
    assert element.tag.startswith(f"{{{NAMESPACE}}}"), element.tag
    return element.tag.partition("}")[2]


def validate(element: ET.Element) -> None:
    name, children = local(element), list(element)
    if not children:
        pattern = "NOTPROVIDED" if name == "Id" else TEXT[name]
        assert re.fullmatch(pattern, element.text or ""), (name, element.text)
        assert element.attrib == ({"Ccy": "EUR"} if name == "InstdAmt" else {})
        return
    rules = [("IBAN", 1, 1)] if name == "Id" else CHILDREN[name]
    left = [local(child) for child in children]
    for tag, least, most in rules:
        count = 0
        while left and left[0] == tag:
            left.pop(0)
            count += 1
        assert least <= count <= most, (name, tag, count)
    assert not left, f"{left} out of order in {name}"
    for child in children:
        validate(child)


def payments_in(path: Path) -> dict[str, tuple[str, Decimal]]:
    """End-to-end id -> (IBAN, amount); after the whole file was held against the schema."""
    root = ET.fromstring(path.read_bytes())
    validate(root)
    ns = {"p": NAMESPACE}
    found = {}
    for t in root.iterfind(".//p:CdtTrfTxInf", ns):
        amount = t.findtext("p:Amt/p:InstdAmt", "", ns)
        name = t.findtext("p:PmtId/p:EndToEndId", "", ns)
        found[name] = (t.findtext("p:CdtrAcct/p:Id/p:IBAN", "", ns), Decimal(amount))
    for part in ("p:GrpHdr", "p:PmtInf"):
        head = root.find(f"p:CstmrCdtTrfInitn/{part}", ns)
        assert head is not None
        assert int(head.findtext("p:NbOfTxs", "", ns)) == len(found)
        assert Decimal(head.findtext("p:CtrlSum", "", ns)) == sum(a for _, a in found.values())
    date.fromisoformat(root.findtext(".//p:ReqdExctnDt/p:Dt", "", ns))
    datetime.fromisoformat(root.findtext(".//p:CreDtTm", "", ns))
    return found


# --- accounts


@pytest.mark.parametrize("iban", [*IBANS, "DE02 1203 0000 0000 2020 51", "no9386011117947"])
def test_an_iban_whose_check_digits_hold_is_taken(iban: str) -> None:
    assert check_iban(iban) == iban.replace(" ", "").upper()


@given(st.sampled_from(IBANS), st.data())
def test_one_wrong_character_of_an_iban_is_found(iban: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(2, len(iban) - 1))
    wrong = data.draw(st.sampled_from("0123456789"))
    if iban[at].isdigit() and wrong != iban[at]:
        with pytest.raises(BankAccountError, match="check digits"):
            check_iban(iban[:at] + wrong + iban[at + 1 :])


@given(st.text(max_size=300))
def test_any_other_text_is_refused_by_one_error(text: str) -> None:
    for read in (BankAccount.parse, check_bic):
        with contextlib.suppress(BankAccountError):
            read(text)


@given(st.text(max_size=300))
def test_a_name_is_spelled_in_the_banks_characters(text: str) -> None:
    account = BankAccount.parse(f"{IBANS[0]};{text.replace(';', ' ')}")
    assert re.fullmatch(TEXT["Nm"], account.name)
    assert not account.name.startswith(("/", " "))
    assert "//" not in account.name
    assert sepa_text("Groß & Çelik") == "Gross + Celik"


# --- files


def make(folder: Path, debtor: BankAccount | None = DEBTOR) -> Pain001Rail:
    return Pain001Rail(folder, str(UUID(int=7)), debtor=debtor, created_us=AT)


def payment(n: int, amount_micro: int = 1_230_000, destination: str | None = None) -> Payment:
    return Payment(
        key=f"{UUID(int=7)}:{n}",
        friend_id=UUID(int=n),
        amount_micro=amount_micro,
        unit="EUR",
        destination=destination or f"{IBANS[n % 3]};Friend {n}",
    )


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=12))
def test_a_file_is_by_the_standard_and_exact_to_the_cent(
    tmp_path_factory: pytest.TempPathFactory, cents: list[int]
) -> None:
    folders = [tmp_path_factory.mktemp("bank") for _ in range(2)]
    written = []
    for folder in folders:
        rail = make(folder)
        for n, amount in enumerate(cents, 1):
            for _ in range(2):  # submitted again after a crash
                assert rail.submit(payment(n, amount * 10_000)).outcome is Outcome.UNKNOWN
        path = rail.seal()
        assert path is not None
        assert rail.seal() is None
        written.append(path.read_bytes())
        assert payments_in(path) == {
            end_to_end_id(f"{UUID(int=7)}:{n}"): (IBANS[n % 3], Decimal(amount) / 100)
            for n, amount in enumerate(cents, 1)
        }
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "wrong",
    [
        payment(1, 1_234_567),  # not whole cents
        payment(1, 0),
        payment(1, destination="DE02120300000000202052;Typo"),
        payment(1, destination="0xabc"),
        payment(1, destination=f"{IBANS[0]};NOTABIC;Anna"),
    ],
)
def test_what_no_bank_can_pay_fails_at_once_and_is_in_no_file(tmp_path: Path, wrong: Payment) -> None:
    rail = make(tmp_path)
    answer = rail.submit(wrong)
    assert answer.outcome is Outcome.FAILED
    assert wrong.destination not in answer.reference
    assert rail.look_up(wrong.key) == Answer(Outcome.ABSENT)
    assert rail.seal() is None


def test_a_written_file_never_changes_and_later_payments_get_their_own(tmp_path: Path) -> None:
    rail = make(tmp_path)
    rail.submit(payment(1))
    first = rail.seal()
    assert first is not None
    content = first.read_bytes()
    rail.submit(payment(1))
    for other in (payment(1, 1_240_000), payment(1, destination=f"{IBANS[0]};Friend 1")):
        with pytest.raises(OtherPayment):
            rail.submit(other)
    rail.submit(payment(2))
    second = make(tmp_path, None).seal()
    assert second is not None
    assert (first.read_bytes(), list(payments_in(second))) == (content, [end_to_end_id(payment(2).key)])
    with pytest.raises(NoDebtorError):
        make(tmp_path, BankAccount.parse(IBANS[0])).submit(payment(3))
    with pytest.raises(NoDebtorError):
        make(tmp_path / "new", None).submit(payment(3))


def test_what_a_run_that_died_has_put_in_no_file_is_counted(tmp_path: Path) -> None:
    rail = make(tmp_path)
    assert rail.unsealed() == 0
    rail.submit(payment(1))
    rail.seal()
    rail.submit(payment(2))
    rail.submit(payment(3))
    assert make(tmp_path).unsealed() == 2
    make(tmp_path).seal()
    assert rail.unsealed() == 0


def test_a_line_torn_at_any_byte_is_collected_again(tmp_path: Path) -> None:
    rail = make(tmp_path)
    rail.submit(payment(1))
    journal = next(tmp_path.glob("*.pain001"))
    whole = journal.read_bytes()
    rail.submit(payment(2))
    full = journal.read_bytes()
    for end in range(len(whole), len(full), 17):
        journal.write_bytes(full[:end])
        assert make(tmp_path).look_up(payment(2).key).outcome is Outcome.ABSENT
        make(tmp_path).submit(payment(2))
        assert journal.read_bytes() == full


# --- the bank's answers


def report(*lines: tuple[str, str]) -> bytes:
    body = "".join(
        f"<TxInfAndSts><OrgnlEndToEndId>{name}</OrgnlEndToEndId><TxSts>{status}</TxSts>"
        "<StsRsnInf><Rsn><Cd>AC04</Cd></Rsn></StsRsnInf></TxInfAndSts>"
        for name, status in lines
    )
    return (
        '<Document xmlns="urn:iso:std:iso:20022:tech:xsd:pain.002.001.10"><CstmrPmtStsRpt><OrgnlPmtInfAndSts>'
        f"{body}</OrgnlPmtInfAndSts></CstmrPmtStsRpt></Document>"
    ).encode()


def test_only_a_final_status_counts() -> None:
    told = read_report(
        report(("A", "ACSC"), ("B", "RJCT"), ("C", "ACSP"), ("D", "PDNG"), ("E", "?"), ("F", ""))
    )
    assert {name: (status.outcome, status.reference) for name, status in told.payments.items()} == {
        "A": (Outcome.CONFIRMED, "ACSC AC04"),
        "B": (Outcome.FAILED, "RJCT AC04"),
        "C": (Outcome.UNKNOWN, "ACSP AC04"),
        "D": (Outcome.UNKNOWN, "PDNG AC04"),
        "E": (Outcome.UNKNOWN, "'?' AC04"),
        "F": (Outcome.UNKNOWN, "'' AC04"),
    }
    whys = [told.payments[name].why for name in "CDEF"]
    assert whys == [
        "being settled",
        "pending",
        "no status that is known here",
        "no status that is known here",
    ]
    for other in ("RJCT", "ACSP"):
        for order in (("ACSC", other), (other, "ACSC")):
            (twice,) = read_report(report(*(("A", status) for status in order))).payments.values()
            assert (twice.outcome, twice.why) == (Outcome.UNKNOWN, "the report says two things of it")
    assert read_report(report(("A", "ACSC"), ("A", "ACSC"))).payments["A"].outcome is Outcome.CONFIRMED


def whole(tag: str, name: str, code: str, *inside: bytes) -> bytes:
    """A report on a file (OrgnlGrpInfAndSts) or on its payment information as a whole."""
    id_tag, status = (
        ("OrgnlMsgId", "GrpSts") if tag == "OrgnlGrpInfAndSts" else ("OrgnlPmtInfId", "PmtInfSts")
    )
    body = f"<{tag}><{id_tag}>{name}</{id_tag}><{status}>{code}</{status}>".encode() + b"".join(inside)
    return b"<Document><CstmrPmtStsRpt>" + body + f"</{tag}></CstmrPmtStsRpt></Document>".encode()


@pytest.mark.parametrize("tag", ["OrgnlGrpInfAndSts", "OrgnlPmtInfAndSts"])
def test_what_is_said_of_a_file_holds_for_its_payments_that_nothing_else_is_said_of(
    tmp_path: Path, tag: str
) -> None:
    rail = make(tmp_path)
    rail.submit(payment(1))
    rail.submit(payment(2))
    rail.seal()
    rail.submit(payment(3))
    rail.seal()
    first = f"{str(UUID(int=7)).replace('-', '')[:28]}-1"
    keys = [payment(n).key for n in (1, 2, 3)]
    assert rail.told(read_report(whole(tag, first, "RJCT"))).said == dict.fromkeys(
        keys[:2], Said(Outcome.FAILED, "RJCT")
    )
    part = rail.told(read_report(whole(tag, first, "PART")))
    assert (part.said, part.remarks.keys()) == ({}, {*keys[:2]})
    assert "PART (accepted in part, not said which)" in part.remarks[keys[0]].text
    assert rail.told(read_report(whole(tag, first[:-1] + "9", "RJCT"))) == Told({}, {})
    one = f"<TxInfAndSts><OrgnlEndToEndId>{end_to_end_id(keys[1])}</OrgnlEndToEndId><TxSts>PDNG</TxSts></TxInfAndSts>"
    told = rail.told(read_report(whole(tag, first, "ACSC", one.encode())))
    assert told.said == {keys[0]: Said(Outcome.CONFIRMED, "ACSC")}
    assert "PDNG (pending): nothing final; given to the bank on 2001-09-09" in told.remarks[keys[1]].text


@pytest.mark.parametrize(
    ("amount", "unit", "same"),
    [
        ("1.23", "EUR", True),
        ("1.230", "EUR", True),
        ("1.24", "EUR", False),
        ("1.23", "CHF", False),
        ("123", "EUR", False),
        ("1,23", "EUR", False),
        ("1.2300001", "EUR", False),
        ("1" * 40, "EUR", False),
        ("-1.23", "EUR", False),
        ("\u0661.23", "EUR", False),
    ],
)
def test_a_report_of_another_amount_is_no_answer(tmp_path: Path, amount: str, unit: str, same: bool) -> None:
    rail = make(tmp_path)
    rail.submit(payment(1))
    rail.seal()
    key = payment(1).key
    data = (
        f"<Document><TxInfAndSts><OrgnlEndToEndId>{end_to_end_id(key)}</OrgnlEndToEndId><TxSts>ACSC</TxSts><OrgnlTxRef>"
        f'<Amt><InstdAmt Ccy="{unit}">{amount}</InstdAmt></Amt></OrgnlTxRef></TxInfAndSts></Document>'
    ).encode()
    told = rail.told(read_report(data))
    if same:
        assert told == Told({key: Said(Outcome.CONFIRMED, "ACSC", alone=True)}, {})
    else:
        assert (told.said, told.remarks[key].wrong) == ({}, True)
        assert "it was 1.23 EUR" in told.remarks[key].text


def test_a_file_has_the_date_of_the_run_it_is_made_from(tmp_path: Path) -> None:
    """Of payouts that are approved late, or run on for days: a bank refuses a date that is past."""
    day_us = 86_400 * 1_000_000
    dates = []
    for day in range(2):
        rail = Pain001Rail(tmp_path, str(UUID(int=7)), debtor=DEBTOR, created_us=AT + day * day_us)
        rail.submit(payment(day + 1))
        if (
            day == 1
        ):  # a run that died before it wrote its file; written by the next, with what that collected
            rail = Pain001Rail(tmp_path, str(UUID(int=7)), debtor=DEBTOR, created_us=AT + 2 * day_us)
            rail.submit(payment(3))
        path = Pain001Rail(tmp_path, str(UUID(int=7)), debtor=DEBTOR, created_us=AT + 9 * day_us).seal()
        assert path is not None
        payments_in(path)
        dates.append(re.findall(r"<Dt>(.*?)</Dt>", path.read_text()))
    assert dates == [["2001-09-09"], ["2001-09-11"]]


@given(st.one_of(st.binary(max_size=300), st.just(b'<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>')))
def test_any_bytes_are_a_report_or_one_error(data: bytes) -> None:
    with contextlib.suppress(StatusReportError):
        assert read_report(data).payments == {}


def test_an_answer_is_taken_once_and_only_for_what_is_in_a_file(tmp_path: Path) -> None:
    rail = make(tmp_path)
    rail.submit(payment(1))
    with pytest.raises(BankAnswerError, match="no file"):
        rail.record(payment(1).key, Said(Outcome.CONFIRMED, "x"))
    rail.seal()
    assert rail.record(payment(1).key, Said(Outcome.CONFIRMED, "x")) is News.ANSWER
    assert rail.record(payment(1).key, Said(Outcome.CONFIRMED, "x")) is News.AGAIN
    with pytest.raises(BankAnswerError, match="already"):
        rail.record(payment(1).key, Said(Outcome.FAILED, "x"))
    assert rail.look_up(payment(1).key) == Answer(Outcome.CONFIRMED, "x")


def test_a_bank_may_take_back_that_it_failed_and_nothing_else(tmp_path: Path) -> None:
    rail, key = make(tmp_path), payment(1).key
    rail.submit(payment(1))
    rail.seal()
    assert rail.record(key, Said(Outcome.FAILED, "no")) is News.ANSWER
    assert rail.record(key, Said(Outcome.CONFIRMED, "yes")) is News.TAKEN_BACK
    assert rail.record(key, Said(Outcome.CONFIRMED, "yes")) is News.AGAIN
    assert make(tmp_path).look_up(key) == Answer(Outcome.CONFIRMED, "yes")
    with pytest.raises(BankAnswerError, match="already"):
        rail.record(key, Said(Outcome.FAILED, "no"))


def test_a_return_is_told_of_the_payment_itself_by_a_later_report(tmp_path: Path) -> None:
    rail, key = make(tmp_path), payment(1).key
    rail.submit(payment(1))
    rail.seal()
    first, later = "2026-03-01T10:00:00Z", "2026-03-01T10:00:01Z"
    rail.record(key, Said(Outcome.CONFIRMED, "ACSC", first, alone=True))
    for created, alone in ((later, False), (first, True), ("", True)):
        with pytest.raises(BankAnswerError, match="already"):
            rail.judge(key, Said(Outcome.FAILED, "RJCT", created, alone))
    assert rail.judge(key, Said(Outcome.FAILED, "RJCT", later, alone=True)) is News.RETURNED


def test_what_the_bank_paid_after_it_had_said_no_is_booked_or_reported(
    funded: Ledger, tmp_path: Path
) -> None:
    payout = planned(funded)
    rail = Pain001Rail(tmp_path, str(payout.id), debtor=DEBTOR, created_us=AT)
    payouts.run(funded, rail, payout.id, destinations=DESTINATIONS, at_us=AT)
    rail.seal()
    for line in (1, 2):
        rail.record(payout.key(line), Said(Outcome.FAILED, "RJCT"))
    payouts.reconcile(funded, rail, payout.id, at_us=AT)
    rail.record(payout.key(1), Said(Outcome.CONFIRMED, "ACSC"))
    assert payouts.reconcile(funded, rail, payout.id, at_us=AT)[0].state == "confirmed"
    second = planned(funded)  # of the other friend
    other = Pain001Rail(tmp_path, str(second.id), debtor=DEBTOR, created_us=AT)
    payouts.run(funded, other, second.id, destinations=DESTINATIONS, at_us=AT)
    rail.record(payout.key(2), Said(Outcome.CONFIRMED, "ACSC"))
    states = [r.state for r in payouts.reconcile(funded, rail, payout.id, at_us=AT)]
    assert states == ["confirmed", payouts.OVERPAID, "unknown"]


# --- with the ledger


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    earn(ledger)
    return ledger


def planned(ledger: Ledger) -> Payout:
    plan = payouts.plan(
        ledger,
        rail="pain.001",
        threshold_micro=1,
        destinations={f: d.commitment for f, d in DESTINATIONS.items()},
        quantum_micro=10_000,
        at_us=AT,
    )
    assert plan.batch_id is not None
    return payouts.approve(ledger, plan.batch_id, operator="op", at_us=AT)


def test_killed_at_any_instruction_each_is_in_one_file_once(funded: Ledger, tmp_path: Path) -> None:
    available = balances(funded, "available")
    payout = planned(funded)
    for at in range(1, 12):
        rail = Pain001Rail(tmp_path, str(payout.id), debtor=DEBTOR, created_us=payout.planned_us)
        try:
            payouts.run(
                funded, TrappedRail(rail, Trap(at), Killed), payout.id, destinations=DESTINATIONS, at_us=AT
            )
        except Killed:
            continue
        rail.seal()
        break
    assert len(rail.files()) == 1
    paid = {iban: int(amount * 10**6) for iban, amount in payments_in(rail.files()[0]).values()}
    assert paid == {iban: a - a % 10_000 for iban, a in zip(IBANS, available, strict=True)}
    assert balances(funded, "available") == [a % 10_000 for a in available]
    assert sum(balances(funded, "in_flight")) == sum(paid.values())
    for _ in range(2):
        states = payouts.reconcile(funded, rail, payout.id, at_us=AT)
        assert {r.state for r in states} == {"unknown"}
    rail.record(payout.key(1), Said(Outcome.CONFIRMED, "ACSC"))
    rail.record(payout.key(2), Said(Outcome.FAILED, "RJCT AC04"))
    states = payouts.reconcile(funded, rail, payout.id, at_us=AT)
    assert [r.state for r in states] == ["confirmed", "failed", "unknown"]
    assert balances(funded, "paid") == [paid[IBANS[0]], 0, 0]
    assert balances(funded, "available")[1] == available[1]


def test_the_commands_from_plan_to_the_banks_report(
    earned: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    database_url: str,
    tmp_path: Path,
) -> None:
    crew_currency = crew.crew(earned).unit
    assert crew_currency == "CHF"
    run = Shell(monkeypatch, capsys, database_url, tmp_path)
    run("destination", str(UUID(int=20)), f"{IBANS[2]};Anna")
    made = json.loads(run("plan", "--rail", "pain.001", "--operator", "ada", "--json"))
    assert [x["amount_micro"] for x in made["lines"]] == [4_750_000]
    crew.change_settings(earned, {"payout_second_above_micro": 1}, at_us=2)
    assert "somebody else" in run("approve", "1", "--operator", "ada", code=1)
    run("approve", "1", "--operator", "bob")
    run("run", "1", code=2)
    run("run", "1", "--from-account", "nonsense", code=2)
    run("run", "1", "--from-account", f"{IBANS[0]};Crew", code=10)
    shown = json.loads(run("export", "1", "--destinations", "--json"))["lines"]
    assert [(x["state"], x["amount"], x["destination"]) for x in shown] == [
        ("unknown", "4.750000", f"{IBANS[2]};Anna")
    ]
    assert "destination" not in run("export", "1")
    status = tmp_path / "report.xml"
    status.write_bytes(report((end_to_end_id(shown[0]["key"]), "ACSC"), ("other", "RJCT")))
    assert "ACSC" in run("reconcile", "1", "--status", str(status))
    assert "recorded as confirmed already" in run("reconcile", "1", "--refused", "1", code=1)
    status.write_bytes(report(("other", "RJCT")))
    assert "says nothing of a payment of this payout" in run(
        "reconcile", "1", "--status", str(status), code=1
    )


# --- limits


def test_the_limit_of_a_payout_makes_more_of_them_and_that_of_a_day_makes_it_wait(
    funded: Ledger, tmp_path: Path
) -> None:
    amounts = balances(funded, "available")
    limits = {"payout_batch_max_micro": max(amounts) + 1, "payout_day_max_micro": 2 * max(amounts)}
    crew.change_settings(funded, limits, at_us=AT)
    plan = payouts.plan(
        funded,
        rail="pain.001",
        threshold_micro=1,
        destinations={f: d.commitment for f, d in DESTINATIONS.items()},
        quantum_micro=10_000,
        at_us=AT,
    )
    batches = [plan.batch_id, *(p.batch_id for p in plan.further)]
    assert len(batches) == 3
    with pytest.raises(DomainError, match="run or cancel"):
        planned(funded)
    day = AT
    for tomorrow in (False, True):
        results = []
        for batch_id in batches:
            assert batch_id is not None
            payouts.approve(funded, batch_id, operator="op", at_us=day)
            rail = Pain001Rail(tmp_path, str(batch_id), debtor=DEBTOR, created_us=AT)
            results += payouts.run(funded, rail, batch_id, destinations=DESTINATIONS, at_us=day)
        states = [r.state for r in results]
        assert states == ["unknown", "unknown", "unknown" if tomorrow else "planned"]
        day += 86_400 * 1_000_000


def test_one_who_alone_is_above_the_limit_waits(funded: Ledger) -> None:
    crew.change_settings(funded, {"payout_batch_max_micro": 1}, at_us=AT)
    commitments = {f: d.commitment for f, d in DESTINATIONS.items()}
    plan = payouts.plan(funded, rail="csv", threshold_micro=1, destinations=commitments, at_us=AT)
    assert (plan.batch_id, {w.reason for w in plan.waiting}) == (None, {"batch_limit"})


def test_above_the_second_limit_another_operator_approves(funded: Ledger) -> None:
    crew.change_settings(funded, {"payout_second_above_micro": 1_000}, at_us=AT)
    commitments = {f: d.commitment for f, d in DESTINATIONS.items()}
    arguments = {"rail": "csv", "threshold_micro": 1, "destinations": commitments, "at_us": AT}
    plan = payouts.plan(funded, operator="ada", **arguments)
    assert plan.batch_id is not None
    with pytest.raises(DomainError, match="somebody else"):
        payouts.approve(funded, plan.batch_id, operator="ada", at_us=AT)
    assert payouts.approve(funded, plan.batch_id, operator="bob", at_us=AT).state == "approved"
