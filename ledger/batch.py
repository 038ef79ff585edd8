"""Batch: the latest receipt per ticket that a node sends to the hub, signed by the node.

Wire format `restream/batch/v2` (docs/protocol.md): 83-byte body, 64-byte signature over domain line and body, then
`count` signed receipts of 205 bytes. The body names them by one SHA-256 over all their bytes; in version 1, which is
read for ever and written no more to a hub that knows better, by an RFC 6962 root (ADR 0033).
Invariant: a batch that decodes has exactly the receipts its node signed for.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from ledger import merkle
from ledger.keys import SIGNATURE_BYTES, KeyPair, verify
from ledger.receipt import SIGNED_BYTES as RECEIPT_BYTES
from ledger.ticket import WireError

VERSION: Final = 2
DOMAINS: Final = {1: b"restream/batch/v1\n", 2: b"restream/batch/v2\n"}  # by version
MAX_RECEIPTS: Final = 200  # one event holds a whole batch within the 65,535 bytes of a log entry
_BODY: Final = struct.Struct(">B32sQQH32s")
BODY_BYTES: Final = _BODY.size
HEADER_BYTES: Final = BODY_BYTES + SIGNATURE_BYTES
MAX_BYTES: Final = HEADER_BYTES + MAX_RECEIPTS * RECEIPT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    node_key: bytes  # 32 bytes
    window_start_s: int  # Unix seconds, the node's clock: for people, nothing is decided by it
    window_end_s: int
    data: bytes  # signed receipts, 205 bytes each, one after the other, not yet decoded
    signature: bytes  # 64 bytes
    version: int

    @classmethod
    def sign(
        cls,
        node: KeyPair,
        window_start_s: int,
        window_end_s: int,
        receipts: Sequence[bytes],
        *,
        version: int = VERSION,
    ) -> Self:
        """Raises WireError for more receipts than a batch holds, and for what is no receipt by its length."""
        data = b"".join(receipts)
        if len(data) != len(receipts) * RECEIPT_BYTES:
            raise WireError(f"a signed receipt is {RECEIPT_BYTES} bytes")
        body = _pack(version, node.public_key, window_start_s, window_end_s, data)
        return cls(
            node_key=node.public_key,
            window_start_s=window_start_s,
            window_end_s=window_end_s,
            data=data,
            signature=node.sign(DOMAINS[version], body),
            version=version,
        )

    def body(self) -> bytes:
        """The 83 signed bytes."""
        return _pack(self.version, self.node_key, self.window_start_s, self.window_end_s, self.data)

    @property
    def receipts(self) -> tuple[bytes, ...]:
        """The signed receipts one by one. Made anew each time."""
        return _split(self.data)

    @property
    def hash(self) -> bytes:
        """SHA-256 over domain line and body: a batch sent again is known by it."""
        return batch_hash(self.body())

    def encode(self) -> bytes:
        return self.body() + self.signature + self.data

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises WireError unless lengths, version, hash of the receipts and the node's signature all hold."""
        if not HEADER_BYTES <= len(data) <= MAX_BYTES:
            raise WireError(f"a batch is {HEADER_BYTES} to {MAX_BYTES} bytes, not {len(data)}")
        body = data[:BODY_BYTES]
        version, node_key, start, end, count, digest = _BODY.unpack(body)
        if version not in DOMAINS:
            raise WireError(f"unknown batch version {version}")
        if len(data) != HEADER_BYTES + count * RECEIPT_BYTES:
            raise WireError(f"a batch of {count} receipts is not {len(data)} bytes")
        receipts = data[HEADER_BYTES:]
        if count > MAX_RECEIPTS or receipts_digest(version, receipts) != digest:
            raise WireError("the batch does not have the receipts that its body names")
        signature = data[BODY_BYTES:HEADER_BYTES]
        if not verify(node_key, DOMAINS[version], body, signature):
            raise WireError("the batch is not signed by its node")
        return cls(
            node_key=node_key,
            window_start_s=start,
            window_end_s=end,
            data=receipts,
            signature=signature,
            version=version,
        )


def receipts_digest(version: int, receipts: bytes) -> bytes:
    """What a body of this version says of its receipts, given one after the other: 32 bytes."""
    return merkle.root(_split(receipts)) if version == 1 else hashlib.sha256(receipts).digest()


def batch_hash(header: bytes) -> bytes:
    """SHA-256 over domain line and body, from bytes that begin with the body (a header has the signature behind it).

    Never raises: that a recorded header has a version is for those to say who judge it.
    """
    return hashlib.sha256(DOMAINS.get(header[0], b"") + header[:BODY_BYTES]).digest()


def _split(receipts: bytes) -> tuple[bytes, ...]:
    return tuple([receipts[i : i + RECEIPT_BYTES] for i in range(0, len(receipts), RECEIPT_BYTES)])


def _pack(version: int, node_key: bytes, start_s: int, end_s: int, receipts: bytes) -> bytes:
    count = len(receipts) // RECEIPT_BYTES
    if count > MAX_RECEIPTS:
        raise WireError(f"a batch holds at most {MAX_RECEIPTS} receipts")
    return _BODY.pack(version, node_key, start_s, end_s, count, receipts_digest(version, receipts))
