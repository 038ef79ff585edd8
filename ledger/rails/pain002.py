"""Reading a bank's payment status report (ISO 20022 pain.002, any version) for its verdict on each payment.

Invariant: only a status that is final counts: settled is confirmed, rejected or cancelled is failed; all others say
nothing yet. A report is untrusted: its size is bounded and it may declare no entities.
"""

import re
from typing import Final
from xml.etree import ElementTree

from ledger.rails import Outcome

MAX_REPORT_BYTES: Final = 16 * 1024 * 1024
FINAL: Final = {
    "ACSC": Outcome.CONFIRMED,  # settlement on the debtor's account completed
    "ACCC": Outcome.CONFIRMED,  # settlement on the creditor's account completed
    "RJCT": Outcome.FAILED,
    "CANC": Outcome.FAILED,
}
_CODE: Final = re.compile(r"[A-Z0-9]{1,8}")


class StatusReportError(ValueError):
    """Bytes that are no status report."""

    exit_code = 1


def read_report(data: bytes) -> dict[str, tuple[Outcome, str]]:
    """End-to-end id -> (outcome, the bank's code) of every payment with a final status. Raises StatusReportError."""
    if len(data) > MAX_REPORT_BYTES:
        raise StatusReportError("the report is too large")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\x00" in data[:4]:
        raise StatusReportError("a report declares no entities and is UTF-8")
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 - no entities, bounded size
    except (ElementTree.ParseError, LookupError, ValueError) as e:
        raise StatusReportError("the report is not XML") from e
    found: dict[str, tuple[Outcome, str]] = {}
    for transaction in root.iter():
        if _local(transaction.tag) != "TxInfAndSts":
            continue
        fields = {_local(child.tag): (child.text or "").strip() for child in transaction}
        outcome = FINAL.get(fields.get("TxSts", ""))
        name = fields.get("OrgnlEndToEndId", "")
        if outcome is None or not name:
            continue
        codes = [(c.text or "") for c in transaction.iter() if _local(c.tag) == "Cd"]
        reason = next((c for c in codes if _CODE.fullmatch(c)), "")
        known = found.setdefault(name, (outcome, " ".join(filter(None, (fields["TxSts"], reason)))))
        if known[0] is not outcome:
            raise StatusReportError("the report gives one payment two outcomes")
    return found


def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2]
