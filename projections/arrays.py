"""A column of values as one Postgres array, in its binary format: psycopg's own way looks at each value for itself.

Format: `array_send` in src/backend/utils/adt/arrayfuncs.c. Invariant: Postgres reads the values that were given, in
their order; None is NULL.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, Column, Text, Uuid

from ledger.store.binary import Array

_HEAD: Final = struct.Struct(
    ">iiIii"
)  # dimensions, has nulls, type of the elements, their number, first index
_LENGTH: Final = struct.Struct(">i")
_BIGINT: Final = struct.Struct(">iq")
_NULL: Final = _LENGTH.pack(-1)
_UUID_LENGTH: Final = _LENGTH.pack(16)
_BOOLS: Final = {False: b"\0\0\0\1\0", True: b"\0\0\0\1\1"}


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _LENGTH.pack(len(encoded)) + encoded


# pg_type.oid, and a value after its length in bytes
_KINDS: Final[dict[type[Any], tuple[int, Callable[[Any], bytes]]]] = {
    BigInteger: (20, lambda value: _BIGINT.pack(8, value)),
    Boolean: (16, _BOOLS.__getitem__),
    Text: (25, _text),
    Uuid: (2950, lambda value: _UUID_LENGTH + value.bytes),
}


def array(column: Column[Any], values: Sequence[Any]) -> Array:
    """A parameter for a statement that casts it to an array of the column's type. Raises struct.error."""
    oid, encode = _KINDS[type(column.type)]
    nulls = None in values
    if nulls:
        parts = [_NULL if value is None else encode(value) for value in values]
    else:
        parts = [encode(value) for value in values]
    return Array(_HEAD.pack(1, int(nulls), oid, len(values), 1) + b"".join(parts))
