"""SRT ports: real encoders push, real players read; and what a strange ffmpeg, or none, does to the port."""

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_rig import FAST, KEY, Rig, read_flv, rig
from structlog.testing import capture_logs

from relay.media import flv
from relay.media.errors import BadMedia
from relay.media.flv_reader import MAX_TAG_BYTES, FlvReader
from relay.srt import server
from relay.srt.listener import Listener, Said, command

HAS_SRT = shutil.which("ffmpeg") is not None and "srt" in (
    subprocess.run(["ffmpeg", "-v", "quiet", "-protocols"], capture_output=True, text=True).stdout.split()
)
real = [pytest.mark.ffmpeg, pytest.mark.skipif(not HAS_SRT, reason="this ffmpeg was built without SRT")]
WRONG = "main_" + "z" * 32
PASSPHRASE = "a-passphrase_of-24-chars"


# --- the FLV that comes out of ffmpeg ------------------------------------------------------------------------------

tags = st.lists(
    st.tuples(
        st.sampled_from((flv.AUDIO, flv.VIDEO, flv.SCRIPT)),
        st.integers(0, 2**32 - 1),
        st.binary(min_size=1, max_size=60),
    ),
    max_size=8,
)


@given(tags, st.lists(st.integers(0, 700), max_size=12), st.binary(max_size=20))
def test_tags_do_not_depend_on_how_the_bytes_are_cut(sent, cuts, unfinished):
    data = flv.file_header(video=True, audio=False) + b"".join(flv.tag(*tag) for tag in sent)
    data += flv.tag(flv.VIDEO, 0, bytes(40))[: len(unfinished)]
    reader, got = FlvReader(), []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(edges):
        got += reader.feed(data[start:stop])
    assert got == sent
    assert (reader.has_video, reader.has_audio) == (True, False)


@given(st.binary(max_size=300), st.booleans())
def test_what_is_no_flv_is_refused_or_waited_for(data, begun):
    reader = FlvReader()
    with contextlib.suppress(BadMedia):
        for tag in reader.feed((flv.file_header(video=True, audio=True) if begun else b"") + data):
            assert tag.body


def test_a_tag_of_more_than_the_bound_is_refused_at_its_header():
    head = bytes((flv.VIDEO,)) + (MAX_TAG_BYTES + 1).to_bytes(3, "big") + bytes(7)
    with pytest.raises(BadMedia):
        FlvReader().feed(flv.file_header(video=True, audio=True) + head)


# --- what ffmpeg says ----------------------------------------------------------------------------------------------

NAME = "[srt @ 0x5596e992b240] "


@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=4, max_size=80))
def test_the_first_stream_id_counts_and_no_complaint_holds_it(key):
    async def scenario():
        said = Said()
        said.take(f"[error] {key} before")
        said.take(f"{NAME}[verbose] accept streamid [{key}], length {len(key)}")
        said.take(f"{NAME}[verbose] accept streamid [another], length 7")
        said.take(f"{NAME}[error] {key * 3}{'x' * 500}")
        assert said.stream_id.result() == key
        assert len(said.complaints) < 500
        assert key not in said.complaints.replace("***", "").replace(" before", "")

    asyncio.run(scenario())


@given(st.lists(st.text(max_size=40), max_size=8))
@settings(max_examples=50)
def test_whatever_is_said_following_ends_with_the_pipe(lines):
    async def scenario():
        reader = asyncio.StreamReader(limit=64)
        reader.feed_data("\n".join(lines).encode("utf-8", "replace") + b"\n" + b"x" * 1000)
        reader.feed_eof()
        said = Said()
        await said.follow(reader)
        assert said.stream_id.done()

    asyncio.run(scenario())


def test_addresses_of_both_families():
    assert "srt://0.0.0.0:9000?mode=listener" in command(Listener("ffmpeg", "0.0.0.0", 9000))
    assert "srt://[::]:9000?mode=listener" in command(Listener("ffmpeg", "::", 9000))


def test_a_passphrase_is_in_no_command_line_and_in_no_log():
    listener = Listener("ffmpeg", "0.0.0.0", 9000, PASSPHRASE)
    assert PASSPHRASE not in " ".join(command(listener))
    assert PASSPHRASE not in repr(listener)
    assert f"option passphrase {PASSPHRASE}\n".encode() in listener.script


