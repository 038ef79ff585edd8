"""RTMP chunk streams: messages cut into interleaved chunks and put together again (RTMP 1.0, section 5.3).

Invariant: the messages that come out depend only on the bytes fed, never on how they were split over calls, and the
bytes held back for unfinished chunks and messages never exceed `MAX_CHUNK_BYTES + 18` and `MAX_HELD_BYTES`.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, cast

DEFAULT_CHUNK_BYTES: Final = 128
MAX_CHUNK_BYTES: Final = 1 << 20
MAX_MESSAGE_BYTES: Final = 8 << 20  # a key frame of 4K at a very high quality is about 2 MiB
MAX_HELD_BYTES: Final = 12 << 20  # unfinished messages over all chunk streams of a connection
MAX_CHUNK_STREAMS: Final = 64  # encoders use four or five
# Control, audio, video, data, shared objects, commands (section 7.1). Anything else means that the bytes are not RTMP,
# or that we lost our place in them, and the sooner that is seen the less is lost in a wrong length.
AUDIO, VIDEO = 8, 9
KNOWN_TYPES: Final = frozenset({1, 2, 3, 4, 5, 6, 8, 9, 15, 16, 17, 18, 19, 20})
MAX_STREAM_ID: Final = 64  # the server gives out 1; some encoders count on
_EXTENDED: Final = 0xFFFFFF
# Format, chunk stream id, timestamp; length, type; stream id, where there is one.
_header: Final = struct.Struct(">III")
_CONTINUES: Final = tuple(bytes((0xC0 | chunk_stream,)) for chunk_stream in range(64))


class RtmpError(Exception):
    """The peer broke the protocol; the text says how and may be shown to it."""


class Message(NamedTuple):
    type_id: int
    timestamp: int  # ms, modulo 2**32
    stream_id: int
    payload: bytes


# What Message(...) does, without a call of Python's in between.
_message: Final = cast("Callable[[tuple[int, int, int, bytes]], Message]", partial(tuple.__new__, Message))


@dataclass(slots=True)
class _ChunkStream:
    timestamp: int = 0
    stamp: int = 0  # the last timestamp field: a delta, or after format 0 the timestamp itself
    extended: bool = False
    length: int = 0
    type_id: int = 0
    stream_id: int = 0
    payload: bytearray = field(default_factory=bytearray)
    open: bool = False  # a message has begun and is not complete


class ChunkReader:
    """Bytes in (`feed`), messages out (`next`; `media` is a short way for some)."""

    def __init__(self) -> None:
        self.chunk_bytes = DEFAULT_CHUNK_BYTES
        self.consumed = 0  # bytes of complete chunks, for acknowledgements
        self._buffer: bytes | bytearray = b""
        self._pos = 0
        self._streams: dict[int, _ChunkStream] = {}
        self._held = 0
        self._short = (
            0,
            0,
        )  # the message that `media` stopped before: its length, and what of it has not arrived

    @property
    def held_bytes(self) -> int:
        """Bytes kept for chunks and messages that are not complete."""
        return len(self._buffer) - self._pos + self._held

    def feed(self, data: bytes) -> None:
        if self._pos == len(self._buffer):
            self._buffer, self._pos = data, 0  # the usual case: nothing is left of the read before
            return
        if isinstance(self._buffer, bytes):
            self._buffer = bytearray(
                self._buffer
            )  # appending to bytes would copy all that is held for each read
        del self._buffer[: self._pos]
        self._pos = 0
        self._buffer += data

    def missing(self, least_bytes: int) -> int:
        """What is still to come of a picture of at least `least_bytes` that is on its way; 0 when none is."""
        length, short = self._short
        if length >= least_bytes and short > 0:
            return short
        for stream in self._streams.values():
            if stream.open and stream.type_id == VIDEO and stream.length >= least_bytes:
                left = stream.length - len(stream.payload)
                return max(left + left // self.chunk_bytes - len(self._buffer) + self._pos, 1)
        return 0

    def set_chunk_bytes(self, size: int) -> None:
        if not 1 <= size <= MAX_CHUNK_BYTES:
            raise RtmpError(f"chunk size {size} is outside 1 to {MAX_CHUNK_BYTES}")
        self.chunk_bytes = size

    def abort(self, chunk_stream_id: int) -> None:
        """Forget the unfinished message of a chunk stream (protocol control message 2)."""
        stream = self._streams.get(chunk_stream_id)
        if stream is not None and stream.open:
            self._held -= len(stream.payload)
            stream.payload.clear()
            stream.open = False

    def media(self) -> list[Message]:
        """The messages of sound and pictures that begin here, in one step each: of chunk streams that are known, and
        all of whose chunks have arrived, one after the other. It stops before anything else, which `next` puts
        together chunk by chunk; that alone defines what is right."""
        found: list[Message] = []
        buffer, pos, streams, chunk_bytes = self._buffer, self._pos, self._streams, self.chunk_bytes
        size = len(buffer)
        last = size - 12
        self._short = (0, 0)
        while pos <= last:
            first, second, third = _header.unpack_from(buffer, pos)
            chunk_stream = first >> 24 & 0x3F
            stream = streams.get(chunk_stream)
            stamp = timestamp = first & 0xFFFFFF
            if first >= 0xC0000000 or stream is None or stream.open or stamp == _EXTENDED:
                break
            if first < 0x40000000:  # format 0
                if third & 0xFFFFFF:  # little endian: a number that is too large
                    break
                length, type_id, stream_id, start = second >> 8, second & 0xFF, third >> 24, pos + 12
            else:
                stream_id, timestamp = stream.stream_id, (stream.timestamp + stamp) & 0xFFFFFFFF
                if first < 0x80000000:
                    length, type_id, start = second >> 8, second & 0xFF, pos + 8
                else:
                    length, type_id, start = stream.length, stream.type_id, pos + 4
            more = (length - 1) // chunk_bytes
            end = start + length + more
            if end > size or (type_id != AUDIO and type_id != VIDEO):
                self._short = (length, end - size) if type_id == VIDEO else (0, 0)
                break
            if not 0 < length <= MAX_MESSAGE_BYTES or stream_id > MAX_STREAM_ID:
                break
            if more:
                if self._held + length > MAX_HELD_BYTES:
                    break
                if buffer[start + chunk_bytes : end : chunk_bytes + 1] != _CONTINUES[chunk_stream] * more:
                    break
                joined = bytearray(memoryview(buffer)[start:end])
                del joined[chunk_bytes :: chunk_bytes + 1]
                body = bytes(joined)
            else:
                body = bytes(buffer[start:end])
            stream.timestamp, stream.stamp, stream.extended = timestamp, stamp, False
            stream.length, stream.type_id, stream.stream_id = length, type_id, stream_id
            found.append(_message((type_id, timestamp, stream_id, body)))
            pos = end
        self.consumed += pos - self._pos
        self._pos = pos
        return found

    def next(self) -> Message | None:
        """The next complete message, or None until more bytes are fed. Raises RtmpError."""
        while self._pos < len(self._buffer):
            chunk = self._chunk()
            if chunk is None:
                return None
            stream, body, end = chunk
            self.consumed += end - self._pos
            self._pos = end
            self._short = (0, 0)
            if len(body) == stream.length:  # the whole message in one chunk: no copy through the bytearray
                stream.open = False
                return Message(stream.type_id, stream.timestamp, stream.stream_id, body)
            stream.payload += body
            stream.open = True
            self._held += len(body)
            if self._held > MAX_HELD_BYTES:
                raise RtmpError(f"more than {MAX_HELD_BYTES} bytes of unfinished messages")
            if len(stream.payload) == stream.length:
                payload = bytes(stream.payload)
                self._held -= stream.length
                stream.payload.clear()
                stream.open = False
                return Message(stream.type_id, stream.timestamp, stream.stream_id, payload)
        return None

    def _chunk(self) -> tuple[_ChunkStream, bytes, int] | None:
        """One whole chunk: its stream with the header applied, its body, and where it ends. None when cut short."""
        buffer, pos, size = self._buffer, self._pos, len(self._buffer)
        fmt, chunk_stream_id = buffer[pos] >> 6, buffer[pos] & 0x3F
        pos += 1
        if chunk_stream_id == 0:
            if pos >= size:
                return None
            chunk_stream_id = buffer[pos] + 64
            pos += 1
        elif chunk_stream_id == 1:
            if pos + 2 > size:
                return None
            chunk_stream_id = buffer[pos] + 64 + (buffer[pos + 1] << 8)
            pos += 2
        header_bytes = (11, 7, 3, 0)[fmt]
        if pos + header_bytes > size:
            return None
        stream = self._streams.get(chunk_stream_id)
        if stream is None:
            if fmt > 1:  # librtmp opens chunk stream 2 with format 1; 2 and 3 have nothing to continue
                raise RtmpError(f"chunk stream {chunk_stream_id} starts with a format {fmt} header")
            if len(self._streams) >= MAX_CHUNK_STREAMS:
                raise RtmpError(f"more than {MAX_CHUNK_STREAMS} chunk streams")
            stream = _ChunkStream()
        stamp, length, type_id, stream_id = stream.stamp, stream.length, stream.type_id, stream.stream_id
        extended = stream.extended
        if fmt < 3:
            stamp = int.from_bytes(buffer[pos : pos + 3], "big")
            extended = stamp == _EXTENDED
            if fmt < 2:
                length, type_id = int.from_bytes(buffer[pos + 3 : pos + 6], "big"), buffer[pos + 6]
            if fmt == 0:
                stream_id = int.from_bytes(buffer[pos + 7 : pos + 11], "little")
            pos += header_bytes
        if extended:
            if pos + 4 > size:
                return None
            value = int.from_bytes(buffer[pos : pos + 4], "big")
            # Some encoders leave the field out of format 3 chunks; it repeats the one before, so one can tell.
            if fmt < 3 or value == stream.stamp:
                stamp = value
                pos += 4
        begins = not stream.open
        if not begins and fmt < 3:
            raise RtmpError(f"chunk stream {chunk_stream_id} starts a message inside another")
        if type_id not in KNOWN_TYPES or stream_id > MAX_STREAM_ID:
            raise RtmpError(f"message type {type_id} on stream {stream_id} is not RTMP, or not supported")
        if length > MAX_MESSAGE_BYTES:
            raise RtmpError(f"a message of {length} bytes; at most {MAX_MESSAGE_BYTES} are accepted")
        body_bytes = min(self.chunk_bytes, length - len(stream.payload))
        end = pos + body_bytes
        if end > size:
            return None
        body = bytes(buffer[pos:end])
        if begins:
            stream.timestamp = stamp if fmt == 0 else (stream.timestamp + stamp) & 0xFFFFFFFF
        stream.stamp, stream.extended = stamp, extended
        stream.length, stream.type_id, stream.stream_id = length, type_id, stream_id
        self._streams[chunk_stream_id] = stream
        return stream, body, end


def write_message(chunk_stream_id: int, message: Message, chunk_bytes: int) -> bytes:
    """A message as a format 0 chunk and format 3 continuations. Chunk stream ids 2 to 63."""
    payload, stamp = message.payload, message.timestamp
    extended = stamp >= _EXTENDED
    tail = stamp.to_bytes(4, "big") if extended else b""
    out = bytearray((chunk_stream_id,))
    out += min(stamp, _EXTENDED).to_bytes(3, "big") + len(payload).to_bytes(3, "big")
    out += bytes((message.type_id,)) + message.stream_id.to_bytes(4, "little") + tail
    out += payload[:chunk_bytes]
    for start in range(chunk_bytes, len(payload), chunk_bytes):
        out.append(0xC0 | chunk_stream_id)
        out += tail + payload[start : start + chunk_bytes]
    return bytes(out)
