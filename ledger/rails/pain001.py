"""The bank rail: ISO 20022 customer credit transfers, pain.001.001.09.

Invariants: the bank sees whole files only, and each payment in one of them, once: payments are first collected, one
line each on disk (fsync), and a file is written in one piece when a run is over, from what was collected since the last
file; a written file never changes. The same collection gives the same bytes. What the bank did with a payment is
`unknown` until its status report (pain.002) or the operator says so. A file's date is that of the last run it is made
from: banks refuse one that is past.

A payment's end-to-end id is 32 characters of the SHA-256 of its key (the standard allows 35).
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from ledger.money import MICRO, decimal_text
from ledger.rails import Answer, OtherPayment, Outcome, Payment
from ledger.rails.bank_account import BankAccount, BankAccountError
from ledger.rails.journal import Journal, Record, write_once
from ledger.rails.pain002 import DEBITED, Report, is_later

NAME: Final = "pain.001"
NAMESPACE: Final = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"
CENT_MICRO: Final = 10_000  # banks pay whole cents
_AMOUNT: Final = re.compile(r"([0-9]{1,18})(?:\.([0-9]{0,5})0*)? ([A-Z]{3})")
MAX_CENTS: Final = 99_999_999_999  # SEPA: 999,999,999.99


class BankAnswerError(ValueError):
    """What is said of a payment cannot be: it is in no file, is another payment, or was answered otherwise before."""

    exit_code = 1


class News(Enum):
    """What an answer of the bank adds to what is known."""

    NOTHING = "known"
    ANSWER = "new"
    TAKEN_BACK = "taken back"  # it was paid after all
    RETURNED = "came back"  # after it was paid


@dataclass(frozen=True, slots=True)
class Said:
    outcome: Outcome
    reference: str
    created: str = ""  # time of the report; empty when it was the operator
    alone: bool = False  # the report names this very payment, not only its file


class NoDebtorError(Exception):
    """Nobody said from which account to pay."""

    exit_code = 2


def end_to_end_id(key: str) -> str:
    return base64.b32encode(hashlib.sha256(key.encode()).digest()[:20]).decode()


class Pain001Rail:
    def __init__(self, folder: Path, batch: str, *, debtor: BankAccount | None, created_us: int) -> None:
        """`debtor` is needed at the first run and stays; `created_us` is the time of this run, which a file has that is
        made of what it collects."""
        self._folder, self._batch = folder, batch
        self._created_us = created_us
        self._debtor = debtor
        self._collected = Journal(folder / f"{batch}.pain001")
        self._answers = Journal(folder / f"{batch}.answers")

    @property
    def name(self) -> str:
        return NAME

    def prepare(self, amounts_micro: Sequence[int]) -> None:
        """Raises NoDebtorError while nobody said who pays."""
        if amounts_micro:
            self._from_account()

    def submit(self, payment: Payment) -> Answer:
        """Collect it for the next file. Raises OtherPayment, OSError, NoDebtorError."""
        fault = _fault(payment)
        if fault:
            return Answer(Outcome.FAILED, fault)
        debtor = self._from_account()
        account = BankAccount.parse(payment.destination)
        new = self._collected.add(
            payment.key,
            lambda _: {
                "file": len(self.files()) + 1,
                "amount_micro": payment.amount_micro,
                "unit": payment.unit,
                "iban": account.iban,
                "bic": account.bic,
                "name": account.name,
                "debtor": [debtor.iban, debtor.bic, debtor.name],
                "created_us": self._created_us,
            },
        )
        if not new:
            known = self._collected.get(payment.key) or {}
            same = {"amount_micro": payment.amount_micro, "unit": payment.unit, "iban": account.iban}
            if known != known | same:
                raise OtherPayment(payment.key)
        return self.look_up(payment.key)

    def look_up(self, key: str) -> Answer:
        said = self._answer(key)
        if said is not None:
            return Answer(Outcome(said["outcome"]), str(said["reference"]))
        known = self._collected.get(key)
        return Answer(Outcome.ABSENT) if known is None else Answer(Outcome.UNKNOWN, end_to_end_id(key))

    def seal(self) -> Path | None:
        """Write what was collected since the last file as a file of its own; None when there is nothing new."""
        with self._collected.locked() as collected:  # nobody adds to the file that is being written
            number = len(self.files()) + 1
            rows = [(key, row) for key, row in collected.items() if row["file"] == number]
            if not rows:
                return None
            path = self._folder / f"{self._batch}-{number}.xml"
            created_us = max(int(row.get("created_us", self._created_us)) for _, row in rows)
            write_once(path, _document(self._message_id(number), created_us, rows))
            return path

    def unsealed(self) -> int:
        """How many collected payments are in no file yet: a run died before its end."""
        sealed = len(self.files())
        return sum(int(row["file"]) > sealed for row in self._collected.all().values())

    def files(self) -> list[Path]:
        """The files for the bank, oldest first."""
        found: list[Path] = []
        while (path := self._folder / f"{self._batch}-{len(found) + 1}.xml").exists():
            found.append(path)
        return found

    def told(self, report: Report) -> dict[str, Said]:
        """What a report says of this payout's payments, by key. Raises BankAnswerError for another amount."""
        found: dict[str, Said] = {}
        for key, row in self._collected.all().items():
            status = report.of(end_to_end_id(key), self._message_id(int(row["file"])))
            if status is None:
                continue
            amount = f"{amount_text(int(row['amount_micro']))} {row['unit']}"
            if status.amount is not None and not _same_amount(status.amount, amount):
                raise BankAnswerError(f"the report has {status.amount!r} for {key}, which was {amount}")
            alone = end_to_end_id(key) in report.payments
            found[key] = Said(status.outcome, status.reference, report.created, alone)
        return found

    def judge(self, key: str, said: Said) -> News:
        """What is new in that. A bank may take back that it failed. That it was paid it takes back only by a return:
        the payment was debited, and is rejected or cancelled by a later report, named by itself.

        Raises BankAnswerError for what cannot be, and for a payment that no file holds.
        """
        sealed = len(self.files())
        row = self._collected.get(key)
        if row is None or int(row["file"]) > sealed:
            raise BankAnswerError("no file for the bank holds this payment")
        if said.outcome not in (Outcome.CONFIRMED, Outcome.FAILED):
            raise BankAnswerError("a bank's final answer is confirmed or failed")
        known = self._answer(key)
        if known is None:
            return News.ANSWER
        if known["outcome"] == said.outcome.value:
            return News.NOTHING
        if said.outcome is Outcome.CONFIRMED:
            return News.TAKEN_BACK
        debited = str(known["reference"]).partition(" ")[0] == DEBITED
        if debited and said.alone and is_later(said.created, str(known.get("created", ""))):
            return News.RETURNED
        raise BankAnswerError(
            f"payment {key} is recorded as {known['outcome']} already. If its money came back: "
            f"streamrp2p payout return"
        )

    def record(self, key: str, said: Said) -> News:
        """Keep what the bank says of a payment. A return is not kept here: it is money, and the ledger's.

        Raises BankAnswerError, OSError.
        """
        news = self.judge(key, said)
        answer = {"outcome": said.outcome.value, "reference": said.reference}
        if said.created:
            answer["created"] = said.created
        if news is News.ANSWER and not self._answers.add(key, lambda _: answer):
            return self.record(key, said)  # somebody else was faster
        if news is News.TAKEN_BACK:
            self._answers.add(_taken_back(key), lambda _: answer)
        return news

    def _answer(self, key: str) -> Record | None:
        return self._answers.get(_taken_back(key)) or self._answers.get(key)

    def _message_id(self, file: int) -> str:
        return f"{self._batch.replace('-', '')[:28]}-{file}"

    def _from_account(self) -> BankAccount:
        first = next(iter(self._collected.all().values()), None)
        if first is not None:
            kept = BankAccount(*first["debtor"])
            if self._debtor not in (None, kept):
                raise NoDebtorError("this payout is paid from another account already")
            return kept
        if self._debtor is None:
            raise NoDebtorError("say from which account to pay")
        return self._debtor


