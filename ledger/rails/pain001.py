"""The bank rail: ISO 20022 customer credit transfers, pain.001.001.09.

Invariants: the bank sees whole files only, and each payment in one of them, once: payments are first collected, one
line each on disk (fsync), and a file is written in one piece when a run is over, from what was collected since the last
file; a written file never changes. The same collection gives the same bytes. What the bank did with a payment is
`unknown` until its status report (pain.002) or the operator says so. A file's date is that of the last run it is made
from: banks refuse one that is past.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from ledger.money import MICRO
from ledger.rails import Answer, OtherPayment, Outcome, Payment
from ledger.rails.bank_account import BankAccount, BankAccountError
from ledger.rails.journal import Journal, Record, write_once
from ledger.rails.pain001_file import amount_text, date_of, document, end_to_end_id
from ledger.rails.pain002 import DEBITED, Report, Status, is_later

NAME: Final = "pain.001"
COLLECTED: Final = ".pain001"
CENT_MICRO: Final = 10_000  # banks pay whole cents
_AMOUNT: Final = re.compile(r"([0-9]{1,18})(?:\.([0-9]{0,5})0*)? ([A-Z]{3})")
MAX_CENTS: Final = 99_999_999_999  # SEPA: 999,999,999.99


class BankAnswerError(ValueError):
    """What is said of a payment cannot be: it is in no file, is another payment, or was answered otherwise before."""

    exit_code = 1


class News(Enum):
    """What an answer of the bank adds to what is known."""

    NOTHING = "known"
    AGAIN = "known, and said again"  # later, or nobody knows when
    OLDER = "said before what is known"  # it was debited, and rejected since
    ANSWER = "new"
    TAKEN_BACK = "taken back"  # it was paid after all
    RETURNED = "came back"  # after it was paid


@dataclass(frozen=True, slots=True)
class Said:
    outcome: Outcome
    reference: str
    created: str = ""  # time of the report; empty when it was the operator
    alone: bool = False  # the report names this very payment, not only its file


@dataclass(frozen=True, slots=True)
class Remark:
    """What a report says of a payment and is not taken for an answer."""

    text: str
    wrong: bool = False  # it cannot be; otherwise there is none yet


@dataclass(frozen=True, slots=True)
class Told:
    said: dict[str, Said]  # by key, like the others
    remarks: dict[str, Remark]


class NoDebtorError(Exception):
    """Nobody said from which account to pay."""

    exit_code = 2


class Pain001Rail:
    def __init__(self, folder: Path, batch: str, *, debtor: BankAccount | None, created_us: int) -> None:
        """`debtor` is needed at the first run and stays; `created_us` is the time of this run, which a file has that is
        made of what it collects."""
        self._folder, self._batch = folder, batch
        self._created_us = created_us
        self._debtor = debtor
        self._collected = Journal(folder / f"{batch}{COLLECTED}")
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
            for torn in self._folder.glob(f".{self._batch}-*.xml.*") if collected else ():
                torn.unlink()  # of a process that was killed while it wrote
            number = len(self.files()) + 1
            rows = [(key, row) for key, row in collected.items() if row["file"] == number]
            if not rows:
                return None
            path = self._folder / f"{self._batch}-{number}.xml"
            created_us = max(int(row.get("created_us", self._created_us)) for _, row in rows)
            write_once(path, document(self._message_id(number), created_us, rows))
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

    def told(self, report: Report) -> Told:
        """What a report says of this payout's payments."""
        said: dict[str, Said] = {}
        remarks: dict[str, Remark] = {}
        paid = self._paid_from(report)
        for key, row in self._collected.all().items():
            name = end_to_end_id(key)
            status = report.of(name, self._message_id(int(row["file"])))
            if status is None:
                continue
            alone = name in report.payments
            if fault := self._wrong(row, status, alone=alone, paid=paid):
                remarks[key] = Remark(fault, wrong=True)
            elif status.outcome is not Outcome.UNKNOWN:
                said[key] = Said(status.outcome, status.reference, report.created, alone)
            else:
                remarks[key] = Remark(self._open(key, row, status))
        return Told(said, remarks)

    def _open(self, key: str, row: Record, status: Status) -> str:
        known = self._answer(key)
        if known is not None:
            more = f"it stays {known['outcome']}"
        else:
            more = (
                f"given to the bank on {date_of(row['created_us'])}"
                if "created_us" in row
                else "it stays open"
            )
        return f"the bank says {status.reference} ({status.why}): nothing final; {more}"

    def _wrong(self, row: Record, status: Status, *, alone: bool, paid: Set[int]) -> str:
        """Why what is said is not of this payment."""
        number = int(row["file"])
        if status.amount is None:
            pass
        elif alone:
            amount = f"{amount_text(int(row['amount_micro']))} {row['unit']}"
            if not _same_amount(status.amount, amount):
                return f"the report has {status.amount!r} for it, and it was {amount}"
        elif not _same_amount(f"{status.amount} {row['unit']}", total := self._total(number)):
            return f"the report has {status.amount!r} as the sum of its file, and that was {total}"
        if not alone and status.outcome is Outcome.FAILED and number in paid:
            return f"its file is rejected as a whole ({status.reference}), and something in it was paid: ask the bank"
        return ""

    def _paid_from(self, report: Report) -> set[int]:
        """Files of which something was paid, as this report or an earlier one says."""
        found = set()
        for key, row in self._collected.all().items():
            known, now = self._answer(key), report.payments.get(end_to_end_id(key))
            confirmed = (now and now.outcome) or (known and Outcome(known["outcome"]))
            if confirmed is Outcome.CONFIRMED:
                found.add(int(row["file"]))
        return found

    def _total(self, file: int) -> str:
        rows = [row for row in self._collected.all().values() if row["file"] == file]
        return f"{amount_text(sum(int(row['amount_micro']) for row in rows))} {rows[0]['unit']}"

    def judge(self, key: str, said: Said) -> News:
        """What is new in that. A bank may take back that it failed, unless it was debited before. That it was paid it
        takes back only by a return: the payment was debited, and is rejected or cancelled by a later report, named by
        itself.

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
        known_created = str(known.get("created", ""))
        if known["outcome"] == said.outcome.value:
            return News.AGAIN if self._is_newer(key, said, known_created) else News.NOTHING
        if said.outcome is Outcome.CONFIRMED:
            older = _debited(said.reference) and is_later(known_created, said.created)
            return News.OLDER if older else News.TAKEN_BACK
        if _debited(str(known["reference"])) and said.alone and is_later(said.created, known_created):
            back = self._answers.get(_came_back(key))
            if back is None:
                return News.RETURNED
            return News.AGAIN if is_later(said.created, str(back["created"])) else News.NOTHING
        raise BankAnswerError(
            f"{said.reference} is said of it now, and it is recorded as {known['outcome']} already. If its money came "
            f"back: streamrp2p payout return"
        )

    def _is_newer(self, key: str, said: Said, known_created: str) -> bool:
        """Than all that is known of it, or nobody can tell."""
        back = self._answers.get(_came_back(key))
        newest = known_created if back is None else str(back["created"])
        same = bool(said.created) and said.created in (known_created, newest)
        return not same and not is_later(newest, said.created)

    def record(self, key: str, said: Said) -> News:
        """Keep what the bank says of a payment. A return is not kept here: it is money, and the ledger's.

        Raises BankAnswerError, OSError.
        """
        news = self.judge(key, said)
        if news is News.ANSWER and not self._answers.add(key, lambda _: _record(said)):
            return self.record(key, said)  # somebody else was faster
        if news is News.TAKEN_BACK:
            self._answers.add(_taken_back(key), lambda _: _record(said))
        return news

    def came_back(self, key: str, said: Said) -> None:
        """The ledger has booked the return that the bank's report tells of: from now on, what was said before it is
        known to be older. Raises OSError."""
        self._answers.add(_came_back(key), lambda _: _record(said))

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


def _record(said: Said) -> Record:
    answer = {"outcome": said.outcome.value, "reference": said.reference}
    return answer | ({"created": said.created} if said.created else {})


def _debited(reference: str) -> bool:
    """It left; whether the recipient has it, the bank does not say."""
    return reference.partition(" ")[0] == DEBITED


def _taken_back(key: str) -> str:
    """Where it stands that a payment was made after all."""
    return f"{key}#2"


def _came_back(key: str) -> str:
    """Where it stands that a report told of its return."""
    return f"{key}#back"


def payments_in(folder: Path) -> dict[str, str]:
    """End-to-end id -> key, of all that was ever collected for the bank. Raises OSError."""
    journals = (Journal(path) for path in folder.glob(f"*{COLLECTED}"))
    return {end_to_end_id(key): key for journal in journals for key in journal.all()}


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
    if len(payment.unit) != 3 or not payment.unit.isascii() or not payment.unit.isupper():
        return "the unit of account is no currency (ISO 4217)"
    try:
        BankAccount.parse(payment.destination)
    except BankAccountError as e:
        return str(e)
    return ""
