"""Ticket: the hub's signed permission for one node to serve one session a range of segments.

Wire format `restream/ticket/v1` (docs/protocol.md): 190-byte body, all integers big-endian, then a 64-byte
signature over `DOMAIN + body`. Invariant: `Ticket.decode(t.encode())` is `t`, and two different tickets never have
the same bytes.
"""

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self
from uuid import UUID

from ledger.keys import SIGNATURE_BYTES, KeyPair, verify

DOMAIN: Final = b"restream/ticket/v1\n"
VERSION: Final = 1
_BODY: Final = struct.Struct(">BB8s16s16s16s16s32s32sQQQIQ16s")
BODY_BYTES: Final = _BODY.size
SIGNED_BYTES: Final = BODY_BYTES + SIGNATURE_BYTES
MAX_SEGMENTS: Final = 512  # a receipt's bitmap covers no more


class WireError(ValueError):
    """Bytes that are not a well-formed ticket, receipt or batch."""


class ViewerClass(IntEnum):
    """SIGNING viewers countersign receipts themselves (class 1); for PLAIN players such as VLC the node claims."""

    SIGNING = 1
    PLAIN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    viewer_class: ViewerClass
    hub_key_id: bytes  # 8 bytes
    ticket_id: UUID
    session_id: UUID
    stream_id: UUID
    rendition_id: UUID
    viewer_key: bytes  # 32 bytes; for PLAIN the node's own key, because the node signs the claim
    node_key: bytes  # 32 bytes
    first_sequence: int
    last_sequence: int  # inclusive
    settle_by_s: int  # Unix seconds; later receipts are refused as late
    tariff_version: int
    byte_budget: int
    nonce: bytes  # 16 bytes; mixed into the delivery digest

    def __post_init__(self) -> None:
        if not self.first_sequence <= self.last_sequence < self.first_sequence + MAX_SEGMENTS:
            raise WireError(f"a ticket covers 1 to {MAX_SEGMENTS} segments")

    def body(self) -> bytes:
        """The 190 signed bytes."""
        return _BODY.pack(
            VERSION,
            self.viewer_class,
            self.hub_key_id,
            self.ticket_id.bytes,
            self.session_id.bytes,
            self.stream_id.bytes,
            self.rendition_id.bytes,
            self.viewer_key,
            self.node_key,
            self.first_sequence,
            self.last_sequence,
            self.settle_by_s,
            self.tariff_version,
            self.byte_budget,
            self.nonce,
        )

    @property
    def hash(self) -> bytes:
        """SHA-256 over `DOMAIN + body`: what receipts name. Signatures are left out, they may be randomised."""
        return hashlib.sha256(DOMAIN + self.body()).digest()

    def covers(self, sequence: int) -> bool:
        return self.first_sequence <= sequence <= self.last_sequence

    def sign(self, hub_key: KeyPair) -> "SignedTicket":
        return SignedTicket(self, hub_key.sign(DOMAIN, self.body()))

    @classmethod
    def decode_body(cls, body: bytes) -> Self:
        """Raises WireError when `body` is not a ticket body of a known version."""
        if len(body) != BODY_BYTES:
            raise WireError(f"a ticket body is {BODY_BYTES} bytes, not {len(body)}")
        (
            version,
            cls_,
            key,
            tid,
            sid,
            stream,
            rendition,
            viewer,
            node,
            first,
            last,
            by,
            tariff,
            budget,
            nonce,
        ) = _BODY.unpack(body)
        if version != VERSION:
            raise WireError(f"unknown ticket version {version}")
        if cls_ not in (1, 2):
            raise WireError(f"unknown viewer class {cls_}")
        return cls(
            viewer_class=ViewerClass(cls_),
            hub_key_id=key,
            ticket_id=UUID(bytes=tid),
            session_id=UUID(bytes=sid),
            stream_id=UUID(bytes=stream),
            rendition_id=UUID(bytes=rendition),
            viewer_key=viewer,
            node_key=node,
            first_sequence=first,
            last_sequence=last,
            settle_by_s=by,
            tariff_version=tariff,
            byte_budget=budget,
            nonce=nonce,
        )


@dataclass(frozen=True, slots=True)
class SignedTicket:
    ticket: Ticket
    signature: bytes  # 64 bytes

    def encode(self) -> bytes:
        return self.ticket.body() + self.signature

    def encode_url(self) -> str:
        """base64url without padding, for the `t` parameter of a segment URL."""
        return base64.urlsafe_b64encode(self.encode()).rstrip(b"=").decode()

    def verified_by(self, hub_public_key: bytes) -> bool:
        return verify(hub_public_key, DOMAIN, self.ticket.body(), self.signature)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises WireError for anything but exactly one signed ticket."""
        if len(data) != SIGNED_BYTES:
            raise WireError(f"a signed ticket is {SIGNED_BYTES} bytes, not {len(data)}")
        return cls(Ticket.decode_body(data[:BODY_BYTES]), data[BODY_BYTES:])

    @classmethod
    def decode_url(cls, text: str) -> Self:
        """Raises WireError for text that is not base64url of one signed ticket."""
        if len(text) > 2 * SIGNED_BYTES:
            raise WireError("ticket text is too long")
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as e:
            raise WireError("ticket text is not base64url") from e
        return cls.decode(data)
