"""Commands on streams and their keys.

A stream key is `{slug}_{secret}`: the slug finds the stream, the secret (160 bits) proves the creator. The log holds
only SHA-256 of the whole key. Invariant: a slug names one stream for ever.
"""

import base64
import hashlib
import hmac
import re
from typing import Final
from uuid import UUID

from ledger.aggregates.base import DomainError
from ledger.aggregates.stream import Stream, StreamState
from ledger.application import Ledger, NotFound
from ledger.ids import SLUG, stream_id
from ledger.services.retry import until_saved

SECRET_BYTES: Final = 20
MAX_KEY_CHARS: Final = 100


def make_stream_key(slug: str, secret: bytes) -> str:
    """`secret` is 20 random bytes."""
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a stream key's secret is {SECRET_BYTES} bytes")
    return f"{slug}_{base64.b32encode(secret).decode().lower()}"


def register_stream(ledger: Ledger, *, slug: str, owner_id: UUID, stream_key: str, at_us: int) -> UUID:
    """Raises DomainError when the slug is taken or malformed."""

    def attempt() -> UUID:
        stream = ledger.load_or_new(Stream, stream_id(slug))
        stream.register(slug=slug, key_sha256=_hash(stream_key), owner_id=owner_id, at_us=at_us)
        ledger.save(stream)
        return stream.id

    return until_saved(attempt)


def load_stream(ledger: Ledger, slug: str) -> Stream | None:
    """None when there is no such stream, whatever the text."""
    if not re.fullmatch(SLUG, slug):
        return None
    try:
        return ledger.load(Stream, stream_id(slug))
    except NotFound:
        return None


def check_stream_key(ledger: Ledger, stream_key: str) -> Stream | None:
    """The stream this key may publish to, or None. Constant time in the secret."""
    if len(stream_key) > MAX_KEY_CHARS:
        return None
    stream = load_stream(ledger, stream_key.partition("_")[0])
    if stream is None or stream.state is StreamState.ARCHIVED:
        return None
    return stream if hmac.compare_digest(stream.key_sha256, _hash(stream_key)) else None


def rotate_key(ledger: Ledger, sid: UUID, *, stream_key: str, at_us: int) -> None:
    """From now on only `stream_key` opens the stream; a publisher who is live stays so."""

    def attempt() -> None:
        stream = ledger.load(Stream, sid)
        if stream_key.partition("_")[0] != stream.slug:
            raise DomainError("a stream key begins with the stream's name")
        stream.rotate_key(_hash(stream_key), at_us=at_us)
        ledger.save(stream)

    until_saved(attempt)


def archive_stream(ledger: Ledger, sid: UUID, *, reason: str, at_us: int) -> None:
    def attempt() -> None:
        stream = ledger.load(Stream, sid)
        stream.archive(reason=reason, at_us=at_us)
        ledger.save(stream)

    until_saved(attempt)


def mark_stale(ledger: Ledger, sid: UUID, *, unused_us: int, at_us: int) -> bool:
    """Whether it is stale: READY, with a key that is `unused_us` old. The key goes on to open it, and wakes it."""

    def attempt() -> bool:
        stream = ledger.load(Stream, sid)
        stream.mark_stale(unused_us=unused_us, at_us=at_us)
        ledger.save(stream)
        return stream.state is StreamState.STALE

    return until_saved(attempt)


def _hash(stream_key: str) -> bytes:
    return hashlib.sha256(stream_key.encode()).digest()
