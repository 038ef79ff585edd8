"""What viewers and nodes get over HTTP, on a real server."""

import asyncio
import base64
import hashlib
import uuid
from dataclasses import replace

import pytest
from relay_rig import FAST, Tag, is_header, is_key, publishing, read_flv, rig

from hub.clock import now_us
from ledger.keys import KeyPair
from ledger.request import sign_request
from ledger.ticket import SignedTicket, Ticket, ViewerClass
from relay.media import flv
from relay.origin.fanout import FlvFanout
from relay.ports import Assignment

NODE = KeyPair(bytes(range(32)))


def ticket(first: int, last: int, rendition: uuid.UUID) -> SignedTicket:
    return Ticket(
        viewer_class=ViewerClass.PLAIN,
        hub_key_id=bytes(8),
        ticket_id=uuid.uuid4(),
        session_id=uuid.uuid4(),
        stream_id=uuid.uuid4(),
        rendition_id=rendition,
        viewer_key=NODE.public_key,
        node_key=NODE.public_key,
        first_sequence=first,
        last_sequence=last,
        settle_by_s=1,
        tariff_version=1,
        byte_budget=1,
        nonce=bytes(16),
    ).sign(NODE)


async def on_air(r, source: list[Tag], segments: int):
    encoder = await publishing(r)
    await encoder.send([t for t in source if is_header(t) or t[0] == 18 or t[1] < segments * 1000 + 500])
    await r.until(lambda: len(r.authority.published) == segments)
    return encoder


