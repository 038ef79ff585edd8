"""Answers in place and files in memory: the same bytes as the general way, whatever is asked for or read."""

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
import uvicorn
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_rig import MemoryAuthority, MemorySteering

from ledger.events import Segment
from relay import http_bounds
from relay.body import FILE_FROM, Body
from relay.http import media_protocol
from relay.media.h264 import H264Config
from relay.media.packager import Format, Packed
from relay.origin.asgi import MediaApp
from relay.origin.live import Catalogue, Live
from relay.origin.settings import OriginSettings
from relay.origin.store import RenditionStore
from relay.ports import StreamGrant

SESSION, OTHER = UUID(int=1), UUID(int=2)
SIZES = (0, 1, 700, 80_000, 24_000_000)  # the last is more than sockets hold
MEDIA = [random.Random(size).randbytes(size) for size in SIZES]
HASHES = [hashlib.sha256(data).digest() for data in MEDIA]
FORMAT = Format(H264Config("avc1.64001f", 1280, 720, 4, b"", b""), None)
HOSTS = ["host: x\r\n", "host: y\r\naccept: */*\r\n"]


class Publisher:
    silent_s = 0.0

    def expel(self, reason: str) -> None: ...


def media_app(files: Path | None = None) -> tuple[MediaApp, MemorySteering]:
    """A stream that has published MEDIA, and two sessions; the second is of another stream."""
    chosen = OriginSettings(playlist_wait_s=0.05, segment_wait_s=0.05, files=files)
    authority, steering = MemoryAuthority(), MemorySteering()
    steering.sessions.update({SESSION: "main", OTHER: "elsewhere"})
    catalogue = Catalogue(authority, chosen, lambda: 0)
    live = Live(StreamGrant(UUID(int=9), "main"), authority, chosen, lambda: 0, catalogue)
    live.admit(Publisher())
    store = RenditionStore(UUID(int=9), FORMAT, 0, chosen, time.monotonic)
    for sequence, (data, sha256) in enumerate(zip(MEDIA, HASHES, strict=True)):
        store.add(Segment(sequence, 2_000_000, len(data), sha256, 0), Packed(data, sha256))
    live.rendition = store
    catalogue.lives["main"] = live
    return MediaApp(catalogue, steering, chosen, lambda: 0), steering


@contextlib.asynccontextmanager
async def serving(app: MediaApp, *, in_place: bool = True) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    protocol = media_protocol(app.at_once if in_place else lambda *_: False, max_connections=100)
    config = uvicorn.Config(
        app,
        http=protocol,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


def segment(sequence: int, session: UUID = SESSION) -> str:
    return f"/live/main/{session}/{sequence}.ts"


def get(target: str, lines: str = HOSTS[0], method: str = "GET") -> bytes:
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode()


async def one_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) if b" 304 " not in head else 0
    return head + (b"" if head_only else await reader.readexactly(length))


TARGETS = st.sampled_from(
    [
        f"/live/main/{SESSION}/index.m3u8",
        f"/live/main/{SESSION}/index.m3u8?via=hub",
        f"/live/main/{SESSION}/index.m3u8?_HLS_msn=2",
        f"/live/main/{SESSION}/index.m3u8?x",
        f"/live/main/{OTHER}/index.m3u8",
        f"/live/other/{SESSION}/index.m3u8",
        f"/live/main/{SESSION}/../index.m3u8",
        f"/live/main/{SESSION}/%69ndex.m3u8",
        "/live/main.jpg",
        *(segment(n) for n in (0, 1, 2, 3, 3, 3, 5, 6)),
        segment(3, OTHER),
        segment(3) + "?t=1",
    ]
)
LINES = st.sampled_from(
    [
        *HOSTS * 3,
        "host: x\r\nif-none-match: *\r\n",
        "host: x\r\nx-forwarded-for: 192.0.2.7\r\n",
        "host: x\r\ncontent-length: 0\r\n",
        "host: x\r\nexpect: 100-continue-not\r\n",
        "HOST: x\r\nX-Folded: a b\r\n",
    ]
)
REQUESTS = st.lists(
    st.tuples(TARGETS, LINES, st.sampled_from(["GET", "GET", "GET", "HEAD"]), st.integers(0, 400)),
    max_size=12,
)


