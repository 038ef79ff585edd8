"""AMF0 values, the language of RTMP commands, and AMF3 values within them (Adobe AMF 0 specification, December 2007;
AMF 3, January 2013). We write AMF0 only and say so in the answer to connect.

Invariant: `decode` either returns the values that the bytes spell or raises AmfError; no input makes it recurse
deeper than `MAX_DEPTH` or hold more than `MAX_VALUES` values.
"""

import struct
from collections.abc import Sequence
from typing import Final, TypeAlias, TypeVar

Amf: TypeAlias = float | bool | str | list["Amf"] | dict[str, "Amf"] | None

T = TypeVar("T")

MAX_DEPTH: Final = 8
MAX_VALUES: Final = 1024

_NUMBER, _BOOLEAN, _STRING, _OBJECT = 0x00, 0x01, 0x02, 0x03
_NULL, _UNDEFINED, _ECMA_ARRAY, _OBJECT_END = 0x05, 0x06, 0x08, 0x09
_STRICT_ARRAY, _DATE, _LONG_STRING, _AMF3 = 0x0A, 0x0B, 0x0C, 0x11
_double: Final = struct.Struct(">d")
_u16: Final = struct.Struct(">H")
_u32: Final = struct.Struct(">I")


class AmfError(ValueError):
    """Bytes that are not well-formed AMF, or more of it than any encoder sends."""


class _Reader:
    __slots__ = ("_data", "_left", "pos")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.pos = 0
        self._left = MAX_VALUES

    def take(self, size: int) -> bytes:
        end = self.pos + size
        if end > len(self._data):
            raise AmfError("AMF value is cut short")
        piece = self._data[self.pos : end]
        self.pos = end
        return piece

    def _text(self, size: int) -> str:
        return self.take(size).decode("utf-8", "replace")

    def _pairs(self, depth: int) -> dict[str, Amf]:
        found: dict[str, Amf] = {}
        while True:
            name = self._text(_u16.unpack(self.take(2))[0])
            if not name and self._data[self.pos : self.pos + 1] == b"\x09":
                self.pos += 1
                return found
            found[name] = self.value(depth + 1)

    def spend(self, depth: int) -> None:
        """One value more, so deep."""
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            raise AmfError("AMF value is nested too deep or too large")

    def value(self, depth: int = 0) -> Amf:
        self.spend(depth)
        marker = self.take(1)[0]
        if marker == _NUMBER:
            return float(_double.unpack(self.take(8))[0])
        if marker == _BOOLEAN:
            return self.take(1) != b"\x00"
        if marker == _STRING:
            return self._text(_u16.unpack(self.take(2))[0])
        if marker == _LONG_STRING:
            return self._text(_u32.unpack(self.take(4))[0])
        if marker in (_NULL, _UNDEFINED):
            return None
        if marker == _OBJECT:
            return self._pairs(depth)
        if marker == _ECMA_ARRAY:
            self.take(4)  # a count that encoders get wrong; the end marker decides
            return self._pairs(depth)
        if marker == _STRICT_ARRAY:
            count = _u32.unpack(self.take(4))[0]
            if count > MAX_VALUES:
                raise AmfError("AMF0 array is too large")
            return [self.value(depth + 1) for _ in range(count)]
        if marker == _DATE:
            when = float(_double.unpack(self.take(8))[0])
            self.take(2)  # time zone, reserved
            return when
        if marker == _AMF3:
            return _Reader3(self).value(depth)
        raise AmfError(f"AMF0 type 0x{marker:02x} is not supported")


class _Reader3:
    """One AMF3 value and its tables of what may be referred to again."""

    __slots__ = ("_objects", "_strings", "_take", "_traits", "_within")

    def __init__(self, within: _Reader) -> None:
        self._within = within
        self._take = within.take
        self._strings: list[str] = []
        self._objects: list[Amf] = []
        self._traits: list[tuple[bool, list[str]]] = []  # dynamic; names of sealed members

    def _u29(self) -> int:
        """Section 1.3.1: seven bits a byte while the highest is set; the fourth byte is whole."""
        value = 0
        for _ in range(3):
            byte = self._take(1)[0]
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                return value
        return value << 8 | self._take(1)[0]

    def _text(self) -> str:
        size = self._u29()
        if not size & 1:
            return _referred(self._strings, size >> 1)
        text = self._take(size >> 1).decode("utf-8", "replace")
        if text:
            self._strings.append(text)
        return text

    def value(self, depth: int) -> Amf:
        self._within.spend(depth)
        marker = self._take(1)[0]
        if marker <= 0x03:  # undefined, null, false, true
            return None if marker <= 0x01 else marker == 0x03
        if marker == 0x04:
            number = self._u29()
            return float(number - (1 << 29) if number >> 28 else number)
        if marker == 0x05:
            return float(_double.unpack(self._take(8))[0])
        if marker == 0x06:
            return self._text()
        if marker not in (0x07, 0x08, 0x09, 0x0A, 0x0B, 0x0C):
            raise AmfError(f"AMF3 type 0x{marker:02x} is not supported")
        head = self._u29()
        if not head & 1:
            return _referred(self._objects, head >> 1)
        if marker in (0x09, 0x0A):
            # Known to what is inside as null: an encoder has no use for a value that contains itself.
            index = len(self._objects)
            self._objects.append(None)
            made = self._array(head >> 1, depth) if marker == 0x09 else self._object(head >> 1, depth)
            self._objects[index] = made
            return made
        # A date, or text or bytes that encoders have no use for either.
        flat = (
            float(_double.unpack(self._take(8))[0])
            if marker == 0x08
            else self._take(head >> 1).decode("latin-1")
        )
        self._objects.append(flat)
        return flat

    def _dynamic(self, depth: int) -> dict[str, Amf]:
        found: dict[str, Amf] = {}
        while name := self._text():
            found[name] = self.value(depth + 1)
        return found

    def _array(self, count: int, depth: int) -> Amf:
        named = self._dynamic(depth)
        if count > MAX_VALUES:
            raise AmfError("AMF3 array is too large")
        items = [self.value(depth + 1) for _ in range(count)]
        return {**named, **{str(i): item for i, item in enumerate(items)}} if named else items

    def _object(self, head: int, depth: int) -> dict[str, Amf]:
        if not head & 1:
            dynamic, names = _referred(self._traits, head >> 1)
        elif head & 2:
            raise AmfError("AMF3 objects with a form of their own are not supported")
        else:
            self._text()  # the name of its class
            if head >> 3 > MAX_VALUES:
                raise AmfError("AMF3 object is too large")
            dynamic, names = bool(head & 4), [self._text() for _ in range(head >> 3)]
            self._traits.append((dynamic, names))
        found = {name: self.value(depth + 1) for name in names}
        return {**found, **self._dynamic(depth)} if dynamic else found


def _referred(table: list[T], index: int) -> T:
    if index >= len(table):
        raise AmfError("AMF3 refers to what was not there before")
    return table[index]


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