# --- real encoders -------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def srt_rig(
    ports: int = 1, passphrase: str | None = None, **changed: float
) -> AsyncIterator[tuple[Rig, list[int], list[dict]]]:
    with capture_logs() as lines:
        async with rig(replace(FAST, **changed)) as r:
            numbers = [free_port() for _ in range(ports)]
            assert await r.origin.start_srt("127.0.0.1", numbers, passphrase)
            yield r, numbers, lines
        assert KEY not in str(lines)
        assert WRONG not in str(lines)
        assert PASSPHRASE not in str(lines)


@contextlib.asynccontextmanager
async def pushing(
    source: Path, port: int, key: str, *options: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """As an encoder does, again until the port takes it."""
    query = f"?streamid={key}" if key else ""
    address = f"srt://127.0.0.1:{port}{query}"
    push = ["ffmpeg", "-v", "error", "-nostdin", "-re", "-i", str(source), *(options or ("-c", "copy"))]
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", 'until "$@"; do sleep 0.1; done', "sh", *push, "-f", "mpegts", address,
        stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        signal_group(process, signal.SIGKILL)
        await process.wait()


def signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def children(port: int) -> list[int]:
    """The ffmpegs that listen on a port."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"srt://127.0.0.1:{port}?mode=listener".encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def reasons(lines: list[dict], event: str) -> list[str]:
    return [line["reason"] for line in lines if line["event"] == event]


class TestRealEncoders:
    pytestmark = real

    def test_a_passphrase_is_asked_for_before_the_key(self, source_flv):
        async def scenario():
            async with srt_rig(passphrase=PASSPHRASE) as (r, (port,), _):
                for wrong in ("", "&passphrase=another-passphrase"):
                    async with pushing(source_flv, port, KEY + wrong):
                        await asyncio.sleep(1.0)
                assert r.authority.calls == []
                async with pushing(source_flv, port, f"{KEY}&passphrase={PASSPHRASE}"):
                    await r.until(lambda: len(r.authority.segments) >= 2, 30)

        asyncio.run(scenario())

    def test_a_push_plays_and_a_key_is_published_once_whatever_the_port(self, source_flv):
        async def scenario():
            async with (
                srt_rig(2) as (r, (port, other), lines),
                pushing(source_flv, port, KEY) as encoder,
            ):
                await r.until(lambda: len(r.authority.published) >= 2, 15)
                assert r.authority.calls[:2] == [
                    "check_key",
                    next(c for c in r.authority.calls if "start" in c),
                ]
                async with pushing(source_flv, other, KEY):
                    await r.until(lambda: reasons(lines, "srt_refused"), 10)
                assert "already being published" in reasons(lines, "srt_refused")[0]
                playlist = await r.media_playlist()
                answer = await r.http.get(r.url(playlist))
                assert answer.text.count("#EXTINF") >= 2
                async with r.http.stream("GET", r.url("/live/main.flv")) as stream:
                    got = b""
                    async for piece in stream.aiter_raw():
                        got += piece
                        if len(got) > 20_000:
                            break
                assert {tag[0] for tag in read_flv(got)} >= {flv.AUDIO, flv.VIDEO}
                assert not reasons(lines, "srt_closed")
                signal_group(encoder, signal.SIGTERM)
                await r.until(lambda: r.authority.ended == ["the publisher did not come back"], 10)
                assert reasons(lines, "srt_closed") == ["the encoder stopped or its connection was lost"]

        asyncio.run(scenario())

    def test_a_wrong_key_or_none_is_refused_and_the_port_is_free_again(self, source_flv):
        async def scenario():
            async with srt_rig() as (r, (port,), lines):
                async with pushing(source_flv, port, WRONG):
                    await r.until(lambda: len(reasons(lines, "srt_refused")) >= 1, 10)
                async with pushing(source_flv, port, ""):
                    await r.until(lambda: "the stream key is missing" in reasons(lines, "srt_refused"), 10)
                assert reasons(lines, "srt_refused")[0] == "the stream key is wrong"
                assert set(r.authority.calls) == {"check_key"}
                async with pushing(source_flv, port, KEY):
                    await r.until(lambda: r.authority.published, 20)

        asyncio.run(scenario())

    def test_sound_that_is_not_aac_is_refused_with_words(self, source_flv):
        async def scenario():
            async with srt_rig() as (r, (port,), lines):
                async with pushing(source_flv, port, KEY, "-c:v", "copy", "-c:a", "ac3"):
                    await r.until(lambda: reasons(lines, "srt_closed"), 10)
                assert reasons(lines, "srt_closed")[0] == "the audio is ac3; set the encoder to AAC"
                assert not r.authority.published

        asyncio.run(scenario())

    def test_a_lost_encoder_comes_back_into_its_broadcast_and_a_hanging_ffmpeg_is_replaced(self, source_flv):
        async def scenario():
            async with srt_rig(idle_timeout_s=2.0, publish_grace_s=60.0) as (r, (port,), lines):
                await r.until(lambda: children(port))
                (idle,) = children(port)
                os.kill(idle, signal.SIGKILL)
                await r.until(lambda: children(port) not in ([], [idle]))
                assert "before an encoder came" in reasons(lines, "srt_not_listening")[0]
                async with pushing(source_flv, port, KEY) as encoder:
                    await r.until(lambda: r.authority.grants, 20)
                    signal_group(encoder, signal.SIGKILL)
                    await r.until(lambda: "interrupt" in r.authority.calls, 10)
                async with pushing(source_flv, port, KEY):
                    await r.until(lambda: len(r.authority.grants) == 2, 20)
                    assert r.authority.grants[0].broadcast_id == r.authority.grants[1].broadcast_id
                    (busy,) = children(port)
                    os.kill(busy, signal.SIGSTOP)
                    await r.until(lambda: len(reasons(lines, "srt_closed")) == 2, 10)
                    await r.until(lambda: children(port) not in ([], [busy]))
                assert set(reasons(lines, "srt_closed")) == {"no media for 2 s"}
            assert children(port) == []

        asyncio.run(scenario())

    def test_a_port_that_is_taken_is_said(self):
        async def scenario():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
                taken.bind(("127.0.0.1", 0))
                port = taken.getsockname()[1]
                with capture_logs() as lines:
                    async with rig() as r:
                        assert await r.origin.start_srt("127.0.0.1", [port])
                        await r.until(lambda: reasons(lines, "srt_not_listening"))
            assert "Address already in use" in reasons(lines, "srt_not_listening")[0]

        asyncio.run(scenario())


# --- no ffmpeg, or a strange one -----------------------------------------------------------------------------------


def program(folder: Path, body: str) -> None:
    path = folder / "ffmpeg"
    path.write_text(f'#!/bin/sh\ncase "$*" in *-protocols*) echo "  srt"; exit;; esac\n{body}\n')
    path.chmod(0o755)


def test_without_ffmpeg_the_hub_goes_on_without_srt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    async def scenario():
        async with rig() as r:
            with capture_logs() as lines:
                assert not await r.origin.start_srt("127.0.0.1", [free_port()])
                (tmp_path / "ffmpeg").write_text("#!/bin/sh\necho Input: file rtmp\n")
                (tmp_path / "ffmpeg").chmod(0o755)
                assert not await r.origin.start_srt("127.0.0.1", [free_port()])
            first, second = reasons(lines, "srt_off")
            assert "no program ffmpeg is found" in first
            assert "was built without SRT" in second

    asyncio.run(scenario())


def test_media_without_a_stream_id_is_never_looked_at(tmp_path, monkeypatch, source_flv):
    monkeypatch.setattr(server, "KEY_TIMEOUT_S", 0.2)
    program(tmp_path, f"exec /bin/cat {source_flv} /dev/zero")
    monkeypatch.setenv("PATH", str(tmp_path))

    async def scenario():
        async with srt_rig() as (r, _, lines):
            await r.until(lambda: reasons(lines, "srt_refused"))
            assert reasons(lines, "srt_refused")[0] == "no stream key within 0.2 s"
            assert r.authority.calls == []

    asyncio.run(scenario())


def test_an_ffmpeg_that_writes_no_flv_ends_its_own_port_only(tmp_path, monkeypatch):
    program(
        tmp_path, f"echo '{NAME}[verbose] accept streamid [{KEY}], length 3' >&2; exec /bin/cat /dev/zero"
    )
    monkeypatch.setenv("PATH", str(tmp_path))

    async def scenario():
        async with srt_rig() as (r, _, lines):
            await r.until(lambda: len(reasons(lines, "srt_closed")) >= 2)
            assert set(reasons(lines, "srt_closed")) == {"this is no FLV file"}
            assert not r.authority.grants

    asyncio.run(scenario())
