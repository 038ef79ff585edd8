"""Reading a bank's payment status report (ISO 20022 pain.002, any version) for its verdict on each payment.

Invariant: only a status that is final counts: settled is confirmed, rejected or cancelled is failed; all others say
nothing yet. What is said of a payment goes before what is said of its group or file. A report is untrusted: its size is
bounded and it may declare no entities.

There is no status for a payment that comes back. But ACSC says no more than that the debtor's account was debited: a
bank that reports the return here (most do in camt.054) rejects or cancels the payment by its own id in a later report.
The rejection is of the payment as a whole; charges in the report are for information and settled by themselves.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from xml.etree import ElementTree

from ledger.rails import Outcome

MAX_REPORT_BYTES: Final = 16 * 1024 * 1024
MAX_TIME_CHARS: Final = 40
FINAL: Final = {
    "ACSC": Outcome.CONFIRMED,  # settlement on the debtor's account completed
    "ACCC": Outcome.CONFIRMED,  # settlement on the creditor's account completed
    "RJCT": Outcome.FAILED,
    "CANC": Outcome.FAILED,
}
DEBITED: Final = "ACSC"
# What the usual reason codes of a return stand for (ISO 20022, ExternalReturnReason1Code).
REASONS: Final = {
    "AC01": "account number wrong",
    "AC03": "account number wrong",
    "AC04": "account closed",
    "AC06": "account blocked",
    "AC07": "account closed",
    "AG01": "account takes no transfers",
    "BE01": "name and account do not belong together",
    "CUST": "recipient refused it",
    "FOCR": "called back",
    "MS02": "recipient refused it",
    "RC01": "bank code wrong",
}
_CODE: Final = re.compile(r"[A-Z0-9]{1,8}")


class StatusReportError(ValueError):
    """Bytes that are no status report."""

    exit_code = 1


class Status(NamedTuple):
    outcome: Outcome
    reference: str  # the bank's codes: of the status, and of its reason where it gives one
    amount: str | None = None  # of the payment as the bank has it, where it says so: "12.34 EUR"


@dataclass(frozen=True, slots=True)
class Report:
    payments: dict[str, Status]  # end-to-end id -> its final status
    groups: dict[str, Status]  # id of a file (message) or of its payment information -> of all payments in it
    undecided: frozenset[str]  # end-to-end ids with another status
    created: str = ""  # ISO 8601, as the bank wrote it

    def of(self, end_to_end_id: str, message_id: str) -> Status | None:
        if end_to_end_id in self.undecided:
            return None
        return self.payments.get(end_to_end_id) or self.groups.get(message_id)


def read_report(data: bytes) -> Report:
    """Raises StatusReportError."""
    if len(data) > MAX_REPORT_BYTES:
        raise StatusReportError("the report is too large")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\x00" in data[:4]:
        raise StatusReportError("a report declares no entities and is UTF-8")
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 - no entities, bounded size
    except (ElementTree.ParseError, LookupError, ValueError) as e:
        raise StatusReportError("the report is not XML") from e
    payments: dict[str, Status] = {}
    groups: dict[str, Status] = {}
    undecided: set[str] = set()
    header = next((e for e in root.iter() if _local(e.tag) == "GrpHdr"), None)
    created = next((e.text or "" for e in header or () if _local(e.tag) == "CreDtTm"), "").strip()
    for element in root.iter():
        kind = _local(element.tag)
        if kind not in _KINDS:
            continue
        id_tag, status_tag = _KINDS[kind]
        fields = {_local(child.tag): (child.text or "").strip() for child in element}
        name, said = fields.get(id_tag, ""), fields.get(status_tag, "")
        outcome = FINAL.get(said)
        if name and outcome is None and kind == "TxInfAndSts":
            undecided.add(name)
        if not name or outcome is None:
            continue
        reference = " ".join(filter(None, (said, _reason(element))))
        status = Status(outcome, reference, _amount(element) if kind == "TxInfAndSts" else None)
        known = (payments if kind == "TxInfAndSts" else groups).setdefault(name, status)
        if (known.outcome, known.amount) != (status.outcome, status.amount):
            raise StatusReportError("the report gives one payment two outcomes")
    if undecided & payments.keys():
        raise StatusReportError("the report gives one payment two outcomes")
    return Report(payments, groups, frozenset(undecided), created[:MAX_TIME_CHARS])


def is_later(time: str, than: str) -> bool:
    """Of two times in reports; False when that cannot be told."""
    try:
        return datetime.fromisoformat(time) > datetime.fromisoformat(than)
    except (TypeError, ValueError):  # one has a time zone and the other has none; one is no time
        return False


def why_returned(reference: str) -> str:
    """For the friend: the reason code of a status in words, where it is a usual one."""
    code = reference.rpartition(" ")[2]
    said = REASONS.get(code)
    return f"{said} ({code})" if said else f"the bank says {reference}"


# Element -> where in it stand what it is about, and its status.
_KINDS: Final = {
    "OrgnlGrpInfAndSts": ("OrgnlMsgId", "GrpSts"),
    "OrgnlPmtInfAndSts": ("OrgnlPmtInfId", "PmtInfSts"),
    "TxInfAndSts": ("OrgnlEndToEndId", "TxSts"),
}


def _reason(element: ElementTree.Element) -> str:
    """The first reason code of its own, not of what it contains."""
    own = (child for child in element if _local(child.tag) == "StsRsnInf")
    codes = [(c.text or "") for info in own for c in info.iter() if _local(c.tag) == "Cd"]
    return next((c for c in codes if _CODE.fullmatch(c)), "")


def _amount(transaction: ElementTree.Element) -> str | None:
    for child in transaction.iter():
        if _local(child.tag) == "InstdAmt":
            return f"{(child.text or '').strip()} {child.get('Ccy', '')}"
    return None


def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2]
