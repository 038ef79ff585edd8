"""Reading a bank's payment status report (ISO 20022 pain.002, any version) for its verdict on each payment.

Invariant: only a status that is final counts: settled is confirmed, rejected or cancelled is failed; of all others
it is told what they say. What is said of a payment goes before what is said of its group or file; what is said twice,
and differs, is no verdict. A report is untrusted: its size is bounded and it may declare no entities.

There is no status for a payment that comes back. But ACSC says no more than that the debtor's account was debited: a
bank that reports the return here (most do in camt.054) rejects or cancels the payment by its own id in a later report.
The rejection is of the payment as a whole; charges in the report are for information and settled by themselves.

A bank that is given a file twice rejects the second copy, under the ids of the first. Taken for a verdict, that would
give away again what the first copy pays: a rejection as a duplicate says nothing of the payment.
"""

import re
from collections.abc import Iterator
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
# Reason codes of what the bank had before (ExternalStatusReason1Code).
COPIES: Final = frozenset({"AM05", "DUPL", "DU01", "DU02", "DU03", "DU04", "DU05"})
# What the usual statuses that are not final say (ExternalPaymentTransactionStatus1Code and ...GroupStatus1Code).
NOT_FINAL: Final = {
    "RCVD": "received",
    "PDNG": "pending",
    "ACTC": "checked, not settled",
    "ACCP": "checked, not settled",
    "ACFC": "checked, not settled",
    "ACSP": "being settled",
    "ACWC": "accepted with a change",
    "ACWP": "accepted, not posted yet",
    "PATC": "waits for more signatures",
    "PART": "accepted in part, not said which",
}
_CODE: Final = re.compile(r"[A-Z0-9]{1,8}")
_MAX_SAID_CHARS: Final = 40


class StatusReportError(ValueError):
    """Bytes that are no status report."""

    exit_code = 1


class Status(NamedTuple):
    outcome: Outcome  # UNKNOWN: no verdict, see `why`
    reference: str  # the bank's codes: of the status, and of its reason where it gives one
    # Of the payment as the bank has it, where it says so: "12.34 EUR"; of a file its control sum: "12.34".
    amount: str | None = None
    why: str = ""  # for people, when it is no verdict


@dataclass(frozen=True, slots=True)
class Report:
    payments: dict[str, Status]  # end-to-end id -> what is said of it
    parts: dict[str, Status]  # id of a file's payment information -> of all payments in it
    groups: dict[str, Status]  # id of a file (message) -> of all payments in it
    created: str = ""  # ISO 8601, as the bank wrote it
    nameless: int = 0  # statuses of payments that it does not name

    def of(self, end_to_end_id: str, message_id: str) -> Status | None:
        """A file has one payment information, of the same id."""
        part, group = self.parts.get(message_id), self.groups.get(message_id)
        if part and group and Outcome.UNKNOWN not in (part.outcome, group.outcome):
            part = _agreed(group, part)
        return self.payments.get(end_to_end_id) or part or group


def read_report(data: bytes) -> Report:
    """Raises StatusReportError."""
    if len(data) > MAX_REPORT_BYTES:
        raise StatusReportError("the report is too large")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\x00" in data[:4]:
        raise StatusReportError("a report declares no entities and is UTF-8")
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 - no entities, bounded size
    except (ElementTree.ParseError, LookupError, ValueError) as e:
        raise StatusReportError("the report is not XML, or not all of it") from e
    payments: dict[str, Status] = {}
    parts: dict[str, Status] = {}
    groups: dict[str, Status] = {}
    nameless = 0
    header = next((e for e in root.iter() if _local(e.tag) == "GrpHdr"), None)
    created = next((e.text or "" for e in header or () if _local(e.tag) == "CreDtTm"), "").strip()
    for element, copy in _stated(root):
        kind = _local(element.tag)
        id_tag, status_tag = _KINDS[kind]
        fields = {_local(child.tag): (child.text or "").strip() for child in element}
        name, said = fields.get(id_tag, ""), fields.get(status_tag, "")
        of_payment = kind == _PAYMENT
        if not name:
            nameless += of_payment
        elif said or of_payment:  # of a file that is only named, nothing is said
            into = {_PAYMENT: payments, _PART: parts}.get(kind, groups)
            amount = _amount(element) if of_payment else fields.get("OrgnlCtrlSum")
            into[name] = _agreed(into.get(name), _status(element, said, amount, copy=copy))
    return Report(payments, parts, groups, created[:MAX_TIME_CHARS], nameless)


def _stated(root: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, bool]]:
    """Each element that has a status, and whether the report calls it, or what contains it, a second copy."""
    everything = any(_is_copy(e) for e in root.iter() if _local(e.tag) == _GROUP)
    waiting = [(root, everything)]
    while waiting:  # no recursion: how deep it is, the report says
        element, copy = waiting.pop()
        if _local(element.tag) in _KINDS:
            copy = copy or _is_copy(element)
            yield element, copy
        waiting += [(child, copy) for child in reversed(element)]


def _status(element: ElementTree.Element, said: str, amount: str | None, *, copy: bool) -> Status:
    outcome = FINAL.get(said)
    code = said if _CODE.fullmatch(said) else repr(said[:_MAX_SAID_CHARS])
    reference = " ".join(filter(None, (code, next(iter(_reasons(element)), ""))))
    if outcome is Outcome.FAILED and copy:
        why = "rejected as a second copy of what the bank had before: of the first that says nothing"
        return Status(Outcome.UNKNOWN, reference, None, why)
    if outcome is None:
        return Status(Outcome.UNKNOWN, reference, None, NOT_FINAL.get(said, "no status that is known here"))
    return Status(outcome, reference, amount)


def _agreed(known: Status | None, status: Status) -> Status:
    if known is None:
        return status
    amounts = {known.amount, status.amount} - {None}
    if (known.outcome, known.why) == (status.outcome, status.why) and len(amounts) < 2:
        return known if known.amount is not None else status
    both = " and ".join(sorted({known.reference, status.reference}))
    return Status(Outcome.UNKNOWN, both[:_MAX_SAID_CHARS], None, "the report says two things of it")


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


_GROUP: Final = "OrgnlGrpInfAndSts"
_PART: Final = "OrgnlPmtInfAndSts"
_PAYMENT: Final = "TxInfAndSts"
# Element -> where in it stand what it is about, and its status.
_KINDS: Final = {
    _GROUP: ("OrgnlMsgId", "GrpSts"),
    _PART: ("OrgnlPmtInfId", "PmtInfSts"),
    _PAYMENT: ("OrgnlEndToEndId", "TxSts"),
}


def _reasons(element: ElementTree.Element) -> list[str]:
    """The reason codes of its own, not of what it contains."""
    own = (child for child in element if _local(child.tag) == "StsRsnInf")
    codes = [(c.text or "").strip() for info in own for c in info.iter() if _local(c.tag) == "Cd"]
    return [c for c in codes if _CODE.fullmatch(c)]


def _is_copy(element: ElementTree.Element) -> bool:
    return not COPIES.isdisjoint(_reasons(element))


def _amount(transaction: ElementTree.Element) -> str | None:
    for child in transaction.iter():
        if _local(child.tag) == "InstdAmt":
            return f"{(child.text or '').strip()} {child.get('Ccy', '')}"
    return None


def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2]
