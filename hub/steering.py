"""Who serves whom: a node for each session, and the ticket for it.

Invariant: a segment URL at a node carries a ticket that stands in the log. What is only in memory here can be lost:
a session is found again in the log, and its viewer keeps playing from the hub meanwhile. The log is public and names
every session, so nothing that comes from another network than the one that opened a session is held for its viewer:
it is played to, but it counts for no node and against none.
"""

import hmac
import random
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol
from uuid import UUID

import structlog

from hub.authority import InPool
from hub.buckets import Buckets
from hub.keystore import KeyStore
from hub.live_nodes import LiveNode, LiveNodes
from hub.observations import OBSERVE_AFTER_S, Observations
from hub.viewings import Viewing, Viewings
from ledger import application
from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node, NodeStatus
from ledger.aggregates.session import Session
from ledger.aggregates.stream import Stream
from ledger.application import Conflict, Ledger, NotFound
from ledger.ids import BOOK_ID, node_id
from ledger.services import crew
from ledger.services.delivery import DeliveryDesk
from ledger.services.nodes import prefix_commitment
from ledger.services.streams import load_stream
from ledger.ticket import Ticket, ViewerClass
from relay.ports import Assignment, Unavailable, Unknown

log = structlog.get_logger()

CANDIDATES: Final = 3  # nodes that are tried for a session
AVOID_S: Final = 20.0  # a session that had to fetch from the hub is not sent to the same node for so long
SAMPLE: Final = 10  # one plain segment in ten comes from the hub
RENEW_MARGIN: Final = 8  # segments before its end at which a ticket is renewed
NODE_CACHE_S: Final = 2.0
RECALL_S: Final = 86_400  # a session with nothing in the log for so long is over
# Sessions that may be opened: of one viewer network, and of all. A school or a mobile network is one network.
OPEN_BURST: Final = 240
OPEN_RATE_S: Final = 2.0
OPEN_ALL_BURST: Final = 4_000
OPEN_ALL_RATE_S: Final = 50.0


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
        self._ledger = ledger
        self._desk = desk
        self._keys = keys
        self._in_pool = in_pool
        self._now_us = now_us
        self._new_id = new_id
        self._rng = rng
        self._sessions = Viewings()
        self._nodes = LiveNodes(self._sessions, rng)
        self._observations = Observations(
            self._sessions, desk, in_pool, now_us=now_us, after_s=observe_after_s
        )
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
        self._sessions.remember(session_id, Viewing(slug, stream.id, viewer_class, network, time.monotonic()))
        return session_id

    def _network(self, session_id: UUID, peer_ip: str) -> bytes:
        return prefix_commitment(self._keys.network_salt, peer_ip, unique=session_id.bytes)

    async def session_slug(self, session_id: UUID) -> str | None:
        """The stream a session belongs to; None for a session nobody opened."""
        if self._sessions.get(session_id) is None:
            viewing = await self._in_pool(self._recall, session_id)
            if viewing is None:
                return None
            self._sessions.remember(session_id, viewing)
        return self.known_slug(session_id)

    def known_slug(self, session_id: UUID) -> str | None:
        viewing = self._sessions.get(session_id)
        if viewing is None:
            return None
        viewing.seen_s = time.monotonic()
        return viewing.slug

    def _recall(self, session_id: UUID) -> Viewing | None:
        """A session opened before this process started."""
        try:
            session = self._ledger.load(Session, session_id)
            if session.stream_id is None or self._now_us() - session.last_event_us > RECALL_S * 1_000_000:
                return None
            stream = self._ledger.load(Stream, session.stream_id)
        except NotFound:
            return None
        return Viewing(stream.slug, stream.id, session.viewer_class, session.network, time.monotonic())

    def viewers(self, slug: str) -> int:
        """Sessions of the stream that asked for something a moment ago."""
        return sum(1 for _ in self._sessions.watching(slug))

    def carriers(self, slug: str) -> list[UUID]:
        """The node of each session of the stream that has one and was seen a moment ago."""
        return [v.node_id for v in self._sessions.watching(slug) if v.node_id is not None]

    # --- nodes

    def update_live_nodes(self, nodes: Sequence[LiveNode]) -> None:
        """The nodes whose heartbeat is fresh, told about once a second."""
        self._nodes.update(nodes)

    def node_left(self, nid: UUID) -> None:
        """A node said goodbye: nothing more is listed there. Thread-safe."""
        self._nodes.leave(nid)

    def known_assignment(self, session_id: UUID, rendition_id: UUID, next_sequence: int) -> Assignment | None:
        viewing = self._sessions.get(session_id)
        if viewing is None:
            return None
        if self._still_good(viewing, rendition_id, next_sequence):
            if self._must_ask(viewing):
                raise Unknown
            return viewing.assignment
        if viewing.assignment is None and not self._nodes:
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

    def _must_ask(self, viewing: Viewing) -> bool:
        if self._doors is None or viewing.node_id is None or viewing.viewer_class is not ViewerClass.PLAIN:
            return False
        return not self._doors.answered(viewing.node_id)

    async def _answers(self, viewing: Viewing, nid: UUID | None) -> bool:
        """Whether the viewer may be sent to the node now: a plain player waits for ever at one that fell silent."""
        if self._doors is None or nid is None or viewing.viewer_class is not ViewerClass.PLAIN:
            return True
        return await self._doors.answers(nid)

    def _still_good(self, viewing: Viewing, rendition_id: UUID, next_sequence: int) -> bool:
        if viewing.assignment is None or viewing.node_id is None or viewing.rendition_id != rendition_id:
            return False
        return (
            self._nodes.is_at(viewing.node_id, viewing.assignment.node_url)
            and viewing.node_id not in viewing.avoid
            and not _is_ending(viewing.assignment.ticket.ticket, next_sequence)
        )

    async def _assign(
        self, session_id: UUID, viewing: Viewing, rendition_id: UUID, next_sequence: int
    ) -> None:
        now = time.monotonic()
        viewing.avoid = {n: until for n, until in viewing.avoid.items() if until > now}
        for candidate in self._nodes.draw(viewing.avoid, CANDIDATES):
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

    def _issue(
        self,
        session_id: UUID,
        viewing: Viewing,
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
        elif viewing.node_id is not None and viewing.was_assigned(sequence):
            # The viewer came to the hub for a segment its node should have served: the node failed it.
            viewing.avoid[viewing.node_id] = now + AVOID_S
            self._nodes.complain(viewing.node_id, session_id, viewing.network)

    async def record_observations(self, *, all_now: bool = False) -> None:
        """What waited long enough, or all that there is, into the log. Raises Unavailable."""
        await self._observations.record(all_now=all_now)
        self._nodes.forget_complaints()


def _opener(peer_ip: str) -> bytes:
    """Under what the opening of sessions is counted: the network, and nobody for a machine of the hub's own."""
    own = prefix_commitment(b"", peer_ip, unique=b"1")
    return b"" if own != prefix_commitment(b"", peer_ip, unique=b"2") else own


def _is_ending(ticket: Ticket, next_sequence: int) -> bool:
    """Time for the next ticket. A short one is not renewed at every refresh."""
    segments = ticket.last_sequence - ticket.first_sequence + 1
    return next_sequence + min(RENEW_MARGIN, segments // 4) > ticket.last_sequence
