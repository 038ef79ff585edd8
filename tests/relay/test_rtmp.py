"""The RTMP protocol without IO: what an encoder may send, what it may not, and how it is answered."""

import contextlib
import struct

import pytest
import rtmp_client as rtmp
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_helpers import cut

from relay.rtmp import Message, Metadata, PublishRequested, ServerConnection, Unpublished, Violation, amf
from relay.rtmp.chunks import (
    MAX_CHUNK_BYTES,
    MAX_HELD_BYTES,
    ChunkReader,
    RtmpError,
    write_message,
)

NONCE = bytes(1528)


def publishing(extra: bytes = b"") -> tuple[ServerConnection, list]:
    connection = ServerConnection(NONCE)
    events = connection.receive(rtmp.hello() + extra)
    assert events == [PublishRequested("main_key")]
    connection.accept_publish()
    return connection, connection.receive(b"")


def test_handshake_is_answered_before_the_echo_arrives():
    connection = ServerConnection(NONCE)
    connection.receive(rtmp.C0C1C2[:1537])
    assert len(connection.data_to_send()) == 1 + 2 * 1536
    assert not connection.handshake_done


def test_another_protocol_is_refused_at_its_first_byte():
    assert ServerConnection(NONCE).receive(b"GET / HTTP/1.1\r\n") == [
        Violation("not RTMP: version 71, expected 3")
    ]


def test_media_that_is_sent_early_is_not_parsed_before_the_key_is_accepted():
    _connection, events = publishing(rtmp.chunk(4, 8, 0, b"\xaf\x00\x12\x10", stream_id=1))
    assert events == [Message(8, 0, 1, b"\xaf\x00\x12\x10")]


def test_media_without_publish_is_a_violation():
    connection = ServerConnection(NONCE)
    data = rtmp.C0C1C2 + rtmp.connect() + rtmp.chunk(4, 9, 0, b"\x17\x00\0\0\0", stream_id=1)
    assert connection.receive(data) == [Violation("media before publish")]


def test_a_wrong_key_is_answered_with_an_error_the_encoder_shows():
    connection = ServerConnection(NONCE)
    connection.receive(rtmp.hello())
    connection.data_to_send()
    connection.refuse_publish("the stream key is wrong")
    answer = connection.data_to_send()
    assert b"NetStream.Publish.BadName" in answer
    assert b"the stream key is wrong" in answer
    assert connection.receive(rtmp.chunk(4, 9, 0, b"\x17", stream_id=1)) == []


def test_the_app_must_be_live():
    connection = ServerConnection(NONCE)
    events = connection.receive(rtmp.C0C1C2 + rtmp.connect("other"))
    assert events == [Violation("the app must be 'live'")]
    assert b"the stream key goes in its own field" in connection.data_to_send()


def test_the_key_never_appears_in_a_repr():
    assert "secret" not in repr(PublishRequested("secret"))


def test_a_clean_stop_is_told_from_a_lost_connection():
    connection, _ = publishing()
    assert connection.receive(rtmp.unpublish("main_key")) == [Unpublished()]


def test_metadata_is_read_with_and_without_set_data_frame():
    pairs = b"\x08\0\0\0\1" + struct.pack(">H", 5) + b"width" + rtmp.number(640) + b"\0\0\x09"
    connection, _ = publishing()
    direct = rtmp.chunk(5, 18, 0, rtmp.string("onMetaData") + pairs, stream_id=1)
    framed = rtmp.chunk(
        5, 18, 0, rtmp.string("@setDataFrame") + rtmp.string("onMetaData") + pairs, stream_id=1
    )
    assert connection.receive(direct + framed) == [Metadata({"width": 640.0})] * 2


def test_an_amf3_command_message_is_read_as_amf0_after_its_first_byte():
    connection = ServerConnection(NONCE)
    publish = rtmp.string("publish") + rtmp.number(5) + b"\x05" + rtmp.string("k") + rtmp.string("live")
    data = (
        rtmp.C0C1C2
        + rtmp.connect()
        + rtmp.create_stream()
        + rtmp.chunk(8, 17, 0, b"\0" + publish, stream_id=1)
    )
    assert connection.receive(data) == [PublishRequested("k")]