def _taken_back(key: str) -> str:
    """Where it stands that a payment was made after all."""
    return f"{key}#2"


def _same_amount(said: str, amount: str) -> bool:
    """Whether both are as much of the same currency: "12.5 EUR" is "12.50 EUR"."""
    try:
        return _decimal(said) == _decimal(amount)
    except ValueError:
        return False


def _decimal(amount: str) -> tuple[int, str]:
    """In millionths."""
    found = _AMOUNT.fullmatch(amount)
    if found is None:
        raise ValueError("no amount")
    whole, fraction, unit = found.groups()
    return int(whole) * MICRO + int((fraction or "").ljust(6, "0")), unit


def _fault(payment: Payment) -> str:
    """Why no bank can be given this payment; empty when it can. Never holds the destination."""
    cents, rest = divmod(payment.amount_micro, CENT_MICRO)
    if rest or not 0 < cents <= MAX_CENTS:
        return "a bank pays whole cents, at most 999999999.99"
    if len(payment.unit) != 3 or not payment.unit.isascii() or not payment.unit.isalpha():
        return "the unit of account is no currency (ISO 4217)"
    try:
        BankAccount.parse(payment.destination)
    except BankAccountError as e:
        return str(e)
    return ""


def amount_text(amount_micro: int) -> str:
    """Exact, with two decimals."""
    return decimal_text(amount_micro)[:-4]


