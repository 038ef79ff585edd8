"""Fragmented MP4 and low-latency HLS over HTTP; every playlist is read by somebody else's parser as well."""

import asyncio
import hashlib
import uuid
from dataclasses import replace

import m3u8
from hypothesis import given
from hypothesis import strategies as st
from relay_rig import FAST, Rig, Tag, is_header, publishing, rig

from relay.media.packager import CLOCK, Chunk
from relay.origin.edge import Edge
from relay.origin.seats import KEEP_S, Seats, reload_of

FMP4 = replace(FAST, container="fmp4")
LOW = replace(FMP4, low_latency_viewers=2)


def upto(source: list[Tag], seconds: float, since: float = 0.0) -> list[Tag]:
    return [
        t for t in source if (is_header(t) and not since) or since * 1000 <= t[1] < seconds * 1000
    ]  # fmt: skip


async def came(r: Rig, seconds: float) -> None:
    """Until the pictures up to there have arrived."""
    live = r.origin._catalogue.lives["main"]
    await r.until(lambda: live.packager._last_video >= (seconds - 0.15) * CLOCK)


async def on_air(r: Rig, source: list[Tag], seconds: float):
    """Publishing; a key frame comes each second, so a segment is whole when the next second begins."""
    encoder = await publishing(r)
    await encoder.send(upto(source, seconds))
    await r.until(lambda: len(r.authority.published) == int(seconds - 0.01))
    await came(r, seconds)
    return encoder


def read(text: str) -> m3u8.M3U8:
    return m3u8.loads(text)


def test_segments_are_fragments_of_one_file_and_the_playlist_maps_their_head(source):
    async def scenario():
        async with rig(FMP4) as r:
            encoder = await on_air(r, source, 4.5)
            path = await r.media_playlist()
            text = (await r.http.get(r.url(path))).text
            listed = read(text)
            assert not text.count("PART")
            assert [s.uri for s in listed.segments] == [
                path.replace("index.m3u8", f"{i}.m4s") for i in range(4)
            ]
            init = await r.http.get(r.url(path.replace("index.m3u8", listed.segments[0].init_section.uri)))
            assert init.headers["content-type"] == "video/mp4"
            assert init.content[4:8] == b"ftyp"
            for i, segment in enumerate(listed.segments):
                got = await r.http.get(r.url(segment.uri))
                assert got.headers["content-type"] == "video/mp4"
                assert got.content == r.authority.published[i][1]
                assert got.content[4:8] == b"moof"
            missing = await r.http.get(r.url(path.replace("index.m3u8", f"init-{'0' * 16}.mp4")))
            assert missing.status_code == 404
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            assert read((await r.http.get(r.url(path))).text).is_endlist

    asyncio.run(scenario())


def test_parts_are_listed_while_their_segment_grows_and_are_the_segment(source):
    async def scenario():
        async with rig(LOW) as r:
            encoder = await on_air(r, source, 3.5)
            path = await r.media_playlist()
            address = r.url(path)
            listed = read((await r.http.get(address)).text)
            assert listed.server_control.can_block_reload == "YES"
            assert listed.part_inf.part_target == 0.22
            assert listed.server_control.part_hold_back >= 3 * listed.part_inf.part_target
            grows = listed.segments[-1]
            assert [s.uri for s in listed.segments[:-1]] == [
                path.replace("index.m3u8", f"{i}.m4s") for i in range(3)
            ]
            assert grows.uri is None
            # The second part is whole when the frame after it is there.
            assert [p.uri for p in grows.parts] == ["3.0.m4s", "3.1.m4s"]
            assert grows.parts[0].independent == "YES"
            assert all(p.duration <= listed.part_inf.part_target for s in listed.segments for p in s.parts)
            assert listed.preload_hint.uri == "3.2.m4s"
            hinted = asyncio.create_task(r.http.get(address.replace("index.m3u8", "3.2.m4s")))
            waiting = asyncio.create_task(r.http.get(address, params={"_HLS_msn": 3, "_HLS_part": 2}))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            await encoder.send(upto(source, 3.8, 3.5))
            assert "3.2.m4s" in [p.uri for p in read((await waiting).text).segments[-1].parts]
            assert (await hinted).status_code == 200
            waiting = asyncio.create_task(r.http.get(address, params={"_HLS_msn": 3}))
            await encoder.send(upto(source, 4.5, 3.8))
            whole = read((await waiting).text)
            assert whole.segments[3].uri.endswith("/3.m4s")
            parts = [
                (await r.http.get(address.replace("index.m3u8", part.uri))).content
                for part in whole.segments[3].parts
            ]
            assert len(parts) == 5
            assert hashlib.sha256(b"".join(parts)).digest() == r.authority.segments[3].sha256
            # A part after a segment's last is the next one's first.
            beyond = read((await r.http.get(address, params={"_HLS_msn": 3, "_HLS_part": 5})).text)
            assert beyond.segments[-1].parts[0].uri == "4.0.m4s"
            await encoder.stop()
            await r.until(lambda: r.authority.ended)
            over = (await r.http.get(address, params={"_HLS_msn": 5, "_HLS_part": 0})).text
            assert read(over).is_endlist
            assert "PRELOAD" not in over
            assert r.steering.polls == [
                [0, 1, 2]
            ]  # what a player of parts is listed is nothing a node may claim

    asyncio.run(scenario())