def u29(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((0x80 | value >> 7, value & 0x7F))
    if value < 0x200000:
        return bytes((0x80 | value >> 14, 0x80 | value >> 7 & 0x7F, value & 0x7F))
    return bytes((0x80 | value >> 22, 0x80 | value >> 15 & 0x7F, 0x80 | value >> 8 & 0x7F, value & 0xFF))


def text3(text: str) -> bytes:
    return u29(len(text.encode()) << 1 | 1) + text.encode()


def amf3(value: object) -> bytes:
    """Written from the specification, without references."""
    if value is None or isinstance(value, bool):
        return {None: b"\1", False: b"\2", True: b"\3"}[value]
    if isinstance(value, int):
        return b"\4" + u29(value & 0x1FFFFFFF)
    if isinstance(value, float):
        return b"\5" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"\6" + text3(value)
    if isinstance(value, list):
        return b"\x09" + u29(len(value) << 1 | 1) + b"\1" + b"".join(map(amf3, value))
    return b"\x0a\x0b\1" + b"".join(text3(k) + amf3(v) for k, v in value.items()) + b"\1"


names = st.text(min_size=1, max_size=5)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 28), (1 << 28) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, min_size=1, max_size=3),
    max_leaves=8,
)


@given(st.lists(trees, max_size=3))
def test_amf3_values_are_read_wherever_amf0_allows_them(values):
    data = b"".join(b"\x11" + amf3(value) for value in values)
    try:
        assert amf.decode(rtmp.string("x") + data) == ["x", *values]
    except amf.AmfError as e:
        assert "nested too deep" in str(e)  # noqa: PT017


def test_amf3_refers_to_strings_objects_and_traits_again():
    sealed = b"\x0a\x13" + text3("C") + text3("name")  # one sealed member
    data = b"\x11\x09\x07\1" + sealed + b"\6" + text3("v") + b"\x0a\1" + b"\6\4" + b"\x0a\2"
    # an array of: an object, one of the same traits whose member is the string before, and the first object again
    assert amf.decode(data) == [[{"name": "v"}, {"name": "v"}, {"name": "v"}]]
    for beyond in (b"\6\x10", b"\x0a\x10", b"\x0a\x11", b"\x09\x10"):
        with pytest.raises(amf.AmfError, match="not there before"):
            amf.decode(b"\x11" + beyond)


@given(st.binary(max_size=200))
def test_any_amf3_bytes_are_read_or_refused(data):
    with contextlib.suppress(amf.AmfError):
        amf.decode(b"\x11" + data)


def test_a_command_and_metadata_in_amf3_are_understood():
    connection = ServerConnection(NONCE)
    said = rtmp.string("connect") + rtmp.number(1) + b"\x11" + amf3({"app": "live", "objectEncoding": 3})
    publish = (
        rtmp.string("publish") + rtmp.number(5) + b"\x11\1" + b"\x11" + amf3("k") + b"\x11" + amf3("live")
    )
    data = rtmp.C0C1C2 + rtmp.chunk(3, 17, 0, b"\0" + said) + rtmp.create_stream()
    assert connection.receive(data + rtmp.chunk(8, 17, 0, b"\0" + publish, 1)) == [PublishRequested("k")]
    connection.accept_publish()
    meta = rtmp.string("@setDataFrame") + rtmp.string("onMetaData") + b"\x11" + amf3({"width": 640})
    assert connection.receive(rtmp.chunk(5, 15, 0, b"\0" + meta, 1)) == [Metadata({"width": 640.0})]


def test_a_ping_is_answered():
    connection, _ = publishing()
    connection.data_to_send()
    connection.receive(rtmp.chunk(2, 4, 0, b"\0\6\1\2\3\4"))
    assert connection.data_to_send().endswith(b"\0\7\1\2\3\4")


def test_what_was_received_is_acknowledged_once_a_window():
    connection, _ = publishing(rtmp.chunk(2, 5, 0, struct.pack(">I", 1000)))
    connection.data_to_send()
    connection.receive(rtmp.chunk(4, 9, 0, bytes(5000), stream_id=1))
    assert connection.data_to_send()[7] == 3


