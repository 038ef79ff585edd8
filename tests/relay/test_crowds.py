"""Many who connect and say nothing, or say it slowly, and connections that end at any byte: nobody else notices."""

import asyncio
import contextlib
from dataclasses import replace

import pytest
import rtmp_client as rtmp
from relay_rig import FAST, Encoder, is_header, publishing, rig

from relay import http_bounds

CROWD = 1_000
GET = b"GET /live/main.m3u8 HTTP/1.1\r\nhost: x\r\n\r\n"


@contextlib.asynccontextmanager
async def crowd(port: int, count: int = CROWD):
    """Connections that nobody speaks on: (reader, writer) each."""
    opened = []
    for _ in range(count // 50):
        opened += await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(50)))
    try:
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()
        await asyncio.sleep(0)


async def ended(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            pass


def test_a_thousand_idle_connections_keep_no_encoder_out_and_are_closed(source):
    async def scenario():
        limits = replace(FAST, max_connections=64, handshake_timeout_s=1.0, publish_timeout_s=2.0)
        async with rig(limits) as r:
            before = await publishing(r)
            await before.send([t for t in source if t[1] < 2500])
            async with crowd(r.rtmp_port) as idle:
                await r.until(lambda: r.origin.stats().encoders == 64)
                other = await publishing(r, "late_other")
                await asyncio.wait_for(asyncio.gather(*(ended(reader) for reader, _ in idle)), 20)
            await r.until(lambda: r.origin.stats().encoders == 2)
            await before.send([t for t in source if 2500 <= t[1] < 4500 and not is_header(t)])
            await r.until(lambda: len(r.authority.published) >= 4)
            await before.kill()
            await other.kill()

    asyncio.run(scenario())


def test_where_everybody_publishes_a_newcomer_is_turned_away_and_nobody_else():
    async def scenario():
        async with rig(replace(FAST, max_connections=2)) as r:
            first, second = await publishing(r), await publishing(r, "late_other")
            third = await Encoder.connect(r.rtmp_port, "third_other")
            assert await third.closed()
            assert r.origin.stats().encoders == 2
            for encoder in (first, second, third):
                await encoder.kill()

    asyncio.run(scenario())


def test_a_handshake_that_drips_is_ended_by_the_clock():
    async def scenario():
        async with rig(replace(FAST, handshake_timeout_s=0.3)) as r:
            reader, writer = await asyncio.open_connection("127.0.0.1", r.rtmp_port)
            end = asyncio.create_task(ended(reader))
            for byte in rtmp.C0C1C2:
                if end.done():
                    break
                writer.write(bytes((byte,)))
                await asyncio.sleep(0.02)
            await asyncio.wait_for(end, 8)
            writer.transport.abort()

    asyncio.run(scenario())


def test_a_thousand_idle_and_slow_http_connections_keep_no_viewer_out_and_are_closed(source, monkeypatch):
    monkeypatch.setattr(http_bounds, "HEAD_S", 2.0)
    monkeypatch.setattr(http_bounds.BoundedHttpProtocol, "max_connections", CROWD + 100)

    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send([t for t in source if t[1] < 2500])
            async with crowd(r.http_port) as idle:
                for i, (_, writer) in enumerate(idle):
                    writer.write(GET[: i % (len(GET) - 1)])
                playlist = await r.http.get(r.url(await r.media_playlist()))
                assert "#EXTINF" in playlist.text
                await asyncio.wait_for(asyncio.gather(*(ended(reader) for reader, _ in idle)), 20)
            await encoder.kill()

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(3))
def test_an_encoder_that_dies_at_any_byte_leaves_nothing_behind(source, seed):
    """Killed at every 97th byte or so of its first words, and then in the middle of media."""

    async def scenario():
        async with rig(replace(FAST, publish_grace_s=0.05, retain_s=0.05)) as r:
            words = rtmp.hello(key="main_other") + rtmp.set_chunk_size(65536)
            media = b"".join(
                rtmp.chunk(4, kind, stamp, body, 1, 65536) for kind, stamp, body in source[:60] if kind != 18
            )
            for at in range(seed * 31, len(words), 97):
                _, writer = await asyncio.open_connection("127.0.0.1", r.rtmp_port)
                writer.write(words[:at])
                await asyncio.sleep(0)
                writer.transport.abort()
            for at in range(seed * 701 + 1, len(media), 4099):
                encoder = await Encoder.connect(r.rtmp_port, f"k{at}_other")
                assert await encoder.answered(b"NetStream.Publish.Start")
                await encoder.send_raw(media[:at])
                await encoder.kill()
            await r.until(lambda: r.origin.stats().encoders == 0)
            await r.until(lambda: not r.origin._catalogue.lives)
            assert not r.origin._catalogue.renditions

    asyncio.run(scenario())


def test_a_viewer_that_dies_at_any_byte_leaves_nothing_behind(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(source)
            await r.until(lambda: len(r.authority.published) >= 4)
            path = await r.media_playlist()
            asked = [path, f"{path.rpartition('/')[0]}/1.ts", "/live/main.flv"]
            for i, target in enumerate(asked * 12):
                request = f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
                reader, writer = await asyncio.open_connection("127.0.0.1", r.http_port)
                writer.write(request[: len(request) - i % 5 // 4 * 3])
                if i % 5 < 4:
                    await reader.read(1 << 4 * (i % 5))
                writer.transport.abort()
            live = r.origin._catalogue.lives["main"]
            await r.until(lambda: not live.fanout.viewers)
            assert (await r.http.get(r.url(path))).status_code == 200
            await encoder.kill()

    asyncio.run(scenario())
