"""Rows of the log in Postgres's binary formats: a COPY stream, and an array for each column.

Formats: PostgreSQL documentation, "COPY", binary format; `array_send` in src/backend/utils/adt/arrayfuncs.c.
Invariant: both carry exactly the rows given, in their order; in the stream their positions follow each other.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

NewRow = tuple[UUID, int, str, bytes]  # originator, its version, topic, state

PART_BYTES: Final = 128 * 1024  # about: the server takes in one part while the next is made
ROW_BYTES: Final = 80  # about, beside the state
_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_ROW: Final = struct.pack(">hi", 5, 8)  # five columns; the first, the position, has 8 bytes
_BEFORE_ID: Final = struct.pack(">i", 16)
_BEFORE_VERSION: Final = struct.pack(">i", 8)
_LENGTH: Final = struct.Struct(">i")
_VERSION: Final = struct.Struct(">iq")
_ARRAY: Final = struct.Struct(
    ">iiIii"
)  # dimensions, has nulls, type of the elements, their number, first index
_UUID, _BIGINT, _TEXT, _BYTEA = 2950, 20, 25, 17  # pg_type.oid


def copy_rows(first: int, rows: Iterable[NewRow]) -> Iterator[bytes]:
    """(position, originator_id, originator_version, topic, state) of each row, in parts."""
    parts = [_HEADER]
    originator, id_column, size = None, b"", 0
    for position, (originator_id, version, topic, state) in enumerate(rows, first):
        if originator_id is not originator:  # the events of an aggregate mostly share one object
            originator, id_column = originator_id, _BEFORE_ID + originator_id.bytes + _BEFORE_VERSION
        pack, topic_column = _fixed_columns(topic)
        parts.append(pack(_ROW, position, id_column, version, topic_column, len(state)))
        parts.append(state)
        size += len(state) + ROW_BYTES
        if size >= PART_BYTES:
            yield b"".join(parts)
            parts.clear()
            size = 0
    parts.append(_TRAILER)
    yield b"".join(parts)


@lru_cache(1_024)
def _fixed_columns(topic: str) -> tuple[Callable[..., bytes], bytes]:
    """Packs everything of a row but the state, whose length comes last; and the topic after its own length."""
    encoded = topic.encode()
    column = _LENGTH.pack(len(encoded)) + encoded
    return struct.Struct(f">{len(_ROW)}sq24sq{len(column)}si").pack, column


class Array(bytes):
    """An array as Postgres takes it in: a parameter that needs no adaptation. The statement casts it to its type."""

    __slots__ = ()


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> bytes:
        return bytes(obj)


psycopg.adapters.register_dumper(Array, _ArrayDumper)


def columns(rows: Sequence[NewRow]) -> tuple[Array, Array, Array, Array]:
    """uuid[], bigint[], text[], bytea[]. psycopg's own way asks about each element what type it has."""
    length, version = _LENGTH.pack, _VERSION.pack
    ids, versions = [_array(_UUID, rows)], [_array(_BIGINT, rows)]
    topics, states = [_array(_TEXT, rows)], [_array(_BYTEA, rows)]
    for originator_id, number, topic, state in rows:
        ids += _BEFORE_ID, originator_id.bytes
        versions.append(version(8, number))
        topics.append(_fixed_columns(topic)[1])
        states += length(len(state)), state
    return Array(b"".join(ids)), Array(b"".join(versions)), Array(b"".join(topics)), Array(b"".join(states))


def names(events: Sequence[tuple[UUID, int]]) -> tuple[Array, Array]:
    """uuid[], bigint[]: originators and versions."""
    ids, versions = [_array(_UUID, events)], [_array(_BIGINT, events)]
    for originator_id, number in events:
        ids += _BEFORE_ID, originator_id.bytes
        versions.append(_VERSION.pack(8, number))
    return Array(b"".join(ids)), Array(b"".join(versions))


def _array(element: int, rows: Sequence[object]) -> bytes:
    return _ARRAY.pack(1, 0, element, len(rows), 1)