@pytest.mark.parametrize("size", [0, MAX_CHUNK_BYTES + 1, 0x7FFFFFFF])
def test_an_absurd_chunk_size_closes(size):
    connection, _ = publishing()
    (event,) = connection.receive(rtmp.set_chunk_size(size))
    assert "chunk size" in event.reason


def test_timestamps_follow_every_header_format():
    body = b"x"
    data = b"\x04" + (1000).to_bytes(3, "big") + b"\0\0\1\x09" + b"\1\0\0\0" + body  # 0: absolute
    data += b"\x44" + (40).to_bytes(3, "big") + b"\0\0\1\x09" + body  # 1: delta, length, type
    data += b"\x84" + (20).to_bytes(3, "big") + body  # 2: delta
    data += b"\xc4" + body  # 3: the same delta again
    reader = ChunkReader()
    reader.feed(data)
    stamps = [m.timestamp for m in iter(reader.next, None)]
    assert stamps == [1000, 1040, 1060, 1080]


@pytest.mark.parametrize("repeated", [True, False])
def test_an_extended_timestamp_is_read_whether_or_not_continuations_repeat_it(repeated):
    stamp, payload = 0x01234567, bytes(range(200))
    tail = struct.pack(">I", stamp)
    data = b"\x04\xff\xff\xff" + (200).to_bytes(3, "big") + b"\x09\1\0\0\0" + tail + payload[:128]
    data += b"\xc4" + (tail if repeated else b"") + payload[128:]
    reader = ChunkReader()
    reader.feed(data)
    assert reader.next() == Message(9, stamp, 1, payload)


def test_interleaved_messages_are_put_together_and_an_aborted_one_is_forgotten():
    reader = ChunkReader()
    first, second = bytes(200), b"a" * 200
    a, b = rtmp.chunk(4, 8, 0, first), rtmp.chunk(6, 9, 0, second)
    reader.feed(a[:140] + b[:140] + a[140:] + b[140:])
    assert [m.payload for m in iter(reader.next, None)] == [first, second]
    reader.feed(a[:140])
    assert reader.next() is None
    reader.abort(4)
    assert reader.held_bytes == 0


def test_unfinished_messages_are_bounded_over_all_chunk_streams():
    connection, _ = publishing(rtmp.set_chunk_size(65536))
    events: list = []
    for csid in range(4, 60):
        header = bytes([csid]) + b"\0\0\0" + (8 << 20).to_bytes(3, "big") + b"\x09\1\0\0\0"
        events += connection.receive(header + bytes(65536))
        for _ in range(20):
            events += connection.receive(bytes([0xC0 | csid]) + bytes(65536))
        assert connection.held_bytes <= MAX_HELD_BYTES + MAX_CHUNK_BYTES
    assert events == [Violation(f"more than {MAX_HELD_BYTES} bytes of unfinished messages")]


messages = st.lists(
    st.builds(
        Message,
        st.sampled_from([8, 9]),
        st.integers(0, 2**32 - 1),
        st.just(1),
        st.binary(min_size=1, max_size=600),
    ),
    max_size=8,
)


@given(messages, st.integers(1, 700))
def test_a_written_message_reads_back(sent, chunk_bytes):
    reader = ChunkReader()
    reader.set_chunk_bytes(chunk_bytes)
    reader.feed(b"".join(write_message(4 + i % 3, m, chunk_bytes) for i, m in enumerate(sent)))
    assert list(iter(reader.next, None)) == sent


