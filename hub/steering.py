"""Who serves whom: sessions in memory, a node for each, and what the hub observes of plain players.

Invariant: a segment URL at a node carries a ticket that stands in the log. What is only in memory here can be lost:
a session is found again in the log, and its viewer keeps playing from the hub meanwhile. The log is public and names
every session, so nothing that comes from another network than the one that opened a session is held for its viewer:
it is played to, but it counts for no node and against none.
"""

import asyncio
import hmac
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from uuid import UUID

import structlog

from hub.authority import InPool
from hub.buckets import Buckets
from hub.keystore import KeyStore
from ledger import application
from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node, NodeStatus
from ledger.aggregates.session import Session
from ledger.aggregates.stream import Stream
from ledger.application import Conflict, Ledger, NotFound
from ledger.ids import BOOK_ID, node_id
from ledger.receipt import BITMAP_BITS, to_bitmap
from ledger.services import crew
from ledger.services.delivery import DeliveryDesk
from ledger.services.nodes import prefix_commitment
from ledger.services.streams import load_stream
from ledger.ticket import Ticket, ViewerClass
from relay.ports import Assignment, Unavailable, Unknown

log = structlog.get_logger()

SESSION_IDLE_S: Final = 90.0
SEEN_S: Final = 15.0  # a session that asked for something within this time is watching
MAX_SESSIONS: Final = 20_000
AVOID_S: Final = 20.0  # a session that had to fetch from the hub is not sent to the same node for so long
SUSPECT_S: Final = 10.0  # a node that failed several viewers is not given to anybody for so long
SUSPECT_NETWORKS: Final = 2  # so many must say so, independently,
SUSPECT_SHARE: Final = (
    4  # and one in so many of those who watch through it: a rival has not that many sessions there
)
OBSERVE_AFTER_S: Final = (
    60.0  # what was observed stands in the log so much later at the latest: a killed hub loses it
)
SAMPLE: Final = 10  # one plain segment in ten comes from the hub
NEW_HEALTH: Final = 500
HEALTH_LEAST: Final = 50  # a node of bad health is seldom drawn, but can get better
RENEW_MARGIN: Final = 8  # segments before its end at which a ticket is renewed
NODE_CACHE_S: Final = 2.0
RECALL_S: Final = 86_400  # a session with nothing in the log for so long is over
# Sessions that may be opened: of one viewer network, and of all. A school or a mobile network is one network.
OPEN_BURST: Final = 240
OPEN_RATE_S: Final = 2.0
OPEN_ALL_BURST: Final = 4_000
OPEN_ALL_RATE_S: Final = 50.0


@dataclass(frozen=True, slots=True)
class LiveNode:
    """A node that sent a heartbeat a moment ago."""

    node_id: UUID
    url: str
    viewers: int
    health: int = NEW_HEALTH  # 0 to 1000, from probes and receipts (docs/projections.md)


@dataclass(slots=True)
class _Viewing:
    """One session as the hub sees it."""

    slug: str
    stream_id: UUID
    viewer_class: ViewerClass
    network: bytes  # commitment
    seen_s: float
    rendition_id: UUID | None = None
    node_id: UUID | None = None
    assignment: Assignment | None = None
    avoid: dict[UUID, float] = field(default_factory=dict)
    polled: set[int] = field(default_factory=set)  # not yet recorded
    excused_to: int = -1  # up to here segments were listed at the hub because the node was silent
    polled_to: int = -1  # the highest sequence ever listed to the session
    fetched: set[int] = field(default_factory=set)
    observed_s: float = 0.0  # when the oldest of both was observed
    renewing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def note_time(self, now: float) -> None:
        """Something is about to be observed."""
        if not (self.polled or self.fetched):
            self.observed_s = now


class Doors(Protocol):
    """Whether nodes are there at this moment: see hub.pings."""

    def answered(self, nid: UUID, /) -> bool: ...

    async def answers(self, nid: UUID, /) -> bool: ...


