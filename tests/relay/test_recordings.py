"""Recordings on a real disk: whole or with a part left out, served when over, swept when old; pictures of streams."""

import asyncio
import hashlib
import io
import os
import shutil
import threading
import uuid
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import av
import m3u8
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from relay_rig import FAST, Tag, is_header, publishing, rig
from structlog.testing import capture_logs

from ledger.events import Segment
from relay.media.packager import Packed
from relay.origin.recordings import END, PLAYLIST, Recordings, body, closed

Usage = namedtuple("Usage", "total used free")
DAY_S = 86_400.0


def upto(source: list[Tag], seconds: float) -> list[Tag]:
    return [t for t in source if is_header(t) or t[1] < seconds * 1000]


def segment(sequence: int, *, broken: bool = False, init: bytes = b"") -> tuple[Segment, Packed]:
    data = b"segment %d" % sequence
    sha256 = hashlib.sha256(data).digest()
    recorded = Segment(sequence, 2_000_000, len(data), sha256, 1_700_000_000_000_000 + sequence, broken)
    return recorded, Packed(data, sha256, init)


def recordings(folder: Path, **changes: object) -> Recordings:
    limits = {"keep_s": 7 * DAY_S, "reserve_bytes": 0, "queue_bytes": 1 << 20, "longest_s": 12} | changes
    return Recordings(folder, **limits)


@pytest.mark.parametrize("container", ["ts", "fmp4"])
def test_a_broadcast_is_kept_and_plays_when_it_is_over(source, tmp_path, container):
    async def scenario():
        async with rig(
            replace(FAST, container=container, recordings=tmp_path, recording_reserve_bytes=0)
        ) as r:
            encoder = await publishing(r)
            await encoder.send(upto(source, 3.5))
            await r.until(lambda: list(tmp_path.glob(f"*/*/{PLAYLIST}")))
            broadcast = r.authority.grants[0].broadcast_id
            address = r.url(f"/vod/main/{broadcast}/{PLAYLIST}")
            assert (await r.http.get(address)).status_code == 404  # not over
            assert (await r.http.get(r.url("/vod/main"))).json() == {"recordings": []}
            await encoder.kill()
            back = await publishing(r)
            await back.send(upto(source, 2.5))
            await r.until(lambda: len(r.authority.published) == 6)
            await back.stop()
            ends = tmp_path / "main" / str(broadcast) / PLAYLIST
            await r.until(lambda: ends.read_text().endswith(END))
            (listed,) = (await r.http.get(r.url("/vod/main"))).json()["recordings"]
            assert (listed["broadcast_id"], listed["playlist_url"]) == (
                str(broadcast),
                address.removeprefix(r.url("")),
            )
            newest = await r.http.get(r.url("/vod/main.m3u8"))
            assert newest.status_code == 302
            playlist = m3u8.loads((await r.http.get(address)).text)
            assert (playlist.playlist_type, playlist.is_endlist, playlist.target_duration) == ("vod", True, 1)
            assert [s.discontinuity for s in playlist.segments] == [
                s.discontinuity for s in r.authority.segments
            ]
            assert sum(s.discontinuity for s in playlist.segments) == 1
            frames = 0
            for got, (recorded, data) in zip(playlist.segments, r.authority.published.values(), strict=True):
                answer = await r.http.get(address.replace(PLAYLIST, got.uri))
                assert hashlib.sha256(answer.content).digest() == recorded.sha256
                start = b""
                if got.init_section is not None:
                    start = (await r.http.get(address.replace(PLAYLIST, got.init_section.uri))).content
                with av.open(io.BytesIO(start + data)) as file:
                    frames += sum(1 for _ in file.decode(video=0))
            assert frames >= 85
            for missing in (
                "/vod/main/../../etc/passwd",
                "/vod/nobody.m3u8",
                f"/vod/main/{uuid.uuid4()}/1.ts",
            ):
                assert (await r.http.get(r.url(missing))).status_code == 404

    asyncio.run(scenario())


def test_a_full_disk_makes_a_gap_says_so_once_and_the_recording_goes_on_when_there_is_room(
    tmp_path, monkeypatch
):
    free = {"bytes": 1000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free["bytes"]))
    kept = recordings(tmp_path, reserve_bytes=500)
    one = kept.start("main", broadcast := uuid.uuid4(), "ts")
    with capture_logs() as logs:
        for sequence in range(6):
            done = kept.submit(0, lambda left=400 if sequence in (2, 3) else 1000: free.update(bytes=left))
            assert done
            one.add(*segment(sequence))
        one.end()
        kept.close()
    assert [entry["event"] for entry in logs] == ["recording_stopped", "recording_goes_on"]
    assert "goes on" in logs[0]["note"]
    text = (tmp_path / "main" / str(broadcast) / PLAYLIST).read_text()
    playlist = m3u8.loads(text)
    assert [(s.uri, s.discontinuity) for s in playlist.segments] == [
        ("0.ts", False),
        ("1.ts", False),
        ("4.ts", True),
        ("5.ts", False),
    ]
    assert not (tmp_path / "main" / str(broadcast) / "2.ts").exists()


