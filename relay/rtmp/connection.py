"""The server's side of one RTMP connection from an encoder: bytes in, events and bytes out (Adobe RTMP 1.0).

Invariant: no media leaves `receive` before `accept_publish`: parsing stops at the publish command and goes on only
when the caller has decided. Events depend on the bytes alone, not on how they were cut (acknowledgements go by what
has arrived). No clock, no IO, and randomness is an argument. A peer that breaks the protocol yields one last
`Violation`; nothing is raised.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

from relay.rtmp import amf
from relay.rtmp.chunks import AUDIO, VIDEO, ChunkReader, Message, RtmpError, write_message

HANDSHAKE_BYTES: Final = 1536
WINDOW_BYTES: Final = 2_500_000
OUT_CHUNK_BYTES: Final = 4096
MAX_UNDECIDED_BYTES: Final = 1 << 20  # what may pile up while the key is being checked
MAX_COMMAND_BYTES: Final = 64 << 10
APP: Final = "live"
_STREAM_ID: Final = 1  # the one message stream a connection gets


@dataclass(frozen=True, slots=True)
class PublishRequested:
    """The encoder sent its stream key. Nothing more is parsed until accept_publish or refuse_publish."""

    stream_key: str

    def __repr__(self) -> str:
        return "PublishRequested(stream_key=...)"  # the key is a secret


@dataclass(frozen=True, slots=True)
class Metadata:
    """onMetaData, as sent with @setDataFrame."""

    values: dict[str, amf.Amf]


@dataclass(frozen=True, slots=True)
class Unpublished:
    """A clean stop: FCUnpublish, deleteStream or closeStream."""


@dataclass(frozen=True, slots=True)
class Violation:
    """The peer broke the protocol, or was refused. Send what `data_to_send` has, then close."""

    reason: str


# Of messages only those of sound and pictures are events; what they carry is the body of an FLV tag, never empty.
Event: TypeAlias = PublishRequested | Metadata | Message | Unpublished | Violation


class _State(Enum):
    HELLO = auto()  # waiting for C0 and C1
    ECHO = auto()  # waiting for C2
    COMMANDS = auto()
    UNDECIDED = auto()
    PUBLISHING = auto()
    CLOSED = auto()


# Read for every message; a member of an Enum costs three times as much to look up.
_COMMANDS, _PUBLISHING = _State.COMMANDS, _State.PUBLISHING


class ServerConnection:
    """`nonce`: 1,528 random bytes for S1."""

    def __init__(self, nonce: bytes) -> None:
        if len(nonce) != HANDSHAKE_BYTES - 8:
            raise ValueError(f"the nonce is {HANDSHAKE_BYTES - 8} bytes")
        self._nonce = nonce
        self._state = _State.HELLO
        self._hello = bytearray()
        self._reader = ChunkReader()
        self._out = bytearray()
        self._out_chunk_bytes = 128
        self._ack_window = WINDOW_BYTES
        self._acked = 0
        self._connected = False
        self._created = False

    @property
    def handshake_done(self) -> bool:
        return self._state not in (_State.HELLO, _State.ECHO)

    @property
    def held_bytes(self) -> int:
        """Bytes buffered for what is not complete yet."""
        return len(self._hello) + self._reader.held_bytes

    def missing(self, least_bytes: int) -> int:
        """What is still to come of a picture of at least `least_bytes` that is on its way; 0 when none is."""
        return self._reader.missing(least_bytes)

    def data_to_send(self) -> bytes:
        if not self._out:
            return b""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive(self, data: bytes) -> list[Event]:
        """Events in `data` and in what was held back. A Violation is always the last event of the connection."""
        if self._state is _State.CLOSED:
            return []
        events: list[Event] = []
        try:
            if self._state is not _PUBLISHING and not self.handshake_done:
                data = self._handshake(data)
            self._reader.feed(data)
            self._parse(events)
        except (RtmpError, amf.AmfError) as e:
            self.fail_publish(str(e))
            self._state = _State.CLOSED
            events.append(Violation(str(e)))
        return events

    def accept_publish(self) -> None:
        """The key was right: tell the encoder to start. Call `receive(b"")` afterwards."""
        self._require_undecided()
        self._state = _State.PUBLISHING
        self._user_control(0, _STREAM_ID)  # StreamBegin
        self._status("status", "NetStream.Publish.Start", "the stream is accepted")

    def refuse_publish(self, reason: str, code: str = "NetStream.Publish.BadName") -> None:
        """The key was wrong or the stream is taken. Send what `data_to_send` has, then close."""
        self._require_undecided()
        self._state = _State.CLOSED
        self._status("error", code, reason)

    def fail_publish(self, reason: str) -> None:
        """An accepted stream cannot go on (wrong codec, no key frames). Send what `data_to_send` has, then close."""
        if self._state is _State.PUBLISHING:
            self._state = _State.CLOSED
            self._status("error", "NetStream.Publish.Failed", reason)

    def _require_undecided(self) -> None:
        if self._state is not _State.UNDECIDED:
            raise RuntimeError("there is no publish request to decide on")

    # --- handshake (section 5.2) ----------------------------------------------------------------------------------

    def _handshake(self, data: bytes) -> bytes:
        """Take the handshake's bytes and return the rest."""
        self._hello += data
        if self._state is _State.HELLO:
            if self._hello and self._hello[0] != 3:
                raise RtmpError(f"not RTMP: version {self._hello[0]}, expected 3")
            if len(self._hello) < 1 + HANDSHAKE_BYTES:
                return b""
            c1 = bytes(self._hello[1 : 1 + HANDSHAKE_BYTES])
            del self._hello[: 1 + HANDSHAKE_BYTES]
            self._out += b"\x03" + bytes(8) + self._nonce + c1
            self._state = _State.ECHO
        if len(self._hello) < HANDSHAKE_BYTES:
            return b""
        # C2 should echo S1. Encoders in use send anything, and nothing rests on it.
        rest = bytes(self._hello[HANDSHAKE_BYTES:])
        self._hello.clear()
        self._state = _State.COMMANDS
        return rest

    # --- messages (sections 5.4, 6 and 7) ----------------------------------------------------------------------------

    def _parse(self, events: list[Event]) -> None:
        reader = self._reader
        while self._state is _PUBLISHING or self._state is _COMMANDS:
            if self._state is _PUBLISHING:
                events += reader.media()
            message = reader.next()
            if reader.consumed - self._acked >= self._ack_window:
                self._acked = reader.consumed
                self._control(3, (self._acked & 0xFFFFFFFF).to_bytes(4, "big"))
            if message is None:
                return
            self._message(message, events)
        if self._state is _State.UNDECIDED and self._reader.held_bytes > MAX_UNDECIDED_BYTES:
            raise RtmpError("too much was sent before the publish request was answered")

    def _message(self, message: Message, events: list[Event]) -> None:
        kind, _, _, payload = message
        if kind in (AUDIO, VIDEO):
            if self._state is not _PUBLISHING:
                raise RtmpError("media before publish")
            if payload:
                events.append(message)
        elif kind in (1, 2, 3, 4, 5, 6):
            self._protocol_control(kind, payload)
        elif kind in (17, 20):
            self._command(amf.decode(self._bounded(payload[1:] if kind == 17 else payload)), events)
        elif kind in (15, 18):
            self._data(amf.decode(self._bounded(payload[1:] if kind == 15 else payload)), events)
        # 16 and 19, shared objects: nothing an encoder needs

    @staticmethod
    def _bounded(payload: bytes) -> bytes:
        if len(payload) > MAX_COMMAND_BYTES:
            raise RtmpError(f"a command of {len(payload)} bytes; at most {MAX_COMMAND_BYTES} are accepted")
        return payload

    def _protocol_control(self, kind: int, payload: bytes) -> None:
        if kind == 4:
            if len(payload) >= 6 and payload[:2] == b"\x00\x06":  # PingRequest
                self._user_control(7, int.from_bytes(payload[2:6], "big"))
            return
        if len(payload) < 4:
            raise RtmpError(f"protocol control message {kind} is cut short")
        value = int.from_bytes(payload[:4], "big")
        if kind == 1:
            self._reader.set_chunk_bytes(value)
        elif kind == 2:
            self._reader.abort(value)
        elif kind == 5:
            self._ack_window = max(1024, min(value, WINDOW_BYTES))

    def _data(self, values: list[amf.Amf], events: list[Event]) -> None:
        if values and values[0] == "@setDataFrame":
            values = values[1:]
        if self._state is _State.PUBLISHING and len(values) >= 2 and values[0] == "onMetaData":
            meta = values[1]
            if isinstance(meta, dict):
                events.append(Metadata(meta))

    def _command(self, values: list[amf.Amf], events: list[Event]) -> None:
        if len(values) < 2 or not isinstance(values[0], str) or not isinstance(values[1], float):
            raise RtmpError("a command needs a name and a transaction id")
        name, transaction = values[0], values[1]
        if name == "connect":
            self._connect(transaction, values[2] if len(values) > 2 else None)
        elif not self._connected:
            raise RtmpError(f"{name[:40]} before connect")
        elif name == "createStream":
            self._created = True
            self._reply("_result", transaction, [None, _STREAM_ID])
        elif name in ("releaseStream", "FCPublish", "_checkbw"):
            self._reply("_result", transaction, [None, None])
        elif name == "publish":
            self._publish(values, events)
        elif name in ("FCUnpublish", "deleteStream", "closeStream"):
            if self._state is _State.PUBLISHING:
                self._state = _State.COMMANDS
                self._status("status", "NetStream.Unpublish.Success", "the stream has ended")
                events.append(Unpublished())
        elif name == "play":
            raise RtmpError("this port takes streams; to watch one, open its page")

    def _connect(self, transaction: float, info: amf.Amf) -> None:
        app = info.get("app") if isinstance(info, dict) else None
        if not isinstance(app, str) or app.strip("/").split("?")[0] != APP:
            refused: dict[str, amf.Amf] = {
                "level": "error",
                "code": "NetConnection.Connect.InvalidApp",
                "description": f"the server address must end in /{APP}; the stream key goes in its own field",
            }
            self._reply("_error", transaction, [None, refused])
            raise RtmpError(f"the app must be {APP!r}")
        if self._connected:
            raise RtmpError("connect twice")
        self._connected = True
        self._control(5, WINDOW_BYTES.to_bytes(4, "big"))
        self._control(6, WINDOW_BYTES.to_bytes(4, "big") + b"\x02")  # dynamic
        self._control(1, OUT_CHUNK_BYTES.to_bytes(4, "big"))
        self._out_chunk_bytes = OUT_CHUNK_BYTES
        properties: dict[str, amf.Amf] = {"fmsVer": "FMS/3,0,1,123", "capabilities": 31.0}
        status: dict[str, amf.Amf] = {
            "level": "status",
            "code": "NetConnection.Connect.Success",
            "description": "connected",
            "objectEncoding": 0.0,
        }
        self._reply("_result", transaction, [properties, status])

    def _publish(self, values: list[amf.Amf], events: list[Event]) -> None:
        if not self._created:
            raise RtmpError("publish before createStream")
        if self._state is _State.PUBLISHING:
            raise RtmpError("publish twice")
        key = values[3] if len(values) > 3 else None
        if not isinstance(key, str):
            raise RtmpError("publish without a stream key")
        self._state = _State.UNDECIDED
        events.append(PublishRequested(key.split("?")[0]))

    # --- answers -------------------------------------------------------------------------------------------------

    def _send(self, chunk_stream_id: int, type_id: int, stream_id: int, payload: bytes) -> None:
        message = Message(type_id, 0, stream_id, payload)
        self._out += write_message(chunk_stream_id, message, self._out_chunk_bytes)

    def _control(self, type_id: int, payload: bytes) -> None:
        self._send(2, type_id, 0, payload)

    def _user_control(self, event: int, value: int) -> None:
        self._control(4, event.to_bytes(2, "big") + value.to_bytes(4, "big"))

    def _reply(self, name: str, transaction: float, rest: list[amf.Amf]) -> None:
        self._send(3, 20, 0, amf.encode([name, transaction, *rest]))

    def _status(self, level: str, code: str, description: str) -> None:
        info: dict[str, amf.Amf] = {"level": level, "code": code, "description": description}
        self._send(5, 20, _STREAM_ID, amf.encode(["onStatus", 0.0, None, info]))