class LedgerSteering:
    """Implements `relay.ports.Steering`. Lives on one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        desk: DeliveryDesk,
        keys: KeyStore,
        in_pool: InPool,
        *,
        now_us: Callable[[], int],
        new_id: Callable[[], UUID],
        rng: random.Random,
        observe_after_s: float = OBSERVE_AFTER_S,
        doors: "Doors | None" = None,
    ) -> None:
        self._doors = doors
        self._observe_after_s = observe_after_s
        self._ledger = ledger
        self._desk = desk
        self._keys = keys
        self._in_pool = in_pool
        self._now_us = now_us
        self._new_id = new_id
        self._rng = rng
        self._sessions: dict[UUID, _Viewing] = {}
        self._live: dict[UUID, LiveNode] = {}
        self._complaints: dict[UUID, dict[UUID, tuple[bytes, float]]] = {}  # node -> session -> network, when
        self._opening = Buckets(
            burst=OPEN_BURST,
            rate_s=OPEN_RATE_S,
            all_burst=OPEN_ALL_BURST,
            all_rate_s=OPEN_ALL_RATE_S,
        )
        self._may_fetch: dict[bytes, tuple[float, bool]] = {}

    # --- sessions

    async def open_session(self, slug: str, peer_ip: str) -> UUID | None:
        return await self._open(slug, ViewerClass.PLAIN, b"", peer_ip, None)

    async def open_signing_session(
        self, slug: str, viewer_key: bytes, peer_ip: str, account_id: UUID | None
    ) -> UUID | None:
        """A session for a page that signs its receipts with `viewer_key` (32 bytes). None: no such stream.

        `account_id`: the friend or creator who watches, when they said so.

        Raises ledger.application.Unavailable.
        """
        try:
            return await self._open(slug, ViewerClass.SIGNING, viewer_key, peer_ip, account_id)
        except Unavailable as e:
            raise application.Unavailable(str(e)) from e

    async def _open(
        self, slug: str, viewer_class: ViewerClass, key: bytes, peer_ip: str, account_id: UUID | None
    ) -> UUID | None:
        stream = await self._in_pool(load_stream, self._ledger, slug)
        if stream is None:
            return None
        if not self._opening.take(_opener(peer_ip), time.monotonic()):
            raise Unavailable("too many sessions are being opened: try again in a moment")
        session_id = self._new_id()
        network = self._network(session_id, peer_ip)
        await self._in_pool(
            self._desk.open_session,
            session_id=session_id,
            stream_id=stream.id,
            viewer_class=viewer_class,
            viewer_key=key,
            prefix_commitment=network,
            account_id=account_id,
            at_us=self._now_us(),
        )
        self._remember(session_id, _Viewing(slug, stream.id, viewer_class, network, time.monotonic()))
        return session_id

    def _network(self, session_id: UUID, peer_ip: str) -> bytes:
        return prefix_commitment(self._keys.network_salt, peer_ip, unique=session_id.bytes)

    def _remember(self, session_id: UUID, viewing: _Viewing) -> _Viewing:
        """The session in memory, which is `viewing` unless another request was first."""
        known = self._sessions.get(session_id)
        if known is not None:
            return known
        if len(self._sessions) >= MAX_SESSIONS:
            oldest = min(self._sessions, key=lambda s: self._sessions[s].seen_s)
            del self._sessions[oldest]
        self._sessions[session_id] = viewing
        return viewing

    async def session_slug(self, session_id: UUID) -> str | None:
        """The stream a session belongs to; None for a session nobody opened."""
        if session_id not in self._sessions:
            viewing = await self._in_pool(self._recall, session_id)
            if viewing is None:
                return None
            self._remember(session_id, viewing)
        return self.known_slug(session_id)

    def known_slug(self, session_id: UUID) -> str | None:
        viewing = self._sessions.get(session_id)
        if viewing is None:
            return None
        viewing.seen_s = time.monotonic()
        return viewing.slug

    def _recall(self, session_id: UUID) -> _Viewing | None:
        """A session opened before this process started."""
        try:
            session = self._ledger.load(Session, session_id)
            if session.stream_id is None or self._now_us() - session.last_event_us > RECALL_S * 1_000_000:
                return None
            stream = self._ledger.load(Stream, session.stream_id)
        except NotFound:
            return None
        return _Viewing(stream.slug, stream.id, session.viewer_class, session.network, time.monotonic())

    def viewers(self, slug: str) -> int:
        """Sessions of the stream that asked for something a moment ago."""
        since = time.monotonic() - SEEN_S
        return sum(v.slug == slug and v.seen_s > since for v in self._sessions.values())

    def carriers(self, slug: str) -> list[UUID]:
        """The node of each session of the stream that has one and was seen a moment ago."""
        since = time.monotonic() - SEEN_S
        return [
            v.node_id
            for v in self._sessions.values()
            if v.slug == slug and v.seen_s > since and v.node_id is not None
        ]

    # --- nodes

    def update_live_nodes(self, nodes: Sequence[LiveNode]) -> None:
        """The nodes whose heartbeat is fresh, told about once a second."""
        self._live = {n.node_id: n for n in nodes}

    def node_left(self, nid: UUID) -> None:
        """A node said goodbye: nothing more is listed there. Thread-safe."""
        self._live.pop(nid, None)

    def _is_suspect(self, nid: UUID, now: float) -> bool:
        recent = [net for net, at in self._complaints.get(nid, {}).values() if now - at < SUSPECT_S]
        if len(set(recent)) < SUSPECT_NETWORKS:
            return False
        content = sum(v.node_id == nid and v.seen_s > now - SEEN_S for v in self._sessions.values())
        return len(recent) * SUSPECT_SHARE >= content

    def known_assignment(self, session_id: UUID, rendition_id: UUID, next_sequence: int) -> Assignment | None:
        viewing = self._sessions.get(session_id)
        if viewing is None:
            return None
        if self._still_good(viewing, rendition_id, next_sequence):
            if self._must_ask(viewing):
                raise Unknown
            return viewing.assignment
        if viewing.assignment is None and not self._live:
            return None
        raise Unknown

    async def assignment(self, session_id: UUID, rendition_id: UUID, next_sequence: int) -> Assignment | None:
        viewing = self._sessions.get(session_id)
        if viewing is None:
            return None
        async with viewing.renewing:
            if self._still_good(viewing, rendition_id, next_sequence):
                if await self._answers(viewing, viewing.node_id):
                    return viewing.assignment
                # It may only be slow: the hub serves until the next refresh, then it is asked again.
                viewing.excused_to = next_sequence
                return None
            viewing.assignment = viewing.node_id = None
            await self._assign(session_id, viewing, rendition_id, next_sequence)
            return viewing.assignment

    def _must_ask(self, viewing: _Viewing) -> bool:
        if self._doors is None or viewing.node_id is None or viewing.viewer_class is not ViewerClass.PLAIN:
            return False
        return not self._doors.answered(viewing.node_id)

    async def _answers(self, viewing: _Viewing, nid: UUID | None) -> bool:
        """Whether the viewer may be sent to the node now: a plain player waits for ever at one that fell silent."""
        if self._doors is None or nid is None or viewing.viewer_class is not ViewerClass.PLAIN:
            return True
        return await self._doors.answers(nid)

    def _still_good(self, viewing: _Viewing, rendition_id: UUID, next_sequence: int) -> bool:
        if viewing.assignment is None or viewing.node_id is None or viewing.rendition_id != rendition_id:
            return False
        live = self._live.get(viewing.node_id)
        now = time.monotonic()
        return (
            live is not None
            and live.url == viewing.assignment.node_url
            and viewing.node_id not in viewing.avoid
            and not self._is_suspect(viewing.node_id, now)
            and not _is_ending(viewing.assignment.ticket.ticket, next_sequence)
        )

    async def _assign(
        self, session_id: UUID, viewing: _Viewing, rendition_id: UUID, next_sequence: int
    ) -> None:
        now = time.monotonic()
        viewing.avoid = {n: until for n, until in viewing.avoid.items() if until > now}
        candidates = [
            n
            for n in self._live.values()
            if n.node_id not in viewing.avoid and not self._is_suspect(n.node_id, now)
        ]
        for candidate in self._draw(candidates, 3):
            if not await self._answers(viewing, candidate.node_id):
                continue
            try:
                assignment = await self._in_pool(
                    self._issue, session_id, viewing, candidate, rendition_id, next_sequence
                )
            except (Unavailable, Conflict, DomainError, NotFound) as e:
                # The viewer is served by the hub until the next refresh: never an error in a playlist.
                log.warning("no ticket issued", node=str(candidate.node_id), reason=str(e))
                continue
            if assignment is not None:
                viewing.assignment, viewing.node_id = assignment, candidate.node_id
                viewing.rendition_id = rendition_id
                return

    def _draw(self, candidates: list[LiveNode], count: int) -> list[LiveNode]:
        """At random, so that nobody chooses who pays them; the fewer viewers and the better health a node has, the
        likelier."""
        since = time.monotonic() - SEEN_S
        load = Counter(v.node_id for v in self._sessions.values() if v.seen_s > since)
        drawn: list[LiveNode] = []
        left = list(candidates)
        while left and len(drawn) < count:
            weights = [max(n.health, HEALTH_LEAST) / (1 + load[n.node_id]) ** 2 for n in left]
            drawn.append(left.pop(self._rng.choices(range(len(left)), weights)[0]))
        return drawn

    def _issue(
        self,
        session_id: UUID,
        viewing: _Viewing,
        candidate: LiveNode,
        rendition_id: UUID,
        next_sequence: int,
    ) -> Assignment | None:
        node = self._ledger.load(Node, candidate.node_id)
        if node.status is not NodeStatus.ACTIVE:
            return None
        stream = self._ledger.load(Stream, viewing.stream_id)
        if stream.broadcast_id is None:
            return None
        broadcast = self._ledger.load(Broadcast, stream.broadcast_id)
        if broadcast.rendition_id != rendition_id:
            return None
        tariff = self._ledger.load_or_new(Book, BOOK_ID).tariff_version(viewing.stream_id)
        back = min(RENEW_MARGIN, crew.settings(self._ledger).ticket_segments // 2)
        signed = self._desk.issue_ticket(
            hub_key=self._keys.ticket,
            ticket_id=self._new_id(),
            session_id=session_id,
            node=node,
            broadcast=broadcast,
            first_sequence=max(broadcast.first_sequence, next_sequence - back),
            nonce=self._rng.choice(self._keys.nonces(rendition_id)),
            tariff_version=tariff,
            at_us=self._now_us(),
        )
        return Assignment(candidate.url, signed)

    async def node_may_fetch(self, public_key: bytes) -> bool:
        now = time.monotonic()
        cached = self._may_fetch.get(public_key)
        if cached is not None and now - cached[0] < NODE_CACHE_S:
            return cached[1]
        allowed = await self._in_pool(self._is_active, public_key)
        if len(self._may_fetch) > 10_000:
            self._may_fetch.clear()
        self._may_fetch[public_key] = (now, allowed)
        return allowed

    def _is_active(self, public_key: bytes) -> bool:
        try:
            return self._ledger.load(Node, node_id(public_key)).status is NodeStatus.ACTIVE
        except NotFound:
            return False

    # --- what the hub sees of a session

    def pointed_at_hub(self, session_id: UUID, sequence: int) -> bool:
        viewing = self._sessions.get(session_id)
        if viewing is None or viewing.viewer_class is ViewerClass.SIGNING:
            return False
        mark = hmac.digest(
            self._keys.steering_secret, session_id.bytes + sequence.to_bytes(8, "big"), "sha256"
        )
        return int.from_bytes(mark[:4], "big") % SAMPLE == 0

    def observe_poll(self, session_id: UUID, sequences: Sequence[int], peer_ip: str) -> None:
        viewing = self._sessions.get(session_id)
        if viewing is None or viewing.viewer_class is ViewerClass.SIGNING or not sequences:
            return
        if self._network(session_id, peer_ip) == viewing.network:
            viewing.note_time(time.monotonic())
            viewing.polled.update(s for s in sequences if s > viewing.polled_to)
            viewing.polled_to = max(viewing.polled_to, *sequences)

    def observe_fetch(self, session_id: UUID, sequence: int, peer_ip: str) -> None:
        viewing = self._sessions.get(session_id)
        if viewing is None or self._network(session_id, peer_ip) != viewing.network:
            return
        viewing.seen_s = now = time.monotonic()
        if self.pointed_at_hub(session_id, sequence):
            viewing.note_time(now)
            viewing.fetched.add(sequence)
        elif viewing.node_id is not None and self._was_assigned(viewing, sequence):
            # The viewer came to the hub for a segment its node should have served: the node failed it.
            viewing.avoid[viewing.node_id] = now + AVOID_S
            self._complaints.setdefault(viewing.node_id, {})[session_id] = (viewing.network, now)

    @staticmethod
    def _was_assigned(viewing: _Viewing, sequence: int) -> bool:
        covered = viewing.assignment is not None and viewing.assignment.ticket.ticket.covers(sequence)
        return covered and sequence > viewing.excused_to

    async def record_observations(self, *, all_now: bool = False) -> None:
        """Write what has waited long enough, one event a session, and forget sessions that have gone.

        An event every few seconds would be most of the log. What is not written yet dies with this process: of each
        plain session at most the last `observe_after_s`. What cannot be written is kept for the next call. Raises
        Unavailable: then nothing more is tried now.
        """
        now = time.monotonic()
        for session_id, viewing in list(self._sessions.items()):
            due = all_now or now - min(viewing.observed_s, viewing.seen_s) >= self._observe_after_s
            while due and (viewing.polled or viewing.fetched):
                if not await self._record(session_id, viewing):
                    break
            if now - viewing.seen_s > SESSION_IDLE_S and not (viewing.polled or viewing.fetched):
                self._sessions.pop(session_id, None)
        self._complaints = {
            n: fresh
            for n, sessions in self._complaints.items()
            if (fresh := {s: (net, at) for s, (net, at) in sessions.items() if now - at < SUSPECT_S})
        }

    async def _record(self, session_id: UUID, viewing: _Viewing) -> bool:
        """Whether it was written. Raises Unavailable."""
        polled, fetched = viewing.polled, viewing.fetched
        base = min(polled | fetched)
        now_polled = {s for s in polled if s < base + BITMAP_BITS}
        now_fetched = {s for s in fetched if s < base + BITMAP_BITS}
        viewing.polled, viewing.fetched = polled - now_polled, fetched - now_fetched
        try:
            await self._in_pool(
                self._desk.observe,
                session_id,
                base_sequence=base,
                polled=to_bitmap(base, now_polled),
                fetched_at_hub=to_bitmap(base, now_fetched),
                at_us=self._now_us(),
            )
        except BaseException as e:
            # It may have been recorded all the same: a sequence that is observed twice counts once.
            viewing.polled |= now_polled
            viewing.fetched |= now_fetched
            if not isinstance(e, Conflict):
                raise
            log.warning("observations not recorded yet", reason=str(e))
            return False
        return True


def _opener(peer_ip: str) -> bytes:
    """Under what the opening of sessions is counted: the network, and nobody for a machine of the hub's own."""
    own = prefix_commitment(b"", peer_ip, unique=b"1")
    return b"" if own != prefix_commitment(b"", peer_ip, unique=b"2") else own


def _is_ending(ticket: Ticket, next_sequence: int) -> bool:
    """Time for the next ticket. A short one is not renewed at every refresh."""
    segments = ticket.last_sequence - ticket.first_sequence + 1
    return next_sequence + min(RENEW_MARGIN, segments // 4) > ticket.last_sequence