def test_wrong_and_vain_requests_for_parts_are_answered(source):
    async def scenario():
        async with rig(replace(LOW, segment_wait_s=0.2)) as r:
            await on_air(r, source, 2.5)
            address = r.url(await r.media_playlist())
            assert (await r.http.get(address, params={"_HLS_part": 1})).status_code == 400
            assert (await r.http.get(address, params={"_HLS_msn": 4})).status_code == 400
            assert (await r.http.get(address.replace("index.m3u8", "2.4.m4s"))).status_code == 404
            assert (await r.http.get(address.replace("index.m3u8", "9.0.m4s"))).status_code == 404
            waiting = [asyncio.create_task(r.http.get(address, params={"_HLS_msn": 3})) for _ in range(12)]
            refused = [await task for task in asyncio.as_completed(waiting, timeout=8)]
            assert [answer.status_code for answer in refused] == [503] * 12
            assert not r.origin.asgi._waiting

    asyncio.run(scenario())


def test_a_player_that_does_not_know_parts_gives_its_seat_back_and_no_more_sit_than_there_are_seats(source):
    async def scenario():
        async with rig(LOW) as r:
            await on_air(r, source, 3.5)

            async def ask(path: str, **params: int) -> bool:
                return "EXT-X-PART" in (await r.http.get(r.url(path), params=params)).text

            paths = [await r.media_playlist() for _ in range(4)]
            assert [await ask(path) for path in paths[:3]] == [True, True, False]
            assert await ask(paths[0], _HLS_msn=3, _HLS_part=0)
            assert not await ask(paths[1])  # VLC
            assert not await ask(paths[2])
            assert await ask(paths[3])  # in its place
            assert not await ask(paths[2], _HLS_msn=3, _HLS_part=0)

    asyncio.run(scenario())


def test_parts_wait_for_the_ledger_and_what_it_never_got_is_never_shown_under_its_number(source):
    async def scenario():
        async with rig(replace(LOW, pending_bytes=120_000)) as r:
            encoder = await on_air(r, source, 2.5)
            address = r.url(await r.media_playlist())

            async def shown() -> list[str]:
                """Parts of what is not recorded. Those of listed segments are checked against the ledger."""
                text = (await r.http.get(address, params={"_HLS_msn": 0})).text
                for segment in read(text).segments:
                    if segment.uri is None:
                        return [part.uri for part in segment.parts]
                    if segment.parts:
                        uris = [address.replace("index.m3u8", part.uri) for part in segment.parts]
                        data = b"".join([(await r.http.get(uri)).content for uri in uris])
                        sequence = int(segment.parts[0].uri.split(".")[0])
                        assert hashlib.sha256(data).digest() == r.authority.segments[sequence].sha256
                return []

            live = r.origin._catalogue.lives["main"]
            assert await shown() == ["2.0.m4s", "2.1.m4s"]
            r.authority.away = True
            await encoder.send(upto(source, 8.5, 2.5))
            await r.until(lambda: any(call.startswith("publish [2") for call in r.authority.calls))
            await came(r, 8.5)
            assert await shown() == [f"2.{i}.m4s" for i in range(5)]
            r.authority.away = False
            await r.until(lambda: live.registrar.idle)
            held = len(r.authority.published)
            assert 3 <= held < 8, "some found no room"
            assert await shown() == [f"{held}.0.m4s", f"{held}.1.m4s"]
            await encoder.send(upto(source, 11.5, 8.5))
            await r.until(lambda: len(r.authority.published) == held + 3)
            await came(r, 11.5)
            assert r.authority.segments[held].discontinuity
            assert await shown() == [f"{held + 3}.0.m4s", f"{held + 3}.1.m4s"]

    asyncio.run(scenario())


