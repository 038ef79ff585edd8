"""Events as bytes: written once, and read again by every program that comes after.

Invariant: `decode_stored(encode(e)) == e`, and `encode(decode_stored(b)) == b` for every stored `b`. `decode` gives the
newest shape of every event, by the upcaster of its old one. An unknown tag is an error, never skipped.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from ledger import judged as columns
from ledger.events import Event, NodeProbed, NodeProbedV1, SegmentsServed, SegmentsServedV1

MAX_EVENT_BYTES: Final = 65_535  # a C2SP entry bundle gives each entry a 16-bit length


class UnknownEventError(ValueError):
    """Stored bytes that no version of this program can read."""


def _leaves(cls: type[Event]) -> list[type[Event]]:
    subs = cls.__subclasses__()
    return [cls] if not subs else [leaf for s in subs for leaf in _leaves(s)]


EVENT_TYPES: Final[dict[str, type[Event]]] = {str(c.__struct_config__.tag): c for c in _leaves(Event)}


def _served_in_columns(old: SegmentsServedV1) -> SegmentsServed:
    return SegmentsServed(
        originator_id=old.originator_id,
        originator_version=old.originator_version,
        at_us=old.at_us,
        node_id=old.node_id,
        batch_header=old.batch_header,
        first_sequence=old.first_sequence,
        network_limit=old.network_limit,
        receipts=old.receipts,
        **columns.pack(old.indices, old.sessions, old.networks, old.judged),
    )


def _probed_by_nobody(old: NodeProbedV1) -> NodeProbed:
    return NodeProbed(
        originator_id=old.originator_id,
        originator_version=old.originator_version,
        at_us=old.at_us,
        outcome=old.outcome,
        sequence=old.sequence,
        latency_us=old.latency_us,
        segment_bytes=old.segment_bytes,
        session_id=None,
    )


# Old event class -> function to the class that replaced it. Raises ValueError for facts that never were.
UPCASTERS: Final[dict[type[Event], Callable[[Any], Event]]] = {
    NodeProbedV1: _probed_by_nobody,
    SegmentsServedV1: _served_in_columns,
}

# What a decoder raises: the last for arrays within arrays, thousands deep.
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_encoder: Final = msgspec.msgpack.Encoder(uuid_format="bytes")
_parts: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])
_decoders: Final = {tag: msgspec.msgpack.Decoder(cls) for tag, cls in EVENT_TYPES.items()}


def tag_of(event: Event) -> str:
    return str(type(event).__struct_config__.tag)


def encode(event: Event) -> bytes:
    """The exact bytes that are stored, hashed into the tree and published (MessagePack map).

    Raises ValueError when the event is larger than a log entry can be.
    """
    data = _encoder.encode(event)
    if len(data) > MAX_EVENT_BYTES:
        raise ValueError(f"{tag_of(event)} is {len(data)} bytes; a log entry holds at most {MAX_EVENT_BYTES}")
    return data


def encode_each(events: Sequence[Event]) -> list[msgspec.Raw]:
    """As `encode` of each, in two calls for all of them. What it gives is bytes-like and has a length."""
    parts = _parts.decode(_encoder.encode(events))
    if max(map(len, parts), default=0) > MAX_EVENT_BYTES:
        for event in events:
            encode(event)  # raises
    return parts


def decode(data: bytes, tag: str | None = None) -> Event:
    """Read stored bytes, in whatever version, as the newest version of that event. As `decode_stored` otherwise."""
    return upcast(decode_stored(data, tag))


def decode_stored(data: bytes | memoryview, tag: str | None = None) -> Event:
    """Read stored bytes as the version of the event in which they were written.

    Raises UnknownEventError for a type this program does not know or bytes that do not fit it. `tag` (the stored
    topic) saves a pass over the bytes; when given it must be the event's own.
    """
    try:
        return _decoders[tag if tag is not None else _tag_in(data)].decode(data)
    except KeyError as e:
        raise UnknownEventError(
            f"unknown event type {e.args[0]!r}: this program is older than the log"
        ) from e
    except _UNREADABLE as e:
        raise UnknownEventError(f"stored bytes are not a {tag or 'known'} event: {e}") from e


def check_tag(data: bytes, tag: str) -> None:
    """Raises UnknownEventError unless the bytes begin as those of a known event `tag`; the rest is not looked at."""
    prefix = _PREFIXES.get(tag)
    if prefix is None:
        raise UnknownEventError(f"unknown event type {tag!r}: this program is older than the log")
    if not data.startswith(prefix):
        raise UnknownEventError(f"stored bytes are not a {tag} event: they begin with {data[:48]!r}")


def prefix_of(cls: type[Event]) -> bytes:
    """The head of the map, the name of its first field and the tag: the same for every event of the class."""
    fields = 1 + len(cls.__struct_fields__)
    head = bytes([0x80 | fields]) if fields < 16 else b"\xde" + fields.to_bytes(2)
    return head + _encoder.encode("type") + _encoder.encode(cls.__struct_config__.tag)


_PREFIXES: Final = {tag: prefix_of(cls) for tag, cls in EVENT_TYPES.items()}


def upcast(event: Event) -> Event:
    """The event in its newest version. Raises UnknownEventError when it says what no hub ever wrote."""
    newer = UPCASTERS.get(type(event))
    if newer is None:
        return event
    try:
        return newer(event)
    except ValueError as e:
        raise UnknownEventError(f"{tag_of(event)} cannot be read as what replaced it: {e}") from e


def _tag_in(data: bytes | memoryview) -> str:
    """The tag, from the head of the bytes where it stands as we write it: the rest is long."""
    head = bytes(data[:_HEAD_BYTES])
    at = 3 if head[:1] == b"\xde" else 1  # after the map's size
    short = (
        len(head) > at + 5 and head[at : at + 5] == b"\xa4type" and 0xA0 <= head[at + 5] < 0xC0
    )  # a fixstr
    end = at + 6 + (head[at + 5] & 0x1F) if short else 0
    if 0 < end <= len(head):
        return head[at + 6 : end].decode()
    return _peek.decode(data).type


_HEAD_BYTES: Final = 40


def happened_us(data: bytes) -> int:
    """`at_us` of stored bytes, also of a type that this program does not know. Raises UnknownEventError."""
    try:
        return _when.decode(data).at_us
    except _UNREADABLE as e:
        raise UnknownEventError(f"stored bytes are no event: {e}") from e


class _Peek(msgspec.Struct):
    type: str


class _When(msgspec.Struct):
    at_us: int


_peek: Final = msgspec.msgpack.Decoder(_Peek)
_when: Final = msgspec.msgpack.Decoder(_When)
