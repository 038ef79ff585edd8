"""Spot checks: the hub watches its own streams as VLC would and compares what nodes serve with the log.

Invariant: a node that serves wrong bytes is suspended at the first probe that sees it; and no node, whatever it answers
or says its address is, holds a probe longer than `PLAY_S` or ends it with an error.

A node must not know a probe from a viewer. So a probe is a session like any other (class 2, public playlist), sends
byte for byte what VLC sends over one connection, buffers as VLC does, fetches every segment of the playlist in order,
also those that come from the hub, and leaves after a random number of them, as people who zap do. What is left to tell
it by is the hub's own address, unless the probes go through a proxy (STREAMRP2P_PROBE_PROXY). Only when it is over is
its session named, in what is recorded of it: what a node delivered to a probe is not paid (ADR 0031).
"""

import asyncio
import hashlib
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urljoin, urlsplit
from uuid import UUID

import httpx2
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
PLAY_S: Final = 30.0
SEGMENTS_MAX: Final = 8  # from nodes, in one probe: at random, so that nobody knows which is the last
BUFFERED: Final = 4  # so many segments from its end VLC begins to play a live playlist
REFRESH_S: Final = 2.0
MANY: Final = 1_000_000
MAX_SEGMENT_BYTES: Final = 32_000_000
Headers = tuple[tuple[str, str], ...]
# What VLC 3.0 sends, in its order (tests/media/test_vlc.py holds it against the real one).
_COMMON: Final = (
    ("Accept", "*/*"),
    ("Accept-Language", "en_US"),
    ("User-Agent", "VLC/3.0.21 LibVLC/3.0.21"),
)
_OPEN: Final[Headers] = (*_COMMON, ("Range", "bytes=0-"))
_PLAY: Final[Headers] = (*_COMMON, ("Accept-Encoding", "deflate, gzip"), ("Cache-Control", "no-cache"))
_NODE_SEGMENT: Final = re.compile(r"/segments/[0-9a-f-]{36}/\d+\.(?:ts|m4s)$")
_SEQUENCE: Final = re.compile(r"/(\d+)\.(?:ts|m4s)$")


@dataclass(frozen=True, slots=True)
class Probed:
    """One segment that a node served, or should have."""

    ticket: Ticket
    sequence: int
    outcome: str  # as in ledger.events.NodeProbed
    segment_bytes: int
    latency_us: int