def test_a_player_gets_a_master_a_media_playlist_and_segments_from_the_hub(source):
    async def scenario():
        async with rig() as r:
            await on_air(r, source, 8)
            master = (await r.http.get(r.url("/live/main.m3u8"))).text
            assert 'CODECS="avc1.4d400c,mp4a.40.2",RESOLUTION=192x108' in master
            peak = max(s.segment_bytes * 8_000_000 // s.duration_us for s in r.authority.segments)
            assert f"BANDWIDTH={peak}," in master
            path = master.splitlines()[-1]
            answer = await r.http.get(r.url(path))
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["access-control-allow-origin"] == "*"
            lines = answer.text.splitlines()
            assert lines[:6] == [
                "#EXTM3U",
                "#EXT-X-VERSION:6",
                "#EXT-X-TARGETDURATION:1",
                "#EXT-X-MEDIA-SEQUENCE:2",
                "#EXT-X-DISCONTINUITY-SEQUENCE:0",
                "#EXT-X-INDEPENDENT-SEGMENTS",
            ]
            assert sum(line.startswith("#EXT-X-PROGRAM-DATE-TIME:") for line in lines) == 6
            uris = [line for line in lines if not line.startswith("#")]
            assert uris == [path.replace("index.m3u8", f"{i}.ts") for i in range(2, 8)]
            assert r.steering.polls == [[2, 3, 4, 5, 6, 7]]
            got = await r.http.get(r.url(uris[0]))
            assert got.content == r.authority.published[2][1]
            assert got.headers["content-type"] == "video/mp2t"
            assert r.steering.fetches == [2]
            again = await r.http.get(r.url(uris[0]), headers={"if-none-match": got.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            head = await r.http.head(r.url(uris[1]))
            assert int(head.headers["content-length"]) == len(r.authority.published[3][1])
            assert r.steering.fetches == [2]  # neither the HEAD nor the 304 brought anybody any bytes
            kept = await r.http.get(r.url(path.replace("index.m3u8", "0.ts")))
            assert kept.status_code == 200  # no longer listed, still kept for slow players
            (live,) = r.origin.stats().live
            assert (live.slug, live.viewers) == ("main", 1)

    asyncio.run(scenario())


def test_segments_of_the_tickets_range_are_at_the_node_and_one_in_ten_is_at_the_hub(source):
    async def scenario():
        async with rig(hub_every=6) as r:
            await on_air(r, source, 8)
            rendition = r.authority.grants[0].rendition_id
            signed = ticket(4, 6, rendition)
            r.steering.assigned = Assignment("https://node.example:8443", signed)
            path = await r.media_playlist()
            text = (await r.http.get(r.url(path))).text
            uris = [line for line in text.splitlines() if not line.startswith("#")]
            at_node = [
                f"https://node.example:8443/segments/{rendition}/{i}.ts?t={signed.encode_url()}"
                for i in (4, 5)
            ]
            at_hub = [path.replace("index.m3u8", f"{i}.ts") for i in (2, 3, 6, 7)]
            assert uris == [*at_hub[:2], *at_node, *at_hub[2:]]
            r.steering.away = True
            text = (await r.http.get(r.url(path))).text
            assert "node.example" not in text
            assert text.count("#EXTINF") == 6

    asyncio.run(scenario())


def test_addresses_that_lead_nowhere_are_answered_with_a_problem(source):
    async def scenario():
        async with rig() as r:
            for path in (
                "/live/nobody.m3u8",
                "/live/nobody.flv",
                "/other",
                f"/live/main/{uuid.uuid4()}/index.m3u8",
            ):
                answer = await r.http.get(r.url(path))
                assert answer.status_code == 404
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["detail"]
            assert (await r.http.post(r.url("/live/nobody.m3u8"))).status_code == 405
            options = await r.http.options(r.url("/live/nobody.m3u8"))
            assert options.status_code == 204
            assert options.headers["access-control-allow-origin"] == "*"

    asyncio.run(scenario())


def test_a_player_that_is_early_waits_for_the_first_segment(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send([t for t in source if is_header(t) or t[1] < 500])
            early = asyncio.create_task(r.media_playlist())
            await asyncio.sleep(0.2)
            assert not early.done()
            await encoder.send([t for t in source if 500 <= t[1] < 1500 and not is_header(t)])
            path = await early
            coming = asyncio.create_task(r.http.get(r.url(path.replace("index.m3u8", "1.ts"))))
            await asyncio.sleep(0.1)
            await encoder.send([t for t in source if 1500 <= t[1] < 2500 and not is_header(t)])
            assert (await coming).content == r.authority.published[1][1]

    asyncio.run(scenario())


def test_a_player_from_before_a_restart_waits_for_the_encoder_to_come_back(source):
    async def scenario():
        async with rig() as r:
            session = await r.steering.open_session("main", "")
            early = asyncio.create_task(r.http.get(r.url(f"/live/main/{session}/index.m3u8")))
            await asyncio.sleep(0.2)
            assert not early.done()
            await on_air(r, source, 1)
            assert (await early).text.count("#EXTINF") == 1

    asyncio.run(scenario())


def test_a_stream_that_never_shows_a_frame_is_not_waited_for_forever():
    async def scenario():
        async with rig(replace(FAST, playlist_wait_s=0.2)) as r:
            await publishing(r)
            answer = await r.http.get(r.url("/live/main.m3u8"))
            assert answer.status_code == 404
            assert "about to start" in answer.json()["detail"]
            assert answer.headers["retry-after"] == "2"

    asyncio.run(scenario())


def test_only_a_node_in_good_standing_may_pull_and_it_gets_a_digest(source):
    async def scenario():
        async with rig(nodes={NODE.public_key}) as r:
            await on_air(r, source, 2)
            path = f"/segments/{r.authority.grants[0].rendition_id}/1.ts"
            now_s = now_us() // 1_000_000

            def signed(key: KeyPair, target: str, at_s: int = now_s) -> dict[str, str]:
                return {"authorization": sign_request(key, "GET", target, b"", now_s=at_s)}

            got = await r.http.get(r.url(path), headers=signed(NODE, path))
            assert got.content == r.authority.published[1][1]
            digest = base64.b64encode(hashlib.sha256(got.content).digest()).decode()
            assert got.headers["repr-digest"] == f"sha-256=:{digest}:"
            query = path + "?x=%20y"
            assert (await r.http.get(r.url(query), headers=signed(NODE, query))).status_code == 200
            assert (await r.http.get(r.url(path))).status_code == 401
            assert (await r.http.get(r.url(path), headers=signed(NODE, "/other"))).status_code == 401
            late = await r.http.get(r.url(path), headers=signed(NODE, path, now_s - 301))
            assert late.status_code == 401
            assert "clock" in late.json()["detail"]
            stranger = KeyPair(b"s" * 32)
            assert (await r.http.get(r.url(path), headers=signed(stranger, path))).status_code == 403
            far = path.replace("1.ts", "99.ts")
            assert (await r.http.get(r.url(far), headers=signed(NODE, far))).status_code == 404

    asyncio.run(scenario())


def test_http_flv_starts_at_a_key_frame_and_ends_with_the_broadcast(source):
    async def scenario():
        async with rig() as r:
            encoder = await on_air(r, source, 3)
            got = bytearray()
            async with r.http.stream("GET", r.url("/live/main.flv")) as answer:
                assert answer.headers["content-type"] == "video/x-flv"

                async def read():
                    async for piece in answer.aiter_bytes():
                        got.extend(piece)

                reading = asyncio.create_task(read())
                await r.until(lambda: got)
                assert r.origin.stats().live[0].viewers == 1
                await encoder.send([t for t in source if t[1] >= 3500 and not is_header(t)])
                await encoder.stop()
                await asyncio.wait_for(reading, 5)
            tags = read_flv(bytes(got))
            assert [is_header(t) for t in tags[:3]] == [True, True, False]
            first = next(t for t in tags[2:] if t[0] == 9)
            assert is_key(first)
            bodies = [t[2] for t in tags[2:]]
            assert bodies == [t[2] for t in source if t[0] in (8, 9) and t[2][1] == 1][-len(bodies) :]
            stamps = [t[1] for t in tags if t[0] == 9]
            assert stamps == sorted(stamps)

    asyncio.run(scenario())


def test_an_flv_viewer_that_goes_away_is_forgotten(source):
    async def scenario():
        async with rig() as r:
            await on_air(r, source, 2)
            async with r.http.stream("GET", r.url("/live/main.flv")) as answer:
                await anext(aiter(answer.aiter_raw()))
                assert r.origin.stats().live[0].viewers == 1
            await r.until(lambda: r.origin.stats().live[0].viewers == 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("batch_s", [0, 0.02])
def test_a_slow_flv_viewer_skips_to_a_key_frame_and_holds_little(source, batch_s):
    async def scenario():
        fanout = FlvFanout(replace(FAST, viewer_queue_bytes=40_000, flv_batch_s=batch_s))
        for kind, _, body in [t for t in source if is_header(t)]:
            fanout.header(kind, body, 0)
        slow = fanout.join()
        assert await slow.next()
        out = b""
        last_key = max(index for index, tag in enumerate(source) if is_key(tag))
        for tag in source[: last_key + 1]:
            if tag[0] in (8, 9) and not is_header(tag):
                fanout.frame(*tag, key=is_key(tag))
                assert slow._queued <= 40_000
        fanout.close()
        while (data := await slow.next()) is not None:
            out += data
        assert slow.skips
        assert is_key(read_flv(flv.file_header(video=True, audio=True) + out)[0])

    asyncio.run(scenario())


def test_requests_in_one_packet_are_answered_in_their_order(source):
    async def scenario():
        async with rig() as r:
            encoder = await publishing(r)
            await encoder.send(source)
            await r.until(lambda: len(r.authority.published) >= 3)
            path = await r.media_playlist()
            segment = f"{path.rpartition('/')[0]}/1.ts"
            reader, writer = await asyncio.open_connection("127.0.0.1", r.http_port)
            asked = [segment, path, "/live/nobody.m3u8", segment]
            head = "GET {} HTTP/1.1\r\nhost: x\r\n\r\n"
            writer.write("".join(map(head.format, asked)).encode())
            answers = []
            for _ in asked:
                said = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(said.split("content-length: ")[1].split("\r\n")[0])
                answers.append((said.split()[1], await reader.readexactly(length)))
            assert [status for status, _ in answers] == ["200", "200", "404", "200"]
            assert answers[0][1] == answers[3][1] == r.authority.published[1][1]
            assert answers[1][1].startswith(b"#EXTM3U")
            writer.write(head.format(segment).replace("GET", "HEAD").encode() + head.format(path).encode())
            said = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert f"content-length: {len(answers[0][1])}" in said
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")  # nothing in between
            writer.close()
            await encoder.kill()

    asyncio.run(scenario())


def test_an_flv_viewer_who_stops_reading_skips_and_goes_on_with_a_well_formed_file(source):
    async def scenario():
        async with rig(replace(FAST, viewer_queue_bytes=200_000)) as r:
            encoder = await publishing(r)
            await encoder.send(source[:200])
            live = r.origin._catalogue.lives["main"]
            await r.until(lambda: live.fanout.started)
            reader, writer = await asyncio.open_connection("127.0.0.1", r.http_port, limit=4096)
            writer.write(b"GET /live/main.flv HTTP/1.1\r\nhost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await r.until(lambda: live.fanout.viewers)
            (viewer,) = live.fanout.viewers
            filler = [t for t in source if not is_header(t) and t[0] != 18]
            for turn in range(1, 200):  # far more than all buffers between the two hold
                await encoder.send(filler, shift=turn * 12_000)
                await asyncio.sleep(0)
                if viewer.skips > 1:
                    break
            assert viewer.skips > 1
            await encoder.stop()
            file = b""
            while size := int(await reader.readline(), 16):
                file += (await reader.readexactly(size + 2))[:-2]
            assert len(read_flv(file)) > 200
            writer.close()

    asyncio.run(scenario())


def test_a_player_who_waits_for_a_stream_does_not_hold_up_the_end(source):
    async def scenario():
        async with rig(replace(FAST, playlist_wait_s=30.0)) as r:
            encoder = await publishing(r)
            await encoder.send(source)
            path = await r.media_playlist()
            await encoder.stop()
            session = path.split("/")[3]
            r.steering.sessions[uuid.UUID(session)] = "other"
            waiting = asyncio.create_task(r.http.get(r.url(f"/live/other/{session}/index.m3u8")))
            done, _ = await asyncio.wait([waiting], timeout=0.3)
            assert not done
            await r.origin.close(2.0)
            assert (await waiting).status_code == 404

    asyncio.run(scenario())
