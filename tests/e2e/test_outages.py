"""Servers, disks and processes that go away under a live broadcast, one at a time, with the times that recovery may
take on a busy machine."""

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from disks import fill, small_disk
from fold import Fold, fold
from house import EPOCH_S, SLUG, House, until

from api.valkey import connect
from hub.demo.cast import STREAMRP2P, Actor

NEXT_SEGMENT_S = 15.0


def segments(hub: House) -> int:
    with hub.connect() as connection:
        return fold(connection).segments


def listed(hub: House) -> int:
    """The highest sequence of a new session's playlist; -1 when there is none."""
    master = hub.ask("GET", f"/live/{SLUG}.m3u8")
    if master.status_code != 200:
        return -1
    text = hub.ask("GET", master.text.splitlines()[-1]).text
    first = next((int(line.split(":")[1]) for line in text.splitlines() if "MEDIA-SEQUENCE:" in line), 0)
    return first + text.count("#EXTINF") - 1


async def go_live(hub: House) -> Actor:
    publisher = hub.publish()
    await until(lambda: listed(hub) >= 0, 30, "segments are listed")
    return publisher


async def goes_on(hub: House) -> None:
    top = listed(hub)
    await until(lambda: listed(hub) > top, NEXT_SEGMENT_S, "the next segment is listed")


def test_postgres_and_valkey_die_under_a_live_broadcast_and_it_goes_on(hub: House) -> None:
    async def scenario() -> None:
        publisher = await go_live(hub)
        hub.start_node(hub.invite("ana"))
        await until(lambda: hub.nodes_online() == 1, 30, "the node is online")
        with hub.connect() as connection:
            before = len(fold(connection).broadcasts)
        for _ in range(2):
            assert hub.kill("postgres")
            await goes_on(hub)
            publisher.must_live()  # it was never cut off
        assert hub.kill("valkey")
        await goes_on(hub)
        await until(lambda: hub.ask("GET", "/api/ready").status_code == 200, 15, "ready again")
        await until(lambda: hub.nodes_online() == 1, 20, "the node is known again")
        connect(hub.redis_url).flushall()
        await goes_on(hub)
        await until(lambda: hub.nodes_online() == 1, 20, "the node is known again after the flush")
        publisher.must_live()
        assert hub.kill("worker")
        await until(lambda: hub.pid_of("worker"), 10, "the worker is back")
        size = hub.checkpoint_size()
        await until(lambda: hub.checkpoint_size() > size, 15, "checkpoints go on")
        with hub.connect() as connection:
            told = fold(connection)
        assert told.problems == []
        assert len(told.broadcasts) == before
        publisher.stop()
        await until(lambda: hub.state() == "OFFLINE", 15, "a clean end")

    asyncio.run(scenario())


def test_a_full_disk_under_the_published_log_delays_checkpoints_and_nothing_else(hub: House) -> None:
    async def scenario() -> None:
        hub_log = hub.data_dir / "log"
        with small_disk(hub_log) as filler:  # empty: the worker publishes all of it anew
            await until(lambda: hub.checkpoint_size() > 0, 15, "published anew")
            fill(filler)
            size = hub.checkpoint_size()
            hub.call(
                "POST", f"/api/streams/{SLUG}/budget", {"amount_micro": 1_000, "reference": "while-full"}
            )
            await asyncio.sleep(3)
            assert hub.ask("GET", "/api/health").status_code == 200
            assert "No space left on device" in hub.log_text()
            filler.unlink()
            await until(lambda: hub.checkpoint_size() > size, 15, "checkpoints go on")
            assert hub.audit()["exit"] == 0

    asyncio.run(scenario())


def ends(command: tuple[str, ...], environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def test_a_second_hub_on_the_same_data_is_refused_in_words(hub: House) -> None:
    code, said = ends((*STREAMRP2P, "up"), hub.environment)
    assert code == 1
    assert f"is already run by process {hub.hub.process.pid}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("use", ["RTMP", "HTTP"])
def test_a_port_in_use_is_named_with_its_setting(hub: House, folder: Path, use: str) -> None:
    setting = f"STREAMRP2P_{use}_PORT"
    other = House(folder).environment | {setting: hub.environment[setting]}
    code, said = ends((*STREAMRP2P, "up"), other)
    assert code == 1
    assert hub.environment[setting] in said
    assert setting in said
    assert "Traceback" not in said


def test_sigterm_while_live_is_a_clean_end_and_the_sequence_goes_on_after_it(hub: House) -> None:
    async def scenario() -> Fold:
        await go_live(hub)
        assert hub.hub is not None
        before = segments(hub)
        began = time.monotonic()
        hub.hub.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(hub.hub.process.wait, 15) == 0
        assert time.monotonic() - began < 12
        assert "Traceback" not in hub.hub.tail()
        hub.start_hub()
        await until(lambda: hub.state() == "OFFLINE", 10, "the end is known")
        with hub.connect() as connection:
            told = fold(connection)
        assert told.kinds["broadcast.ended.v1"] == len(told.broadcasts)
        assert told.segments >= before
        await go_live(hub)
        await until(lambda: segments(hub) > told.segments, 10, "new segments")
        with hub.connect() as connection:
            return fold(connection)

    told = asyncio.run(scenario())
    assert told.problems == []
    assert len(told.broadcasts) >= 2


def test_money_is_settled_and_audited_after_all_of_that(hub: House) -> None:
    time.sleep(EPOCH_S + 2)
    report = hub.audit()
    assert report["exit"] == 0, json.dumps(report)[:2000]
    with hub.connect() as connection:
        assert fold(connection).problems == []
