"""A node on a computer that goes to sleep: its viewers and its receipts are elsewhere before the lock is given back.

The bus is a real one, and the lock a real file descriptor; only logind itself is a stand-in.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stand_in_logind import StandInLogind

from ledger.keys import KeyPair
from relay.node.service import Options

pytestmark = pytest.mark.dbus
PATIENCE_S = 4.0


@pytest.fixture
def logind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInLogind]:
    stand_in = StandInLogind(tmp_path, patience_s=PATIENCE_S)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", stand_in.address)
    yield stand_in
    stand_in.close()


async def until(condition: Callable[[], object], timeout_s: float = 8.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def node_key(hub) -> bytes:
    (key,) = hub.nodes
    return key


def segment(hub, sequence: int, ticket) -> str:
    return f"/segments/{hub.rendition}/{sequence}.ts?t={ticket.encode_url()}"


def test_before_sleep_the_hub_hears_a_goodbye_and_the_receipts_and_after_it_a_heartbeat(
    hub, running, tmp_path, logind
):
    async def main() -> None:
        patient = Options(host="127.0.0.1", port=0, send_interval_s=60)
        async with running(hub, tmp_path / "node", patient) as client:
            await until(logind.locks)
            assert logind.asked == [("sleep", "StreamrP2P", "Hands viewers over to other nodes", "delay")]
            ticket = hub.issue(node_key(hub), None)
            assert (await client.get(segment(hub, 100, ticket))).status_code == 200
            await until(lambda: hub.heartbeats)
            slept_after_s = await asyncio.to_thread(logind.sleep)
            assert slept_after_s < PATIENCE_S - 0.2, "the lock is given back before logind loses patience"
            assert hub.goodbyes == 1
            assert {sequence for _, _, sequence in hub.credits} == {100}, (
                "sent before, not at the next interval"
            )
            health = await client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "leaving")
            # What was listed before is served to whoever still comes.
            assert (await client.get(segment(hub, 101, ticket))).status_code == 200
            heard = len(hub.heartbeats)
            await asyncio.sleep(1.5)  # the stand-in hub wants a heartbeat a second
            assert len(hub.heartbeats) == heard, "whoever said goodbye is not here"
            logind.wake()
            await until(lambda: len(hub.heartbeats) > heard, 0.9)
            assert (await client.get("/health")).status_code == 200
            await until(logind.locks)
            await asyncio.to_thread(logind.sleep)
            assert hub.goodbyes == 2, "and the next time"
        assert logind.locks() == 0

    asyncio.run(main())


def test_a_transfer_that_is_under_way_ends_before_the_computer_sleeps(hub, running, tmp_path, logind):
    hub.size = 300_000
    hub.media.clear()
    hub.publish(2)
    rate_mbit_s = 2.0

    async def main() -> None:
        slow = Options(host="127.0.0.1", port=0, upload_limit_mbit_s=rate_mbit_s)
        async with running(hub, tmp_path / "node", slow) as client:
            await until(logind.locks)
            ticket = hub.issue(node_key(hub), KeyPair(b"v" * 32).public_key)
            coming = asyncio.create_task(client.get(segment(hub, 100, ticket)))
            await asyncio.sleep(0.2)
            assert not coming.done()
            slept_after_s = await asyncio.to_thread(logind.sleep)
            assert coming.done()
            assert coming.result().content == hub.media[100]
            assert slept_after_s < PATIENCE_S - 0.2

    asyncio.run(main())


def test_a_hub_that_does_not_answer_keeps_no_computer_awake(hub, running, tmp_path, logind):
    hub.hold_batches_s = 30.0

    async def main() -> None:
        async with running(hub, tmp_path / "node") as client:
            await until(logind.locks)
            ticket = hub.issue(node_key(hub), None)
            await client.get(segment(hub, 100, ticket))
            assert await asyncio.to_thread(logind.sleep) < PATIENCE_S
            assert logind.locks() == 0
            hub.hold_batches_s = 0.0

    asyncio.run(main())


@pytest.mark.parametrize("with_logind", [None, False], ids=["no bus", "no logind"])
def test_a_node_runs_where_nothing_tells_of_sleep(hub, running, tmp_path, monkeypatch, with_logind):
    bus = None if with_logind is None else StandInLogind(tmp_path, with_logind=False)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address if bus else f"unix:path={tmp_path}/nothing")

    async def main() -> None:
        async with running(hub, tmp_path / "node") as client:
            await asyncio.sleep(0.5)
            assert (await client.get("/health")).status_code == 200
        assert hub.goodbyes == 1, "said at every end"

    try:
        asyncio.run(main())
    finally:
        if bus is not None:
            bus.close()


def test_a_bus_that_goes_away_takes_nothing_with_it(hub, running, tmp_path, logind):
    async def main() -> None:
        async with running(hub, tmp_path / "node") as client:
            await until(logind.locks)
            logind.stop_bus()
            await until(lambda: logind.locks() == 0)
            assert (await client.get("/health")).status_code == 200

    asyncio.run(main())
