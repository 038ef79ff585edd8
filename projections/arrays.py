"""Columns of values in Postgres's binary formats: an array for each, or the rows of a COPY made of all of them.

psycopg's own way looks at each value for itself. Formats: `array_send` in src/backend/utils/adt/arrayfuncs.c;
PostgreSQL documentation, "COPY", binary format. Invariant: Postgres reads the values that were given, in their order;
None is NULL. A uuid is given as its 16 bytes.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
from sqlalchemy import BigInteger, Boolean, Column, Text, Uuid

from ledger.store.binary import Array

_HEAD: Final = struct.Struct(
    ">iiIii"
)  # dimensions, has nulls, type of the elements, their number, first index
_LENGTH: Final = struct.Struct(">i")
_BIGINT: Final = struct.Struct(">iq")
_FEW: Final = 16  # so many values cost less one by one
_NULL: Final = _LENGTH.pack(-1)
_UUID_LENGTH: Final = _LENGTH.pack(16)
_BOOLS: Final = {False: b"\0\0\0\1\0", True: b"\0\0\0\1\1"}
_INTEGERS: Final = np.dtype([("length", ">i4"), ("value", ">i8")])
_COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER: Final = b"\xff\xff"

# Values with their lengths before them: one each, or as a matrix of bytes where all are of one length.
Cells = Any  # list[bytes] | np.ndarray of uint8, (values, bytes of each)


class _Texts(dict[str, bytes]):
    """Texts as they are sent. Most are met again and again: kinds, states, reasons, accounts."""

    def __missing__(self, value: str) -> bytes:
        if len(self) >= 10_000:
            self.clear()
        encoded = value.encode()
        cell = self[value] = _LENGTH.pack(len(encoded)) + encoded
        return cell


_texts: Final = _Texts()


def _integers(values: Sequence[int]) -> Cells:
    cells = np.empty(len(values), _INTEGERS)
    cells["length"] = 8
    cells["value"] = np.array(values, np.int64)
    return cells.view(np.uint8).reshape(len(values), _INTEGERS.itemsize)


def _uuids(values: Sequence[bytes]) -> Cells:
    cells = np.frombuffer(_UUID_LENGTH + _UUID_LENGTH.join(values), np.uint8)
    return cells.reshape(len(values), 20)


# pg_type.oid; many values; one value
_Kind = tuple[int, Callable[[Sequence[Any]], Cells], Callable[[Any], bytes]]
_KINDS: Final[dict[type[Any], _Kind]] = {
    BigInteger: (20, _integers, lambda value: _BIGINT.pack(8, value)),
    Boolean: (16, lambda values: list(map(_BOOLS.__getitem__, values)), _BOOLS.__getitem__),
    Text: (25, lambda values: list(map(_texts.__getitem__, values)), _texts.__getitem__),
    Uuid: (2950, _uuids, lambda value: _UUID_LENGTH + value),
}


def _cells(column: Column[Any], values: Sequence[Any]) -> tuple[Cells, bool]:
    """And whether there is a NULL among them."""
    _, many, one = _KINDS[type(column.type)]
    if len(values) < _FEW:
        return [_NULL if value is None else one(value) for value in values], None in values
    if values[0] == values[-1] and values.count(values[0]) == len(values):
        cell = np.frombuffer(_NULL if values[0] is None else one(values[0]), np.uint8)
        return np.broadcast_to(cell, (len(values), len(cell))), values[0] is None
    if None not in values:
        return many(values), False
    return [_NULL if value is None else one(value) for value in values], True


def array(column: Column[Any], values: Sequence[Any]) -> Array:
    """A parameter for a statement that casts it to an array of the column's type.

    Raises OverflowError or struct.error for an integer of more than 64 bits.
    """
    cells, nulls = _cells(column, values)
    head = _HEAD.pack(1, int(nulls), _KINDS[type(column.type)][0], len(values), 1)
    return Array(head + (b"".join(cells) if isinstance(cells, list) else cells.tobytes()))


def copy(columns: Iterable[tuple[Column[Any], Sequence[Any]]]) -> bytes:
    """The stream of a COPY of these columns, one value of each for a row, at least one row. Raises as `array`."""
    matrices_and_lists = [_as_matrix(_cells(column, values)[0]) for column, values in columns]
    rows = len(matrices_and_lists[0])
    head = np.empty((rows, 2), np.uint8)
    head[:] = divmod(len(matrices_and_lists), 256)
    blocks: list[Cells] = [[head]]
    for cells in matrices_and_lists:
        if isinstance(cells, list):
            blocks.append(cells)
        elif isinstance(blocks[-1][0], bytes):
            blocks.append([cells])
        else:
            blocks[-1].append(cells)
    if len(blocks) == 1:
        body = np.hstack(blocks[0]).tobytes()
    else:
        pieces = [block if isinstance(block[0], bytes) else _lines(block) for block in blocks]
        body = b"".join(chain.from_iterable(zip(*pieces, strict=True)))
    return _COPY_HEADER + body + _COPY_TRAILER


def _as_matrix(cells: Cells) -> Cells:
    if not isinstance(cells, list) or len(set(map(len, cells))) != 1:
        return cells
    return np.frombuffer(b"".join(cells), np.uint8).reshape(len(cells), len(cells[0]))


def _lines(matrices: list[Any]) -> list[bytes]:
    matrix = np.ascontiguousarray(np.hstack(matrices))
    lines: list[bytes] = matrix.view(f"V{matrix.shape[1]}").ravel().tolist()
    return lines
