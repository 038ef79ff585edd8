"""Batch: the latest receipt per ticket that a node sends to the hub, signed by the node.

Wire format `restream/batch/v1` (docs/protocol.md): 83-byte body, 64-byte signature over `DOMAIN + body`, then `count`
signed receipts of 205 bytes. The body's Merkle root (RFC 6962) is over those receipts in order.
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

DOMAIN: Final = b"restream/batch/v1\n"
VERSION: Final = 1
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
    receipts: tuple[bytes, ...]  # signed receipts, 205 bytes each, not yet decoded
    signature: bytes  # 64 bytes

    @classmethod
    def sign(cls, node: KeyPair, window_start_s: int, window_end_s: int, receipts: Sequence[bytes]) -> Self:
        body = _pack(node.public_key, window_start_s, window_end_s, receipts)
        return cls(
            node_key=node.public_key,
            window_start_s=window_start_s,
            window_end_s=window_end_s,
            receipts=tuple(receipts),
            signature=node.sign(DOMAIN, body),
        )

    def body(self) -> bytes:
        """The 83 signed bytes."""
        return _pack(self.node_key, self.window_start_s, self.window_end_s, self.receipts)

    @property
    def hash(self) -> bytes:
        """SHA-256 over `DOMAIN + body`: a batch sent again is known by it."""
        return batch_hash(self.body())

    def encode(self) -> bytes:
        return self.body() + self.signature + b"".join(self.receipts)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises WireError unless lengths, version, Merkle root and the node's signature all hold."""
        if not HEADER_BYTES <= len(data) <= MAX_BYTES:
            raise WireError(f"a batch is {HEADER_BYTES} to {MAX_BYTES} bytes, not {len(data)}")
        version, node_key, start, end, count, _ = _BODY.unpack(data[:BODY_BYTES])
        if version != VERSION:
            raise WireError(f"unknown batch version {version}")
        if len(data) != HEADER_BYTES + count * RECEIPT_BYTES:
            raise WireError(f"a batch of {count} receipts is not {len(data)} bytes")
        receipts = tuple(data[i : i + RECEIPT_BYTES] for i in range(HEADER_BYTES, len(data), RECEIPT_BYTES))
        batch = cls(
            node_key=node_key,
            window_start_s=start,
            window_end_s=end,
            receipts=receipts,
            signature=data[BODY_BYTES:HEADER_BYTES],
        )
        if batch.body() != data[:BODY_BYTES]:
            raise WireError("the Merkle root does not match the receipts")
        if not verify(node_key, DOMAIN, data[:BODY_BYTES], batch.signature):
            raise WireError("the batch is not signed by its node")
        return batch


def batch_hash(header: bytes) -> bytes:
    """SHA-256 over `DOMAIN + body`, from bytes that begin with the body (a header has the signature behind it)."""
    return hashlib.sha256(DOMAIN + header[:BODY_BYTES]).digest()


def _pack(node_key: bytes, start_s: int, end_s: int, receipts: Sequence[bytes]) -> bytes:
    if len(receipts) > MAX_RECEIPTS:
        raise WireError(f"a batch holds at most {MAX_RECEIPTS} receipts")
    return _BODY.pack(VERSION, node_key, start_s, end_s, len(receipts), merkle.root(receipts))
