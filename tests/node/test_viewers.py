"""Viewers against a hub and a node: what arrives is what was published, a dead node is survived, receipts arrive."""

import asyncio
import hashlib

import pytest
from stand_in_hub import SLUG, StandInHub

from relay.node.service import Options
from relay.viewers import PlainViewer, SigningViewer, ViewerError
from relay.viewers.player import Stats
from relay.viewers.playlist import Listed, PlaylistError, parse_master, parse_media


async def publishing(hub: StandInHub, count: int) -> None:
    for _ in range(count):
        hub.publish(1)
        await asyncio.sleep(hub.duration_s)


def assert_true_bytes(hub: StandInHub, viewer: PlainViewer | SigningViewer) -> None:
    assert viewer.stats.hashes
    for sequence, digest in viewer.stats.hashes.items():
        assert digest == hashlib.sha256(hub.media[sequence]).digest()


def test_a_signing_viewer_pays_the_node_for_exactly_what_it_served(hub, running, tmp_path):
    async def main() -> None:
        async with running(hub, tmp_path) as client:
            hub.steer_to = str(client.base_url).rstrip("/")
            live = asyncio.create_task(publishing(hub, 12))
            async with SigningViewer(hub.url, SLUG, receipt_interval_s=0.3) as viewer:
                await viewer.wait_for_segments(10, 20)
                await live
            assert_true_bytes(hub, viewer)
            assert viewer.stats.from_hub == 0
            await asyncio.sleep(0.6)
            assert hub.credits == {(viewer.session_id, hub.rendition, s) for s in viewer.stats.hashes}
            assert set(hub.verdicts) <= {"accepted", "duplicate"}
            assert hub.direct_receipts >= 1  # a copy on closing

    asyncio.run(main())


def test_a_dead_node_is_survived_and_its_receipts_reach_the_hub(hub, running, tmp_path):
    async def main() -> None:
        async with running(hub, tmp_path, Options(host="127.0.0.1", port=0, send_interval_s=60)) as client:
            hub.steer_to = str(client.base_url).rstrip("/")
            viewer = SigningViewer(hub.url, SLUG, receipt_interval_s=0.3, node_patience_s=0.5)
            async with viewer:
                await viewer.wait_for_segments(3, 20)
                hub.steer_to = "http://127.0.0.1:9"  # nobody there; tickets are the same
                hub.session_tickets.clear()
                live = asyncio.create_task(publishing(hub, 6))
                await viewer.wait_for_segments(7, 20)
                await live
            assert viewer.stats.from_node >= 3
            assert viewer.stats.from_hub >= 3
            assert viewer.stats.fallbacks >= 1
            assert_true_bytes(hub, viewer)

    asyncio.run(main())


def test_a_plain_viewer_plays_and_the_node_claims_for_it(hub, running, tmp_path):
    async def main() -> None:
        async with running(hub, tmp_path) as client:
            hub.steer_to = str(client.base_url).rstrip("/")
            live = asyncio.create_task(publishing(hub, 8))
            async with PlainViewer(hub.url, SLUG) as viewer:
                await viewer.wait_for_segments(6, 20)
                await live
            assert_true_bytes(hub, viewer)
            assert viewer.stats.from_node == viewer.stats.segments
            async with asyncio.timeout(5):
                while not {s for _, _, s in hub.credits} >= set(viewer.stats.hashes):
                    await asyncio.sleep(0.05)
            assert set(hub.verdicts) == {"accepted"}

    asyncio.run(main())


def test_a_plain_viewer_waits_for_the_playlist_to_steer_it_elsewhere(hub):
    async def main() -> None:
        hub.nodes[bytes(32)] = {}
        hub.steer_to = "http://127.0.0.1:9"
        async with PlainViewer(hub.url, SLUG) as viewer:
            await asyncio.sleep(0.3)
            assert viewer.stats.segments == 0
            hub.steer_to = None
            await viewer.wait_for_segments(3, 10)
            assert viewer.stats.fallbacks >= 1

    asyncio.run(main())


def test_a_viewer_stops_at_the_end_of_the_stream(hub):
    async def main() -> None:
        hub.ended = True
        async with SigningViewer(hub.url, SLUG, from_start=True) as viewer:
            await viewer.wait_for_segments(6, 10)
            with pytest.raises(ViewerError):
                await viewer.wait_for_segments(7, 10)
            assert viewer.ended

    asyncio.run(main())


def test_no_hub_is_an_error_not_a_wait():
    async def main() -> None:
        for kind in (SigningViewer, PlainViewer):
            with pytest.raises(ViewerError):
                async with kind("http://127.0.0.1:9", SLUG):
                    pass

    asyncio.run(main())


def test_playlists_are_read_with_absolute_and_relative_addresses():
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:41\n#EXTINF:2.000,\na.ts\n#EXTINF:1.5,\nhttp://n/b.ts\n"
    playlist = parse_media(text, "http://hub/live/s/x/index.m3u8")
    assert [(s.sequence, s.duration_s, s.url) for s in playlist.segments] == [
        (41, 2.0, "http://hub/live/s/x/a.ts"),
        (42, 1.5, "http://n/b.ts"),
    ]
    assert (
        parse_master("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv.m3u8", "http://hub/m.m3u8")
        == "http://hub/v.m3u8"
    )
    for bad in ("", "<html>", "#EXTM3U\n#EXTINF:x,\na.ts"):
        with pytest.raises(PlaylistError):
            parse_media(bad, "http://hub/")


def test_a_stall_is_counted_exactly_when_playback_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 2 s, the first at 10 s: it plays until 12, waits until 13, has the next in time, waits from 17 on."""

    async def watch() -> Stats:
        viewer = PlainViewer("http://hub.example", "main")
        viewer._started_at = 9.0
        for number, at_s in enumerate((10.0, 13.0, 14.0, 17.5)):
            monkeypatch.setattr("relay.viewers.player.time.monotonic", lambda at_s=at_s: at_s)
            await viewer._got(Listed(number, 2.0, ""), b"x")
        monkeypatch.undo()
        await viewer._http.aclose()
        return viewer.stats

    stats = asyncio.run(watch())
    assert (stats.startup_s, stats.stalls, stats.stalled_s, stats.stall_s_max) == (1.0, 2, 1.5, 1.0)
