"""The encoder's side of RTMP for tests: bytes only, written from the specification and not from relay.rtmp."""

import struct

C0C1C2 = b"\x03" + bytes(1536) + bytes(1536)


def chunk(
    csid: int, type_id: int, timestamp: int, payload: bytes, stream_id: int = 0, size: int = 128
) -> bytes:
    """One message as a format 0 chunk and format 3 continuations."""
    extended = timestamp >= 0xFFFFFF
    tail = struct.pack(">I", timestamp) if extended else b""
    out = bytes([csid]) + min(timestamp, 0xFFFFFF).to_bytes(3, "big") + len(payload).to_bytes(3, "big")
    out += bytes([type_id]) + struct.pack("<I", stream_id) + tail + payload[:size]
    for at in range(size, len(payload), size):
        out += bytes([0xC0 | csid]) + tail + payload[at : at + size]
    return out


def string(text: str) -> bytes:
    return b"\x02" + struct.pack(">H", len(text)) + text.encode()


def number(value: float) -> bytes:
    return b"\x00" + struct.pack(">d", value)


def connect(app: str = "live") -> bytes:
    body = string("connect") + number(1) + b"\x03" + struct.pack(">H", 3) + b"app" + string(app) + b"\0\0\x09"
    return chunk(3, 20, 0, body)


def create_stream() -> bytes:
    return chunk(3, 20, 0, string("createStream") + number(4) + b"\x05")


def publish(key: str) -> bytes:
    return chunk(
        8, 20, 0, string("publish") + number(5) + b"\x05" + string(key) + string("live"), stream_id=1
    )


def unpublish(key: str) -> bytes:
    return chunk(3, 20, 0, string("FCUnpublish") + number(6) + b"\x05" + string(key))


def hello(key: str = "main_key", app: str = "live") -> bytes:
    """Everything an encoder says up to and including publish."""
    return C0C1C2 + connect(app) + create_stream() + publish(key)


def set_chunk_size(size: int) -> bytes:
    return chunk(2, 1, 0, struct.pack(">I", size))
