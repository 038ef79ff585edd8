"""AMF0 values, the language of RTMP commands (Adobe AMF 0 specification, December 2007).

Invariant: `decode` either returns the values that the bytes spell or raises AmfError; no input makes it recurse
deeper than `MAX_DEPTH` or hold more than `MAX_VALUES` values.
"""

import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

Amf: TypeAlias = float | bool | str | list["Amf"] | dict[str, "Amf"] | None

MAX_DEPTH: Final = 8
MAX_VALUES: Final = 1024

_NUMBER, _BOOLEAN, _STRING, _OBJECT = 0x00, 0x01, 0x02, 0x03
_NULL, _UNDEFINED, _ECMA_ARRAY, _OBJECT_END = 0x05, 0x06, 0x08, 0x09
_STRICT_ARRAY, _DATE, _LONG_STRING = 0x0A, 0x0B, 0x0C
_double: Final = struct.Struct(">d")
_u16: Final = struct.Struct(">H")
_u32: Final = struct.Struct(">I")


class AmfError(ValueError):
    """Bytes that are not well-formed AMF0, or more of it than any encoder sends."""


class _Reader:
    __slots__ = ("_data", "_left", "pos")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.pos = 0
        self._left = MAX_VALUES

    def _take(self, size: int) -> bytes:
        end = self.pos + size
        if end > len(self._data):
            raise AmfError("AMF0 value is cut short")
        piece = self._data[self.pos : end]
        self.pos = end
        return piece

    def _text(self, size: int) -> str:
        return self._take(size).decode("utf-8", "replace")

    def _pairs(self, depth: int) -> dict[str, Amf]:
        found: dict[str, Amf] = {}
        while True:
            name = self._text(_u16.unpack(self._take(2))[0])
            if not name and self._data[self.pos : self.pos + 1] == b"\x09":
                self.pos += 1
                return found
            found[name] = self.value(depth + 1)

    def value(self, depth: int = 0) -> Amf:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            raise AmfError("AMF0 value is nested too deep or too large")
        marker = self._take(1)[0]
        if marker == _NUMBER:
            return float(_double.unpack(self._take(8))[0])
        if marker == _BOOLEAN:
            return self._take(1) != b"\x00"
        if marker == _STRING:
            return self._text(_u16.unpack(self._take(2))[0])
        if marker == _LONG_STRING:
            return self._text(_u32.unpack(self._take(4))[0])
        if marker in (_NULL, _UNDEFINED):
            return None
        if marker == _OBJECT:
            return self._pairs(depth)
        if marker == _ECMA_ARRAY:
            self._take(4)  # a count that encoders get wrong; the end marker decides
            return self._pairs(depth)
        if marker == _STRICT_ARRAY:
            count = _u32.unpack(self._take(4))[0]
            if count > MAX_VALUES:
                raise AmfError("AMF0 array is too large")
            return [self.value(depth + 1) for _ in range(count)]
        if marker == _DATE:
            when = float(_double.unpack(self._take(8))[0])
            self._take(2)  # time zone, reserved
            return when
        raise AmfError(f"AMF0 type 0x{marker:02x} is not supported")


def decode(data: bytes) -> list[Amf]:
    """All values in `data`, in order. Raises AmfError."""
    reader = _Reader(data)
    values: list[Amf] = []
    while reader.pos < len(data):
        values.append(reader.value())
    return values


def _encode_one(value: Amf, out: bytearray) -> None:
    if value is None:
        out.append(_NULL)
    elif isinstance(value, bool):
        out += bytes((_BOOLEAN, value))
    elif isinstance(value, (int, float)):
        out.append(_NUMBER)
        out += _double.pack(value)
    elif isinstance(value, str):
        text = value.encode()
        out += bytes((_STRING,)) + _u16.pack(len(text)) + text
    elif isinstance(value, dict):
        out.append(_OBJECT)
        for name, item in value.items():
            key = name.encode()
            out += _u16.pack(len(key)) + key
            _encode_one(item, out)
        out += bytes((0, 0, _OBJECT_END))
    else:
        out.append(_STRICT_ARRAY)
        out += _u32.pack(len(value))
        for item in value:
            _encode_one(item, out)


def encode(values: Sequence[Amf]) -> bytes:
    """The AMF0 bytes of `values`. Strings are at most 65,535 bytes of UTF-8 (struct.error beyond)."""
    out = bytearray()
    for value in values:
        _encode_one(value, out)
    return bytes(out)