@settings(max_examples=40)
@given(messages, st.lists(st.integers(1, 400), max_size=40), st.binary(max_size=60))
def test_events_and_answers_do_not_depend_on_how_the_bytes_are_cut(sent, sizes, garbage):
    media = b"".join(rtmp.chunk(4 + i % 3, m.type_id, m.timestamp, m.payload, 1) for i, m in enumerate(sent))
    data = rtmp.hello() + media + garbage

    def run(pieces):
        connection, events, out = ServerConnection(NONCE), [], b""
        for piece in pieces:
            got = connection.receive(piece)
            if got and isinstance(got[-1], PublishRequested):
                events += got
                connection.accept_publish()
                got = connection.receive(b"")
            events += got
            out += connection.data_to_send()
        return events, out

    whole = run([data])
    assert run(cut(data, sizes)) == whole
    media_events = [e for e in whole[0] if isinstance(e, Message)]
    assert len(media_events) >= len(sent)


@given(
    st.lists(
        st.tuples(
            st.integers(4, 5),
            st.integers(0, 3),
            st.integers(0, 0xFFFFFF),
            st.binary(max_size=300),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.sampled_from([1, 64, 128, 4096]),
    st.integers(1, 50),
)
def test_every_header_format_is_read_the_same_however_it_is_cut(planned, chunk_bytes, step):
    """What is read in one step and what is put together chunk by chunk are one language."""
    data, lengths, expected = b"", {}, 0
    for channel, header, stamp, body, resized in planned:
        header = min(header, 3 if lengths.get(channel) == len(body) else 1) if channel in lengths else 0
        if header < 2 and resized:
            body = body[:128]
        tail = struct.pack(">I", stamp) if stamp == 0xFFFFFF and header < 3 else b""
        head = bytes((header << 6 | channel,))
        if header < 3:
            head += stamp.to_bytes(3, "big")
        if header < 2:
            head += len(body).to_bytes(3, "big") + b"\x09"
            lengths[channel] = len(body)
        if header == 0:
            head += b"\1\0\0\0"
        pieces = [body[at : at + chunk_bytes] for at in range(0, len(body), chunk_bytes)] or [b""]
        data += head + tail + bytes((0xC0 | channel,)).join(pieces)
        expected += 1

    def run(pieces, *, short_way):
        reader, found = ChunkReader(), []
        reader.set_chunk_bytes(chunk_bytes)
        for piece in pieces:
            reader.feed(piece)
            with contextlib.suppress(RtmpError):
                message: Message | None = Message(0, 0, 0, b"")
                while message is not None:
                    found += reader.media() if short_way else []
                    message = reader.next()
                    found += [message] if message is not None else []
        return found, reader.consumed

    whole = run([data], short_way=False)
    assert run([data], short_way=True) == whole
    for short_way in (False, True):
        assert run([data[at : at + step] for at in range(0, len(data), step)], short_way=short_way) == whole
    if all(stamp < 0xFFFFFF for _, _, stamp, _, _ in planned):
        assert len(whole[0]) == expected
        assert whole[1] == len(data)


def test_byte_by_byte_is_the_same_as_all_at_once():
    data = rtmp.hello() + rtmp.chunk(4, 9, 5, b"\x17\x01" * 100, 1) + rtmp.unpublish("main_key")
    connection, events = ServerConnection(NONCE), []
    for i in range(len(data)):
        got = connection.receive(data[i : i + 1])
        events += got
        if got and isinstance(got[-1], PublishRequested):
            connection.accept_publish()
    assert events == [PublishRequested("main_key"), Message(9, 5, 1, b"\x17\x01" * 100), Unpublished()]


@settings(max_examples=150)
@given(st.lists(st.binary(max_size=3000), max_size=8), st.booleans())
def test_any_bytes_in_any_pieces_raise_nothing_and_hold_little(pieces, after_hello):
    connection = ServerConnection(NONCE)
    if after_hello:
        connection.receive(rtmp.hello())
        connection.accept_publish()
    for piece in pieces:
        events = connection.receive(piece)
        if any(isinstance(e, PublishRequested) for e in events):
            connection.accept_publish()
        assert connection.held_bytes <= MAX_HELD_BYTES + MAX_CHUNK_BYTES
        connection.data_to_send()


@settings(max_examples=150)
@given(st.sampled_from([15, 17, 18, 20]), st.binary(max_size=400))
def test_any_command_payload_raises_nothing(type_id, payload):
    connection, _ = publishing()
    connection.receive(rtmp.chunk(3, type_id, 0, payload))
