"""Spot checks: the hub watches its own streams as a plain player would and compares what nodes serve with the log.

Invariant: a probe takes the public way, from playlist to segment, so that a node cannot tell it from VLC; a node that
serves wrong bytes is suspended at the first probe that sees it; and no node, whatever it answers or says its address
is, holds a probe longer than `DEADLINE_S` or ends it with an error.
"""

import asyncio
import hashlib
import re
import time
from typing import Final
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2 as httpx
import structlog

from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node, NodeStatus
from ledger.aggregates.stream import StreamState
from ledger.application import Ledger, NotFound
from ledger.ids import node_id
from ledger.services.nodes import change_node
from ledger.services.streams import load_stream
from ledger.ticket import SignedTicket, Ticket

log = structlog.get_logger("hub.probes")

TIMEOUT_S: Final = 5.0
DEADLINE_S: Final = 15.0  # of a whole fetch: a node that sends a byte now and then never meets TIMEOUT_S
MAX_SEGMENT_BYTES: Final = 32_000_000
_HEADERS: Final = {"User-Agent": "VLC/3.0.21 LibVLC/3.0.21", "Accept": "*/*", "Range": "bytes=0-"}
_NODE_SEGMENT: Final = re.compile(r"/segments/[0-9a-f-]{36}/(\d+)\.ts$")


class Prober:
    """For one thread."""

    def __init__(self, ledger: Ledger, hub_url: str) -> None:
        self._ledger = ledger
        self._hub_url = hub_url
        self._http = httpx.Client(timeout=TIMEOUT_S, headers=_HEADERS, trust_env=False)

    def probe(self, slug: str, *, at_us: int) -> str | None:
        """Probe the node that the hub would give a player just now. Returns the outcome, None when no node serves."""
        target = self._assigned(slug)
        if target is None:
            return None
        url, ticket, sequence = target
        known_sha256 = self._published(slug, sequence)
        if known_sha256 is None:
            return None
        started = time.monotonic()
        outcome, size = fetch(url, known_sha256)
        latency_us = int((time.monotonic() - started) * 1_000_000)

        def record(node: Node) -> None:
            if node.status is not NodeStatus.ACTIVE:
                return
            node.probed(
                outcome=outcome, sequence=sequence, latency_us=latency_us, segment_bytes=size, at_us=at_us
            )
            if outcome == "wrong_bytes":
                node.suspend(reason="a probe got other bytes than were published", at_us=at_us)

        change_node(self._ledger, node_id(ticket.node_key), record)
        if outcome != "ok":
            log.warning(
                "probe failed", node=str(node_id(ticket.node_key)), outcome=outcome, sequence=sequence
            )
        return outcome

    def _assigned(self, slug: str) -> tuple[str, Ticket, int] | None:
        """URL, ticket and sequence of the newest segment that a new player is sent to a node for."""
        try:
            master_url = f"{self._hub_url}/live/{slug}.m3u8"
            master = self._http.get(master_url).raise_for_status().text
            media_url = urljoin(master_url, _uris(master)[0])
            media = self._http.get(media_url).raise_for_status().text
        except (httpx.HTTPError, IndexError) as error:
            log.warning("the hub's own playlist cannot be read", slug=slug, error=str(error))
            return None
        for uri in reversed(_uris(media)):
            match = _NODE_SEGMENT.search(uri.partition("?")[0])
            if match:
                try:
                    url = urljoin(media_url, uri)
                    text = parse_qs(urlsplit(url).query)["t"][0]
                    return url, SignedTicket.decode_url(text).ticket, int(match[1])
                except (KeyError, ValueError):  # WireError too
                    continue
        return None

    def _published(self, slug: str, sequence: int) -> bytes | None:
        stream = load_stream(self._ledger, slug)
        if stream is None or stream.state is not StreamState.LIVE or stream.broadcast_id is None:
            return None
        try:
            segment = self._ledger.load(Broadcast, stream.broadcast_id).segments.get(sequence)
        except NotFound:
            return None
        return segment.sha256 if segment else None


def fetch(url: str, known_sha256: bytes, *, deadline_s: float = DEADLINE_S) -> tuple[str, int]:
    """(outcome, bytes read) of fetching a segment from a node. Never raises for what the node does."""
    return asyncio.run(_fetch(url, known_sha256, deadline_s))


async def _fetch(url: str, known_sha256: bytes, deadline_s: float) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    try:
        async with asyncio.timeout(deadline_s), _player() as http, http.stream("GET", url) as answer:
            if answer.status_code not in (200, 206):
                return "refused", 0
            async for part in answer.aiter_raw():
                size += len(part)
                if size > MAX_SEGMENT_BYTES:
                    return "wrong_bytes", size
                digest.update(part)
    except (TimeoutError, httpx.TimeoutException):
        return "slow", size
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):  # ValueError: a host name that cannot be one
        return "unreachable", size
    return ("ok" if digest.digest() == known_sha256 else "wrong_bytes"), size


def _player() -> httpx.AsyncClient:
    client = httpx.AsyncClient(timeout=TIMEOUT_S, headers=_HEADERS, trust_env=False)
    del client.headers["accept-encoding"]  # VLC sends none, and nothing is unpacked here
    return client


def _uris(playlist: str) -> list[str]:
    return [line for line in playlist.splitlines() if line and not line.startswith("#")]