def test_a_disk_that_is_too_slow_costs_segments_and_no_memory(tmp_path):
    kept = recordings(tmp_path, queue_bytes=25)
    one = kept.start("main", broadcast := uuid.uuid4(), "ts")
    disk, idle = threading.Event(), threading.Event()
    kept.submit(0, lambda: disk.wait() and None)
    for sequence in range(5):  # 9 bytes each
        one.add(*segment(sequence))
    disk.set()
    kept.submit(0, idle.set)
    assert idle.wait(10)
    one.add(*segment(5))
    one.end()
    kept.close()
    playlist = m3u8.loads((tmp_path / "main" / str(broadcast) / PLAYLIST).read_text())
    assert [(s.uri, s.discontinuity) for s in playlist.segments] == [
        ("0.ts", False),
        ("1.ts", False),
        ("5.ts", True),
    ]


def test_a_hub_that_died_leaves_a_recording_that_is_gone_on_with_or_closed_and_old_ones_are_deleted(tmp_path):
    now = {"s": 1_800_000_000.0}
    died = recordings(tmp_path)
    for broadcast in (lost := uuid.uuid4(), resumed := uuid.uuid4(), old := uuid.uuid4()):
        one = died.start("main", broadcast, "m4s")
        for sequence in range(3):
            one.add(*segment(sequence, init=b"the init"))
    died.close()
    paths = {b: tmp_path / "main" / str(b) / PLAYLIST for b in (lost, resumed, old)}
    with paths[resumed].open("a") as file:
        file.write("#EXT-X-PROGRAM-DATE-TIME:2026-11-23T01:00:00.000Z\n#EXTIN")  # cut off by the crash
    for broadcast, age_s in ((lost, 3600), (resumed, 3600), (old, 8 * DAY_S)):
        os.utime(paths[broadcast], (now["s"] - age_s, now["s"] - age_s))
    kept = recordings(tmp_path, now_s=lambda: now["s"])
    one = kept.start("main", resumed, "m4s")
    kept.sweep()
    one.add(*segment(3, broken=True, init=b"the init"))
    one.end()
    kept.close()
    assert not paths[old].parent.exists()
    assert paths[lost].read_text().endswith(END)
    assert paths[lost].stat().st_mtime == now["s"] - 3600
    playlist = m3u8.loads(paths[resumed].read_text())
    assert [s.uri for s in playlist.segments] == [f"{i}.m4s" for i in range(4)]
    assert [s.discontinuity for s in playlist.segments] == [False, False, False, True]
    assert playlist.is_endlist


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.integers(0, 10_000), st.binary(max_size=8))
def test_a_playlist_cut_off_anywhere_gives_its_whole_entries(count, cut, noise):
    entry = "#EXT-X-PROGRAM-DATE-TIME:x\n#EXTINF:2.000000,\n{}.ts\n"
    whole = "#EXTM3U\n#EXT-X-VERSION:6\n" + "".join(entry.format(i) for i in range(count))
    text = whole[: cut % (len(whole) + 1)]
    entries = [line for line in body(text).splitlines() if not line.startswith("#")]
    assert entries == [f"{i}.ts" for i in range(len(entries))]
    assert len(entries) >= text.count(".ts\n")
    assert closed(text).endswith(END) == bool(entries)
    assert body(closed(text)) == body(text)


def test_a_stream_has_a_picture_made_at_most_so_often_and_a_broken_one_costs_nothing(source):
    async def scenario():
        async with rig(replace(FAST, still_every_s=1000)) as r:
            assert (await r.http.get(r.url("/live/main.jpg"))).status_code == 404
            encoder = await publishing(r)
            await encoder.send(upto(source, 2.5))
            await r.until(lambda: r.authority.published)
            first, second = await asyncio.gather(*(r.http.get(r.url("/live/main.jpg")) for _ in range(2)))
            assert first.headers["content-type"] == "image/jpeg"
            with av.open(io.BytesIO(first.content), format="mjpeg") as file:
                picture = next(file.decode(video=0))
            assert (picture.width, picture.height) == (192, 108)
            await encoder.send([t for t in source if 2500 <= t[1] < 4500])
            assert second.content == first.content
            assert (await r.http.get(r.url("/live/main.jpg"))).content == first.content
        async with rig(replace(FAST, still_every_s=1000)) as r:
            encoder = await publishing(r)
            tags = [
                (kind, stamp, body[:40] + bytes(len(body) - 40)) if kind == 9 and len(body) > 60 and body[1] else
                (kind, stamp, body)
                for kind, stamp, body in upto(source, 0.5)
            ]  # fmt: skip
            await encoder.send(tags)
            await r.until(lambda: r.origin.stats().live)
            assert (await r.http.get(r.url("/live/main.jpg"))).status_code == 404

    asyncio.run(scenario())
