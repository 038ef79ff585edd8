"""The file for the bank, ISO 20022 pain.001.001.09: its bytes.

Invariant: the elements stand in the order of the schema, each text escaped; the same payments give the same bytes.

A payment's end-to-end id is 32 characters of the SHA-256 of its key (the standard allows 35).
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from xml.sax.saxutils import escape

from ledger.money import decimal_text

NAMESPACE: Final = "urn:iso:std:iso:20022:tech:xsd:pain.001.001.09"


def end_to_end_id(key: str) -> str:
    return base64.b32encode(hashlib.sha256(key.encode()).digest()[:20]).decode()


def amount_text(amount_micro: int) -> str:
    """Exact, with two decimals."""
    return decimal_text(amount_micro)[:-4]


def date_of(at_us: int) -> str:
    """The day, in UTC."""
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y-%m-%d")


def document(message_id: str, created_us: int, rows: Sequence[tuple[str, dict[str, Any]]]) -> bytes:
    """Of what was collected for one file; UTF-8, one line an element."""
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
            *_w("ReqdExctnDt", [_e("Dt", date_of(created_us))]),
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