def _document(message_id: str, created_us: int, rows: list[tuple[str, dict[str, Any]]]) -> bytes:
    """The elements in the order of the schema, each escaped, UTF-8, one line each."""
    created = datetime.fromtimestamp(created_us // 1_000_000, UTC)
    total = amount_text(sum(int(row["amount_micro"]) for _, row in rows))
    iban, bic, name = rows[0][1]["debtor"]
    unit = str(rows[0][1]["unit"])
    sums = [_e("NbOfTxs", str(len(rows))), _e("CtrlSum", total)]
    header = _w(
        "GrpHdr",
        [
            _e("MsgId", message_id),
            _e("CreDtTm", created.strftime("%Y-%m-%dT%H:%M:%SZ")),
            *sums,
            *_w("InitgPty", [_e("Nm", name)]),
        ],
    )
    service = _w("PmtTpInf", _w("SvcLvl", [_e("Cd", "SEPA")])) if unit == "EUR" else []
    payments = _w(
        "PmtInf",
        [
            _e("PmtInfId", message_id),
            _e("PmtMtd", "TRF"),
            *sums,
            *service,
            *_w("ReqdExctnDt", [_e("Dt", created.strftime("%Y-%m-%d"))]),
            *_w("Dbtr", [_e("Nm", name)]),
            *_w("DbtrAcct", _w("Id", [_e("IBAN", iban)])),
            *_w("DbtrAgt", _institution(bic)),
            _e("ChrgBr", "SLEV" if unit == "EUR" else "SHAR"),
            *(line for key, row in rows for line in _transfer(key, row)),
        ],
    )
    body = _w("CstmrCdtTrfInitn", [*header, *payments])
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<Document xmlns="{NAMESPACE}">',
        *body,
        "</Document>",
    ]
    return ("\n".join(lines) + "\n").encode()


def _transfer(key: str, row: dict[str, Any]) -> list[str]:
    agent = _w("CdtrAgt", _institution(row["bic"])) if row["bic"] else []
    unit, amount = escape(str(row["unit"])), amount_text(int(row["amount_micro"]))
    return _w(
        "CdtTrfTxInf",
        [
            *_w("PmtId", [_e("EndToEndId", end_to_end_id(key))]),
            *_w("Amt", [f'<InstdAmt Ccy="{unit}">{amount}</InstdAmt>']),
            *agent,
            *_w("Cdtr", [_e("Nm", row["name"])]),
            *_w("CdtrAcct", _w("Id", [_e("IBAN", row["iban"])])),
            *_w("RmtInf", [_e("Ustrd", f"StreamrP2P payout {key.replace(':', ' line ')}"[:140])]),
        ],
    )


def _institution(bic: str) -> list[str]:
    inner = [_e("BICFI", bic)] if bic else _w("Othr", [_e("Id", "NOTPROVIDED")])
    return _w("FinInstnId", inner)


def _e(tag: str, text: str) -> str:
    return f"<{tag}>{escape(text)}</{tag}>"


def _w(tag: str, inner: Iterable[str]) -> list[str]:
    return [f"<{tag}>", *inner, f"</{tag}>"]
