"""When what waits is sent: a real hub over HTTP that is away for a while."""

import asyncio
import time
from pathlib import Path

from stand_in_hub import CODE, StandInHub

from ledger.receipt import Receipt, SignedReceipt, to_bitmap
from relay.node.claims import PlainClaims
from relay.node.hub_client import HubClient
from relay.node.identity import load_or_create_key
from relay.node.sender import Sender
from relay.node.service import join
from relay.node.spool import Spool

AN_HOUR_S = 3_600.0


def test_a_hub_that_is_back_gets_what_waits_at_once(hub: StandInHub, tmp_path: Path) -> None:
    async def scenario() -> None:
        await join(tmp_path, hub.url, CODE, name="n", port=8100, public_url=None)
        key, spool, stop = load_or_create_key(tmp_path), Spool(tmp_path), asyncio.Event()
        async with HubClient(hub.url, key) as client:
            claims = PlainClaims(key, now_s=time.time)
            sender = Sender(key, client, spool, claims, interval_s=AN_HOUR_S)
            body = Receipt(
                ticket_hash=bytes(32), counter=1, base_sequence=0, bitmap=to_bitmap(0, {0}), digest=bytes(32)
            )
            await spool.add(SignedReceipt(body, bytes(64)))
            hub.refuse_batches = 1
            assert not await sender.send_all()
            running = asyncio.create_task(sender.run(stop))
            await asyncio.sleep(0.05)
            assert spool.pending == 1
            sender.hub_is_back()
            async with asyncio.timeout(20):
                while spool.pending:
                    await asyncio.sleep(0.01)
            assert sender.error == ""
            stop.set()
            await running
        await spool.close()

    asyncio.run(scenario())


def test_a_node_signs_the_newest_batch_that_its_hub_takes(hub: StandInHub, tmp_path: Path) -> None:
    async def scenario() -> None:
        await join(tmp_path, hub.url, CODE, name="n", port=8100, public_url=None)
        key, spool = load_or_create_key(tmp_path), Spool(tmp_path)
        async with HubClient(hub.url, key) as client:
            sender = Sender(key, client, spool, PlainClaims(key, now_s=time.time), interval_s=AN_HOUR_S)
            for counter, (said, expected) in enumerate([(None, 1), (2, 2), (99, 2), (1, 1)], 1):
                if said is not None:
                    hub.batch_version = said
                    await client.heartbeat(url=None, port=8100, viewers=0, uploaded_bytes=0)
                body = Receipt(
                    ticket_hash=bytes([counter]) * 32,
                    counter=1,
                    base_sequence=0,
                    bitmap=to_bitmap(0, {0}),
                    digest=bytes(32),
                )
                await spool.add(SignedReceipt(body, bytes(64)))
                assert await sender.send_all()
                assert hub.batch_versions_seen[-1] == expected
        await spool.close()

    asyncio.run(scenario())
