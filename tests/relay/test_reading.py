"""Encoders' sockets read together: what waits, what does not, and that one encoder's trouble is its own."""

import asyncio
from dataclasses import replace

import pytest
import rtmp_client as rtmp
from relay_rig import FAST, Tag, is_header, is_key, publishing, rig

from relay.origin.settings import OriginSettings
from relay.reading import Rounds

SELDOM = replace(FAST, flv_batch_s=3600.0)  # only what wakes the event loop is read
GOP_MS = 1000


def gop(source: list[Tag], number: int) -> list[Tag]:
    """The tags of one key frame interval; those of the first with the headers."""
    begin = number * GOP_MS
    return [
        t
        for t in source
        if (not number and is_header(t)) or (not is_header(t) and begin <= t[1] < begin + GOP_MS)
    ]


def sound(at_ms: int) -> Tag:
    return 8, at_ms, b"\xaf\1" + bytes(100)


async def read_all(rig, sent: int) -> None:
    await rig.until(lambda: rig.origin.stats().received_bytes >= sent)


def test_a_key_frame_that_ends_a_segment_waits_for_no_round(source):
    async def scenario():
        async with rig(SELDOM) as r:
            encoder = await publishing(r)
            for number in range(4):
                await encoder.send(gop(source, number))
            (key,) = [t for t in gop(source, 4) if is_key(t)]
            await encoder.send([key])
            await r.until(lambda: len(r.authority.segments) == 4)
            await encoder.kill()

    asyncio.run(scenario())


@pytest.mark.parametrize("chunk_bytes", [128, 65536])
def test_the_rest_of_a_key_frame_waits_for_no_round(source, chunk_bytes):
    async def scenario():
        async with rig(SELDOM) as r:
            encoder = await publishing(r)
            await encoder.send_raw(rtmp.set_chunk_size(chunk_bytes))
            (last,) = [t for t in gop(source, 4) if is_key(t)]
            sent = [t for number in range(4) for t in gop(source, number)]
            *whole, data = (rtmp.chunk(4, *tag, 1, chunk_bytes) for tag in (*sent, last))
            before = r.origin.stats().received_bytes
            await encoder.send_raw(b"".join(whole) + data[:-100])
            await r.until(lambda: r.origin.stats().received_bytes >= before + sum(map(len, whole)))
            await encoder.send_raw(data[-100:])
            await r.until(lambda: len(r.authority.segments) == 4)
            await encoder.kill()

    asyncio.run(scenario())


@pytest.mark.parametrize("every_s", [0.02, 3600.0])
def test_what_is_less_than_most_of_a_key_frame_waits_for_the_next_round(source, every_s):
    async def scenario():
        async with rig(replace(FAST, flv_batch_s=every_s)) as r:
            encoder = await publishing(r)
            await encoder.send([t for t in gop(source, 0) if is_header(t) or is_key(t)])
            await r.until(lambda: r.authority.grants)
            before = r.origin.stats().received_bytes
            await encoder.send([sound(40)])
            if every_s < 1:
                await read_all(r, before + 102)
            else:
                await asyncio.sleep(0.2)
                assert r.origin.stats().received_bytes == before
            await encoder.kill()
            await r.until(lambda: r.authority.interrupted)  # the end of a connection wakes at once
            assert r.origin.stats().received_bytes > before

    asyncio.run(scenario())


def test_where_viewers_count_milliseconds_nothing_waits():
    assert OriginSettings().reads_together_s > 0
    assert OriginSettings(flv_batch_s=0).reads_together_s == 0
    assert OriginSettings(container="fmp4", low_latency_viewers=1).reads_together_s == 0


def test_segments_are_the_same_however_sockets_are_read(source):
    async def scenario():
        recorded = []
        for every_s in (0.0, 0.02):
            async with rig(replace(FAST, flv_batch_s=every_s)) as r:
                encoder = await publishing(r)
                await encoder.send(source)
                await encoder.stop()
                await r.until(lambda: r.authority.ended)
                recorded.append([s.sha256 for s in r.authority.segments])
        assert recorded[0] == recorded[1]

    asyncio.run(scenario())


class Member:
    def __init__(self, *, fails: bool) -> None:
        self.fails, self.turns, self.aborted = fails, 0, False

    def read_now(self) -> None:
        self.turns += 1
        if self.fails:
            raise RuntimeError("something is wrong with this one")

    def abort(self) -> None:
        self.aborted = True


def test_an_encoder_that_fails_is_dropped_and_the_others_have_their_turn():
    async def scenario():
        rounds, bad, good = Rounds(0.005), Member(fails=True), Member(fails=False)
        rounds.join(bad)
        rounds.join(good)
        async with asyncio.timeout(5):
            while good.turns < 3:
                await asyncio.sleep(0.005)
        assert bad.aborted
        assert not good.aborted
        for member in (bad, good):
            rounds.leave(member)
        turns = good.turns
        await asyncio.sleep(0.03)
        assert good.turns == turns

    asyncio.run(scenario())
