"""The spool's bytes: a magic line, then records of length, CRC-32, kind and payload. No IO here.

Invariant: for every prefix of a spool file, `recover` finds every record that lies completely within the prefix, and
nothing else. A torn tail (crash, full disk, zero-filled blocks) ends the recovery; it never raises.

record  = length u32 (kind + payload) | crc32 u32 (of kind + payload) | kind u8 | payload     (big-endian)
RECEIPT = signed receipt (205 bytes): accepted by this node, to be answered by the hub
DONE    = SHA-256 over that receipt's body (32 bytes): the hub has answered it
TICKET  = signed ticket (254 bytes): this node has served a segment with it
"""

import hashlib
import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from ledger.receipt import BITMAP_BITS, SignedReceipt
from ledger.receipt import SIGNED_BYTES as RECEIPT_BYTES
from ledger.ticket import SIGNED_BYTES as TICKET_BYTES
from ledger.ticket import SignedTicket, WireError

MAGIC: Final = b"streamrp2p/spool/v1\n"
_HEAD: Final = struct.Struct(">II")


class Kind(IntEnum):
    RECEIPT = 1
    DONE = 2
    TICKET = 3


_PAYLOAD_BYTES: Final = {Kind.RECEIPT: RECEIPT_BYTES, Kind.DONE: 32, Kind.TICKET: TICKET_BYTES}
MAX_RECORD_BYTES: Final = _HEAD.size + 1 + max(_PAYLOAD_BYTES.values())


def record(kind: Kind, payload: bytes) -> bytes:
    framed = bytes([kind]) + payload
    return _HEAD.pack(len(framed), zlib.crc32(framed)) + framed


def body_hash(receipt: SignedReceipt) -> bytes:
    """Names a receipt by its body: signatures may be randomised (Safari), bodies are not."""
    return hashlib.sha256(receipt.receipt.body()).digest()


def covers(new: SignedReceipt, old: SignedReceipt) -> bool:
    """Whether `new` claims every segment that `old` claims (receipts of the same ticket)."""
    shift = old.receipt.base_sequence - new.receipt.base_sequence
    has = int.from_bytes(new.receipt.bitmap, "little")
    wants = int.from_bytes(old.receipt.bitmap, "little")
    if abs(shift) >= BITMAP_BITS:
        return wants == 0
    if shift < 0:
        has <<= -shift
    else:
        wants <<= shift
    return not wants & ~has


@dataclass(slots=True)
class Recovered:
    """What a spool file says. `receipts` and `tickets` are in the order they were written."""

    receipts: dict[bytes, SignedReceipt] = field(default_factory=dict)  # by body hash; not yet answered
    tickets: dict[bytes, SignedTicket] = field(default_factory=dict)  # by ticket hash
    of_ticket: dict[bytes, list[bytes]] = field(
        default_factory=dict
    )  # ticket hash -> body hashes in `receipts`
    good_bytes: int = 0  # the file is sound up to here
    records: int = 0


def recover(data: bytes) -> Recovered:
    """Read as much of a spool file as is sound."""
    found = Recovered()
    if not data.startswith(MAGIC):
        return found
    at = found.good_bytes = len(MAGIC)
    while at + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, at)
        framed = data[at + _HEAD.size : at + _HEAD.size + length]
        if not 1 < length < MAX_RECORD_BYTES or len(framed) != length or zlib.crc32(framed) != crc:
            break
        if not _apply(found, framed[0], framed[1:]):
            break
        at += _HEAD.size + length
        found.good_bytes = at
        found.records += 1
    return found


def _apply(found: Recovered, kind: int, payload: bytes) -> bool:
    if kind not in _PAYLOAD_BYTES or len(payload) != _PAYLOAD_BYTES[Kind(kind)]:
        return False
    try:
        if kind == Kind.RECEIPT:
            _supersede(found, SignedReceipt.decode(payload))
        elif kind == Kind.TICKET:
            ticket = SignedTicket.decode(payload)
            found.tickets[ticket.ticket.hash] = ticket
        else:
            found.receipts.pop(payload, None)
    except WireError:
        return False
    return True


def _supersede(found: Recovered, receipt: SignedReceipt) -> None:
    """A receipt stands for every earlier one of its ticket that claims no more, also when it is answered later."""
    names = found.of_ticket.setdefault(receipt.receipt.ticket_hash, [])
    for name in names[:]:
        if name not in found.receipts or covers(receipt, found.receipts[name]):
            found.receipts.pop(name, None)
            names.remove(name)
    name = body_hash(receipt)
    found.receipts[name] = receipt
    names.append(name)


def dump(receipts: list[SignedReceipt], tickets: list[SignedTicket]) -> bytes:
    """A whole spool file with exactly this in it."""
    parts = [MAGIC]
    parts += [record(Kind.TICKET, t.encode()) for t in tickets]
    parts += [record(Kind.RECEIPT, r.encode()) for r in receipts]
    return b"".join(parts)