def test_a_publisher_who_comes_back_goes_on_with_a_discontinuity_in_the_parts_too(source):
    async def scenario():
        async with rig(LOW) as r:
            encoder = await on_air(r, source, 2.5)
            address = r.url(await r.media_playlist())
            await encoder.kill()
            await r.until(lambda: len(r.authority.published) == 3)
            assert "3.0.m4s" in (await r.http.get(address)).text.splitlines()[-1]
            encoder = await publishing(r)
            await encoder.send(upto(source, 0.9))
            text = (await r.http.get(address, params={"_HLS_msn": 3, "_HLS_part": 2})).text
            assert [p.uri for p in read(text).segments[-1].parts][:2] == ["3.0.m4s", "3.1.m4s"]
            before, _, growing = text.partition("#EXT-X-DISCONTINUITY\n")
            assert before.endswith("/2.m4s\n")
            assert growing.startswith("#EXT-X-PART:")
            await encoder.send(upto(source, 1.5, 0.9))
            await r.until(lambda: len(r.authority.published) == 4)
            assert r.authority.segments[3].discontinuity

    asyncio.run(scenario())


steps = st.lists(st.sampled_from(["segment", "chunk", "record", "drop", "gone", "back"]), max_size=60)


@given(steps)
def test_only_the_segment_after_the_last_recorded_one_is_shown(steps):
    edge = Edge(lambda: None)
    edge.show(resumed=False)
    chunk = Chunk(1, 1, False)
    model: list[list[bytes]] = []  # segments that are not recorded; the last one grows
    shown, recorded = True, 0
    for serial, step in enumerate(steps):
        name = b"%d" % serial
        if step == "segment":
            if model:
                edge.finish()
            edge.begin(b"", discontinuity=False)
            model.append([])
        elif step == "chunk" and model:
            edge.chunk(name, chunk)
            model[-1].append(name)
        elif step == "record" and len(model) > 1:
            edge.recorded()
            model.pop(0)
            recorded += 1
        elif step == "drop" and len(model) > 1:
            edge.finish()
            edge.dropped()
            model.pop()
            edge.begin(b"", discontinuity=False)
            model.append([])
        elif step == "gone":
            edge.hide()
            shown = False
        elif step == "back":
            edge.show(resumed=False)
            shown = True
        first = edge.first
        assert (first.data if first is not None else None) == (model[0] if model and shown else None)
        assert first is None or first.whole == (len(model) > 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans(), st.integers(0, 4)), max_size=80))
def test_there_are_never_more_sessions_with_parts_than_seats(requests):
    seats, now_s = Seats(3), 0.0
    sessions = [uuid.UUID(int=i) for i in range(10)]
    sitting: dict[uuid.UUID, float] = {}
    for which, knows, new, pause_s in requests:
        now_s += pause_s
        got = seats.take(sessions[which], knows=knows, new=new, now_s=now_s)
        sitting = {s: at for s, at in sitting.items() if at >= now_s - KEEP_S}
        before = sessions[which] in sitting
        if got:
            sitting[sessions[which]] = now_s
        else:
            sitting.pop(sessions[which], None)
        assert set(sitting) == {s for s in sessions if seats.has(s)}
        assert len(seats) <= 3
        assert got or not (before and knows)  # who knows keeps its seat


@given(st.binary(max_size=60))
def test_any_query_is_a_reload_or_an_ordinary_request(query):
    assert isinstance(reload_of(query), (tuple, str, type(None)))
    assert reload_of(b"_HLS_msn=12&_HLS_part=3&x=" + query.replace(b"&", b"").replace(b"_HLS_", b"")) == (
        12,
        3,
    )