async def all_answers(port: int, requests: list[tuple[str, str, str, int]], together: int) -> list[bytes]:
    """Asked for one after the other, `together` at a time, cut where the number says."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 23)
    answers = []
    for at in range(0, len(requests), together):
        group = requests[at : at + together]
        data = b"".join(get(target, lines, method) for target, lines, method, _ in group)
        cut = group[0][3]
        writer.write(data[:cut])
        await asyncio.sleep(0)
        writer.write(data[cut:])
        for _, _, method, _ in group:
            async with asyncio.timeout(20):
                answers.append(await one_answer(reader, head_only=method == "HEAD"))
    writer.close()
    return answers


@settings(max_examples=40, deadline=None)
@given(REQUESTS, st.integers(1, 3))
def test_what_is_answered_in_place_is_answered_as_in_the_general_way(requests, together):
    async def scenario() -> None:
        said = []
        for in_place in (True, False):
            app, steering = media_app()
            async with serving(app, in_place=in_place) as port:
                answers = await all_answers(port, requests, together)
            said.append((answers, steering.polls, steering.fetches, app.sent_bytes, app.viewers.counts(0.0)))
        assert said[0] == said[1]

    uvloop.run(scenario())


def test_pipelined_requests_behind_the_last_one_are_not_answered():
    async def scenario() -> None:
        app, _ = media_app()
        async with serving(app) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            last = get(segment(2), HOSTS[0] + "connection: close\r\n")
            writer.write(get(segment(1)))
            await one_answer(reader)
            writer.write(last)
            writer.write(last + get(segment(2)))
            async with asyncio.timeout(20):
                assert (await reader.read(-1)).count(b"HTTP/1.1 ") == 1
            writer.close()

    uvloop.run(scenario())


def test_a_request_that_only_looks_like_the_one_before_goes_to_the_parser():
    async def scenario() -> None:
        app, _ = media_app()
        async with serving(app) as port:
            known = get(segment(2))
            for strange in (
                known.replace(b"GET /", b"GET  /"),
                known.replace(b"GET ", b"GET x HTTP/1.1\r\nhost: "),
                known.replace(b".ts", b".ts\r\nhost: z\r\n\r\nGET /live/"),
                known.replace(b".ts", b".ts\0"),
                b"x" + known,
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(known)
                assert b" 200 " in await one_answer(reader)
                writer.write(strange)
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.split()[1] in (b"400", b"404", b"200")
                if head.split()[1] == b"200":
                    assert head.endswith(b"\r\n\r\n")
                    assert await reader.readexactly(700) == MEDIA[2]
                writer.close()

    uvloop.run(scenario())


async def made_a_file(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which the large segment has been asked for until it is a file."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    for _ in range(FILE_FROM):
        writer.write(get(segment(4)))
        assert (await one_answer(reader)).endswith(MEDIA[4])
    return reader, writer


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_slow_reader_gets_all_of_a_file_and_then_what_else_it_asked_for(on_disk, tmp_path):
    async def scenario() -> None:
        app, _ = media_app(tmp_path if on_disk else None)
        async with serving(app) as port:
            reader, writer = await made_a_file(port)
            writer.write(get(segment(4)))
            await asyncio.sleep(0.05)
            # The second begins while the first still fills the socket.
            writer.write(b"".join(get(segment(number)) for number in (4, 2, 4, 1)))
            await asyncio.sleep(0.1)
            for number in (4, 4, 2, 4, 1):
                assert (await one_answer(reader)).endswith(MEDIA[number])
            writer.close()

    uvloop.run(scenario())


@pytest.mark.parametrize("last", ["half", "close"])
def test_a_client_that_asks_no_more_gets_all_of_a_file(last):
    async def scenario() -> None:
        app, _ = media_app()
        async with serving(app) as port:
            reader, writer = await made_a_file(port)
            if last == "half":
                writer.write(get(segment(4)))
                writer.write_eof()
            else:
                writer.write(get(segment(4), HOSTS[0] + "connection: close\r\n"))
            await asyncio.sleep(0.1)
            async with asyncio.timeout(20):
                assert (await reader.read(-1)).endswith(MEDIA[4])
            writer.close()

    uvloop.run(scenario())


def test_garbage_in_the_middle_of_a_file_ends_the_connection_without_a_word():
    async def scenario() -> None:
        app, _ = media_app()
        async with serving(app) as port:
            reader, writer = await made_a_file(port)
            writer.write(get(segment(4)))
            await asyncio.sleep(0.05)
            writer.write(b"\0nonsense\r\n\r\n")
            await asyncio.sleep(0.1)
            got = b""
            with contextlib.suppress(ConnectionError):
                got = await reader.read(-1)
            assert b"HTTP/1.1 400" not in got
            writer.close()

    uvloop.run(scenario())


@pytest.mark.parametrize("on_disk", [False, True])
def test_who_goes_or_takes_nothing_in_the_middle_of_a_file_leaves_nothing_behind(
    on_disk, tmp_path, monkeypatch
):
    async def scenario() -> None:
        app, _ = media_app(tmp_path if on_disk else None)
        async with serving(app) as port:
            _, writer = await made_a_file(port)
            writer.close()
            await asyncio.sleep(0.1)
            before = len(list(Path("/proc/self/fd").iterdir()))
            gone, stalled = [await made_a_file(port) for _ in range(2)]
            monkeypatch.setattr(http_bounds, "STALL_S", 0.2)
            for _, writer in (gone, stalled):
                writer.write(get(segment(4)))
            await asyncio.sleep(0.05)
            gone[1].transport.abort()
            await asyncio.sleep(0.5)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await one_answer(stalled[0])
            stalled[1].close()
            await asyncio.sleep(0.1)
            assert len(list(Path("/proc/self/fd").iterdir())) <= before

    uvloop.run(scenario())


def test_who_reads_slowly_is_not_taken_for_somebody_who_stalls(monkeypatch):
    """A file is one pause from its first byte to its last, and may take longer than anybody may stall."""

    async def scenario() -> None:
        app, _ = media_app()
        async with serving(app) as port:
            reader, writer = await made_a_file(port)
            monkeypatch.setattr(http_bounds, "STALL_S", 1.0)
            writer.write(get(segment(4)))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head
            got, started_s = 0, time.monotonic()
            while got < SIZES[4]:
                got += len(await reader.readexactly(min(2_400_000, SIZES[4] - got)))
                await asyncio.sleep(0.2)
            assert time.monotonic() - started_s > http_bounds.STALL_S
            writer.close()

    uvloop.run(scenario())


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_body_becomes_a_file_when_asked_for_often_and_its_bytes_stay_what_they_were(on_disk, tmp_path):
    data = os.urandom(100_000)
    body = Body(data, tmp_path if on_disk else None)
    files = [body.file() for _ in range(FILE_FROM + 1)]
    if not hasattr(os, "memfd_create"):
        pytest.skip("no files in memory on this system")
    assert files[: FILE_FROM - 1] == [None] * (FILE_FROM - 1)
    assert os.pread(files[-1].fd, 200_000, 0) == data
    assert not list(tmp_path.iterdir())
    assert body.data == data
    assert len(body) == 100_000
    view = body.data
    fd = files[-1].fd
    files.clear()
    del body
    assert view == data
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_body_that_few_will_ask_for_leaves_its_folder_once_it_is_sent_and_does_not_come_back(tmp_path):
    data = os.urandom(100_000)
    body = Body(data, tmp_path)
    sending = [body.file() for _ in range(FILE_FROM)][-1]
    if sending is None:
        pytest.skip("no files without a name on this system")
    body.settle()
    assert body.data == data
    assert os.pread(sending.fd, 200_000, 0) == data
    fd = sending.fd
    del sending
    with pytest.raises(OSError):
        os.fstat(fd)
    again = [body.file() for _ in range(FILE_FROM)][-1]
    body.settle()
    assert again is not None
    assert "memfd" in os.readlink(f"/proc/self/fd/{again.fd}")
    assert body.file() is again


def test_a_body_whose_folder_is_gone_becomes_a_file_in_memory(tmp_path):
    body = Body(b"x" * 10, tmp_path / "gone")
    file = [body.file() for _ in range(FILE_FROM)][-1]
    if not hasattr(os, "memfd_create"):
        pytest.skip("no files in memory on this system")
    assert file is not None
    assert os.pread(file.fd, 20, 0) == b"x" * 10


def test_segments_leave_their_folder_before_linux_writes_them(tmp_path):
    now = [0.0]
    chosen = OriginSettings(files=tmp_path, files_s=20.0)
    store = RenditionStore(SESSION, FORMAT, 0, chosen, lambda: now[0])
    bodies = []
    for sequence in range(12):
        now[0] = sequence * 2.0
        store.add(Segment(sequence, 2_000_000, 3, bytes(32), 0), Packed(b"abc", bytes(32)))
        stored = store.get(sequence)
        assert stored is not None
        bodies.append(stored.body)
        for _ in range(FILE_FROM):
            stored.body.file()
    if bodies[-1].file() is None:
        pytest.skip("no files without a name on this system")
    assert [b.file() is None for b in bodies] == [True] * 2 + [False] * 10
    assert all(b.data == b"abc" for b in bodies)


def test_a_body_stays_an_object_where_there_is_no_descriptor_left(monkeypatch):
    def none_left(name: str) -> int:
        raise OSError("too many open files")

    monkeypatch.setattr(os, "memfd_create", none_left, raising=False)
    body = Body(b"x" * 10)
    assert [body.file() for _ in range(10)] == [None] * 10
    assert body.data == b"x" * 10