class Prober:
    """For one thread. `proxy`: an HTTP proxy through which nodes are reached, so that they see another address."""

    def __init__(
        self,
        ledger: Ledger,
        hub_url: str,
        rng: random.Random,
        proxy: str | None = None,
        suspended: Callable[[UUID], None] = lambda _nid: None,
    ) -> None:
        """`suspended` is told of each node that a probe suspended."""
        self._ledger = ledger
        self._suspended = suspended
        self._hub_url = hub_url
        self._rng = rng
        self._proxy = proxy

    def probe(self, slug: str, *, at_us: int) -> str | None:
        """Watch the stream for a moment. Returns the outcome, None when no node served.

        The last segment that a node served is recorded: the first that it did not serve well ends the watching.
        """
        last = asyncio.run(self._watch(slug))
        if last is None:
            return None

        def record(node: Node) -> None:
            if node.status is not NodeStatus.ACTIVE:
                return
            node.probed(
                outcome=last.outcome,
                sequence=last.sequence,
                latency_us=last.latency_us,
                segment_bytes=last.segment_bytes,
                session_id=last.ticket.session_id,
                at_us=at_us,
            )
            if last.outcome == "wrong_bytes":
                node.suspend(reason="a probe got other bytes than were published", at_us=at_us)

        nid = node_id(last.ticket.node_key)
        node = change_node(self._ledger, nid, record)
        if node.status is NodeStatus.SUSPENDED:
            self._suspended(nid)
        if last.outcome != "ok":
            log.warning("probe failed", node=str(nid), outcome=last.outcome, sequence=last.sequence)
        return last.outcome

    def viewers(self, slug: str) -> int:
        """How many the hub counts, a probe of a moment ago among them; many when that is not known."""
        try:
            answer = httpx2.get(f"{self._hub_url}/api/streams/{slug}", timeout=TIMEOUT_S, trust_env=False)
            return int(answer.raise_for_status().json()["viewers"])
        except (httpx2.HTTPError, ValueError, KeyError):
            return MANY

    async def _watch(self, slug: str) -> Probed | None:
        last: Probed | None = None
        fetched, left = -1, self._rng.randint(1, SEGMENTS_MAX)
        try:
            async with asyncio.timeout(PLAY_S), _player() as hub, _player(self._proxy) as nodes:
                playlist_url = await self._open(hub, slug)
                while left:
                    playlist = (await _get(hub, playlist_url, _PLAY)).text
                    urls = [urljoin(playlist_url, uri) for uri in _uris(playlist)]
                    if not any(map(_is_a_nodes, urls)):
                        return last
                    for url in urls if fetched >= 0 else urls[-BUFFERED:]:
                        if _sequence(url) <= fetched or not left:
                            continue
                        fetched = _sequence(url)
                        if not _is_a_nodes(url):
                            await _get(hub, url, _PLAY)
                        elif (found := await self._segment(nodes, slug, url)) is not None:
                            last, left = found, left - 1
                            if last.outcome != "ok":
                                return last
                    if left:
                        await asyncio.sleep(REFRESH_S)
        except TimeoutError:
            return last
        except (httpx2.HTTPError, IndexError) as error:
            if _went_off_air(error):
                return last
            log.warning("the hub's own playlist cannot be read", slug=slug, error=_one_line(error))
        return last

    async def _open(self, hub: httpx2.AsyncClient, slug: str) -> str:
        """The address of a new session's media playlist."""
        master = f"{self._hub_url}/live/{slug}.m3u8"
        return urljoin(master, _uris((await _get(hub, master, _OPEN)).text)[0])

    async def _segment(self, http: httpx2.AsyncClient, slug: str, url: str) -> Probed | None:
        """None for a segment that is no longer known, or whose ticket cannot be read: no fault of the node's."""
        try:
            ticket = SignedTicket.decode_url(parse_qs(urlsplit(url).query)["t"][0]).ticket
        except (KeyError, ValueError):  # WireError too
            return None
        sequence = _sequence(url)
        known_sha256 = self._published(slug, sequence)
        if known_sha256 is None:
            return None
        began = time.monotonic()
        outcome, size = await _fetch(http, url, known_sha256, DEADLINE_S)
        return Probed(ticket, sequence, outcome, size, int((time.monotonic() - began) * 1_000_000))

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

    async def once() -> tuple[str, int]:
        async with _player() as http:
            return await _fetch(http, url, known_sha256, deadline_s)

    return asyncio.run(once())


async def _fetch(
    http: httpx2.AsyncClient, url: str, known_sha256: bytes, deadline_s: float
) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    try:
        async with asyncio.timeout(deadline_s):
            answer = await http.send(httpx2.Request("GET", url, headers=_PLAY), stream=True)
            try:
                if answer.status_code != 200:
                    return "refused", 0
                async for part in answer.aiter_raw():
                    size += len(part)
                    if size > MAX_SEGMENT_BYTES:
                        return "wrong_bytes", size
                    digest.update(part)
            finally:
                await answer.aclose()
    except (TimeoutError, httpx2.TimeoutException):
        return "slow", size
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError):  # ValueError: a host name that cannot be one
        return "unreachable", size
    return ("ok" if digest.digest() == known_sha256 else "wrong_bytes"), size


async def _get(http: httpx2.AsyncClient, url: str, headers: Headers) -> httpx2.Response:
    return (await http.send(httpx2.Request("GET", url, headers=headers))).raise_for_status()


def _player(proxy: str | None = None) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False, proxy=proxy)


def _went_off_air(error: Exception) -> bool:
    """Nothing is wrong: every broadcast ends, and a new one has no segment for two seconds."""
    return isinstance(error, httpx2.HTTPStatusError) and error.response.status_code == httpx2.codes.NOT_FOUND


def _one_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _is_a_nodes(url: str) -> bool:
    return _NODE_SEGMENT.search(urlsplit(url).path) is not None


def _sequence(url: str) -> int:
    return int(_SEQUENCE.findall(urlsplit(url).path)[0])


def _uris(playlist: str) -> list[str]:
    return [line for line in playlist.splitlines() if line and not line.startswith("#")]
