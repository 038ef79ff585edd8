"""Rows of the log in Postgres's binary formats: a COPY stream, and an array for each column.

Formats: PostgreSQL documentation, "COPY", binary format; `array_send` in src/backend/utils/adt/arrayfuncs.c.
Invariant: both carry exactly the rows given, in their order; in the stream their positions follow each other.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np
import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

NewRow = tuple[UUID, int, str, bytes]  # originator, its version, topic, state

PART_ROWS: Final = 512  # the server takes in one part while the next is made
_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
# What stands before the topic, which has no fixed length: the number of columns, and three with their lengths.
_HEAD: Final = np.dtype(
    [
        ("columns", ">i2"),
        ("position_length", ">i4"),
        ("position", ">i8"),
        ("id_length", ">i4"),
        ("id", "V16"),
        ("version_length", ">i4"),
        ("version", ">i8"),
    ]
)
_BEFORE_ID: Final = struct.pack(">i", 16)
_LENGTH: Final = struct.Struct(">i")
_VERSION: Final = struct.Struct(">iq")
_ARRAY: Final = struct.Struct(
    ">iiIii"
)  # dimensions, has nulls, type of the elements, their number, first index
_UUID, _BIGINT, _TEXT, _BYTEA = 2950, 20, 25, 17  # pg_type.oid


class Columns(NamedTuple):
    """Some rows, side by side. A state may be any bytes-like object that has a length."""

    ids: Sequence[UUID]
    versions: Sequence[int]
    topics: Sequence[str]
    states: Sequence[Any]


def in_columns(rows: Sequence[NewRow]) -> Iterator[Columns]:
    for start in range(0, len(rows), PART_ROWS):
        yield Columns(*zip(*rows[start : start + PART_ROWS], strict=True))


def copied(first: int, parts: Iterable[Columns]) -> Iterator[bytes]:
    """The COPY stream of (position, originator_id, originator_version, topic, state), part by part."""
    yield _HEADER
    for part in parts:
        heads = _heads(first, part)
        lengths = np.fromiter(map(len, part.states), ">i4", len(part.states)).view("V4").tolist()
        rows = zip(heads, map(_topic_column, part.topics), lengths, part.states, strict=True)
        yield b"".join(chain.from_iterable(rows))
        first += len(heads)
    yield _TRAILER


def _heads(first: int, part: Columns) -> list[bytes]:
    number = len(part.ids)
    heads = np.empty(number, _HEAD)
    heads["columns"] = 5
    heads["position_length"] = heads["version_length"] = 8
    heads["id_length"] = 16
    heads["position"] = np.arange(first, first + number)
    heads["version"] = part.versions
    heads["id"] = np.frombuffer(b"".join(_ids(part.ids)), "V16")
    whole: list[bytes] = heads.view(f"V{_HEAD.itemsize}").tolist()
    return whole


def _ids(ids: Sequence[UUID]) -> list[bytes]:
    last, data, all_ = None, b"", []
    for each in ids:
        if each is not last:  # the events of an aggregate mostly share one object
            last, data = each, each.bytes
        all_.append(data)
    return all_


@lru_cache(1_024)
def _topic_column(topic: str) -> bytes:
    """With its length before it."""
    encoded = topic.encode()
    return _LENGTH.pack(len(encoded)) + encoded


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
        topics.append(_topic_column(topic))
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
