"""Receipt: the viewer's signed, cumulative statement of which segments of a ticket arrived.

Wire format `restream/receipt/v1` (docs/protocol.md): 141-byte body, then a 64-byte signature over `DOMAIN + body`.
Bit i of the 512-bit bitmap (byte i // 8, mask 1 << i % 8) says that segment `base_sequence + i` arrived. The digest
is SHA-256 over the sequence-ordered concatenation of SHA-256(ticket nonce + segment bytes) of the set bits.
Invariant: `Receipt.decode(r.encode())` is `r`.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from ledger.keys import SIGNATURE_BYTES, KeyPair, verify
from ledger.ticket import WireError

DOMAIN: Final = b"restream/receipt/v1\n"
VERSION: Final = 1
BITMAP_BITS: Final = 512
_BODY: Final = struct.Struct(">B32sIQ64s32s")
BODY_BYTES: Final = _BODY.size
SIGNED_BYTES: Final = BODY_BYTES + SIGNATURE_BYTES
MAX_BASE_SEQUENCE: Final = (1 << 63) - 1 - BITMAP_BITS


def segment_digest(nonce: bytes, segment: bytes | memoryview) -> bytes:
    """SHA-256(nonce + segment bytes): what only somebody who has the bytes can compute."""
    h = hashlib.sha256(nonce)
    h.update(segment)
    return h.digest()


def fold_digests(digests: Iterable[bytes]) -> bytes:
    """The receipt's digest from the per-segment digests in sequence order."""
    h = hashlib.sha256()
    for d in digests:
        h.update(d)
    return h.digest()


def to_bitmap(base_sequence: int, sequences: Iterable[int]) -> bytes:
    """64 bytes. Raises WireError for a sequence outside [base, base + 512)."""
    bits = 0
    for s in sequences:
        if not 0 <= s - base_sequence < BITMAP_BITS:
            raise WireError(f"sequence {s} is outside the bitmap that starts at {base_sequence}")
        bits |= 1 << (s - base_sequence)
    return bits.to_bytes(BITMAP_BITS // 8, "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    ticket_hash: bytes  # 32 bytes
    counter: int  # u32, grows with every receipt of a ticket
    base_sequence: int
    bitmap: bytes  # 64 bytes
    digest: bytes  # 32 bytes

    def body(self) -> bytes:
        """The 141 signed bytes."""
        return _BODY.pack(
            VERSION, self.ticket_hash, self.counter, self.base_sequence, self.bitmap, self.digest
        )

    def sequences(self) -> list[int]:
        """The claimed segments, ascending."""
        bits = int.from_bytes(self.bitmap, "little")
        found = []
        while bits:
            low = bits & -bits
            found.append(self.base_sequence + low.bit_length() - 1)
            bits ^= low
        return found

    def sign(self, viewer_key: KeyPair) -> "SignedReceipt":
        return SignedReceipt(self, viewer_key.sign(DOMAIN, self.body()))

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Raises WireError when `body` is not a receipt body of a known version."""
        if len(body) != BODY_BYTES:
            raise WireError(f"a receipt body is {BODY_BYTES} bytes, not {len(body)}")
        version, ticket_hash, counter, base, bitmap, digest = _BODY.unpack(body)
        if version != VERSION:
            raise WireError(f"unknown receipt version {version}")
        if base > MAX_BASE_SEQUENCE:
            raise WireError("base sequence is out of range")
        return cls(ticket_hash=ticket_hash, counter=counter, base_sequence=base, bitmap=bitmap, digest=digest)


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    receipt: Receipt
    signature: bytes  # 64 bytes

    def encode(self) -> bytes:
        return self.receipt.body() + self.signature

    def verified_by(self, viewer_key: bytes) -> bool:
        return verify(viewer_key, DOMAIN, self.receipt.body(), self.signature)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises WireError for anything but exactly one signed receipt."""
        if len(data) != SIGNED_BYTES:
            raise WireError(f"a signed receipt is {SIGNED_BYTES} bytes, not {len(data)}")
        return cls(Receipt.decode_body(data[:BODY_BYTES]), data[BODY_BYTES:])
