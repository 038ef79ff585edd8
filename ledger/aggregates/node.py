"""Node: a friend's relay, known by its key; Invite: the one-time code with which it joined.

Invariant: an invite admits one node; a retired node never comes back; a suspended one is not routed to and not paid.
What a node can make the log hold by itself is bounded: its moves by the minute, receipts that belong to nothing by the
day.
"""

from enum import StrEnum
from typing import Final
from uuid import UUID

from ledger.aggregates.base import Aggregate, DomainError
from ledger.batch import batch_hash
from ledger.events import (
    Event,
    InviteCreated,
    InviteUsed,
    NodeJoined,
    NodeMoved,
    NodeProbed,
    NodeReinstated,
    NodeRetired,
    NodeSeenAt,
    NodeSuspended,
    NodeWentOffline,
    NodeWentOnline,
    ReceiptsRefused,
)
from ledger.judge import NodeFacts
from ledger.judged import Judged
from ledger.networks import Networks, is_news, seen

REMEMBERED_REFUSALS: Final = 256
# Receipts that belong to nothing: an honest node has none, unless the hub lost some.
REFUSED_PER_DAY_MAX: Final = 20_000
# Two uplinks, or a carrier's many addresses, would else be a move with each heartbeat.
MOVE_PAUSE_US: Final = 60 * 1_000_000
_DAY_US: Final = 86_400 * 1_000_000


class NodeStatus(StrEnum):
    ACTIVE = "active"
    SUSPENDED = "suspended"
    RETIRED = "retired"


class Node(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.public_key = b""
        self.friend_id = UUID(int=0)
        self.networks: Networks = {}
        self.status = NodeStatus.ACTIVE
        self.status_reason = ""  # why it was suspended or retired
        self.online = False
        self._moved_us: int | None = None
        self._refused: dict[bytes, int] = {}  # batch hash -> version of its event, oldest first
        self._refused_on = (0, 0)  # day, receipts refused on it

    @property
    def facts(self) -> NodeFacts:
        return NodeFacts(
            public_key=self.public_key,
            friend_id=self.friend_id,
            networks=frozenset(self.networks),
            suspended=self.status is not NodeStatus.ACTIVE,
        )

    def join(
        self, *, public_key: bytes, friend_id: UUID, invite_id: UUID, prefix_commitment: bytes, at_us: int
    ) -> None:
        if self.version:
            raise DomainError("this node has joined already")
        self.trigger(
            NodeJoined,
            at_us=at_us,
            public_key=public_key,
            friend_id=friend_id,
            invite_id=invite_id,
            prefix_commitment=prefix_commitment,
        )

    def see_at(self, prefix_commitment: bytes, *, at_us: int) -> None:
        """A network it is not known at is recorded at most once a minute: what is not, comes with a later heartbeat."""
        if not is_news(self.networks, prefix_commitment, at_us):
            return
        if self._moved_us is None or not 0 <= at_us - self._moved_us < MOVE_PAUSE_US:
            self.trigger(NodeSeenAt, at_us=at_us, prefix_commitment=prefix_commitment)

    def go_online(self, *, at_us: int) -> None:
        if not self.online and self.status is not NodeStatus.RETIRED:
            self.trigger(NodeWentOnline, at_us=at_us)

    def go_offline(self, *, reason: str, at_us: int) -> None:
        if self.online:
            self.trigger(NodeWentOffline, at_us=at_us, reason=reason)

    def probed(
        self,
        *,
        outcome: str,
        sequence: int,
        latency_us: int,
        segment_bytes: int,
        session_id: UUID | None,
        at_us: int,
    ) -> None:
        """A spot check is over; `session_id` is what it watched as, and will not be paid for."""
        self.trigger(
            NodeProbed,
            at_us=at_us,
            outcome=outcome,
            sequence=sequence,
            latency_us=latency_us,
            segment_bytes=segment_bytes,
            session_id=session_id,
        )

    def suspend(self, *, reason: str, at_us: int) -> None:
        if self.status is NodeStatus.RETIRED:
            raise DomainError("the node is retired")
        if self.status is NodeStatus.ACTIVE:
            self.trigger(NodeSuspended, at_us=at_us, reason=reason)

    def reinstate(self, *, reason: str, at_us: int) -> None:
        if self.status is NodeStatus.RETIRED:
            raise DomainError("the node is retired")
        if self.status is NodeStatus.SUSPENDED:
            self.trigger(NodeReinstated, at_us=at_us, reason=reason)

    def retire(self, *, reason: str, at_us: int) -> None:
        if self.status is not NodeStatus.RETIRED:
            self.trigger(NodeRetired, at_us=at_us, reason=reason)

    def refused_before(self, known_hash: bytes) -> int | None:
        """The version of the event about a batch that was sent before: sending it again must change nothing."""
        return self._refused.get(known_hash)

    def refuse_receipts(
        self,
        *,
        batch_header: bytes,
        indices: tuple[int, ...],
        receipts: bytes,
        judged: tuple[Judged, ...],
        at_us: int,
    ) -> ReceiptsRefused:
        """Raises DomainError when the node has sent too many of these today."""
        day, count = self._refused_on
        if day == at_us // _DAY_US and count + len(judged) > REFUSED_PER_DAY_MAX:
            raise DomainError(
                f"this node has sent {count} receipts today that belong to nothing: no more are taken before tomorrow"
            )
        return self.trigger(
            ReceiptsRefused,
            at_us=at_us,
            batch_header=batch_header,
            indices=indices,
            receipts=receipts,
            judged=judged,
        )

    def apply(self, event: Event) -> None:
        match event:
            case NodeJoined():
                self.public_key, self.friend_id = event.public_key, event.friend_id
                self.networks = {event.prefix_commitment: event.at_us}
            case NodeMoved():
                self.networks, self._moved_us = {event.prefix_commitment: event.at_us}, event.at_us
            case NodeSeenAt():
                self.networks = seen(self.networks, event.prefix_commitment, event.at_us)
                self._moved_us = event.at_us
            case NodeWentOnline():
                self.online = True
            case NodeWentOffline():
                self.online = False
            case NodeSuspended():
                self.status, self.status_reason = NodeStatus.SUSPENDED, event.reason
            case NodeReinstated():
                self.status, self.status_reason = NodeStatus.ACTIVE, ""
            case NodeRetired():
                self.status, self.status_reason, self.online = NodeStatus.RETIRED, event.reason, False
            case NodeProbed():
                pass  # read by settlement and projections, straight from the log
            case ReceiptsRefused():
                day, count = self._refused_on
                today = event.at_us // _DAY_US
                self._refused_on = (today, len(event.judged) + (count if day == today else 0))
                self._refused[batch_hash(event.batch_header)] = event.originator_version
                if len(self._refused) > REMEMBERED_REFUSALS:
                    del self._refused[next(iter(self._refused))]
            case _:
                raise TypeError(type(event).__name__)


class Invite(Aggregate):
    def __init__(self, aggregate_id: UUID) -> None:
        super().__init__(aggregate_id)
        self.friend_id = UUID(int=0)
        self.expires_us = 0
        self.node_id: UUID | None = None

    def create(self, *, friend_id: UUID, code_sha256: bytes, expires_us: int, at_us: int) -> None:
        self.trigger(
            InviteCreated, at_us=at_us, friend_id=friend_id, code_sha256=code_sha256, expires_us=expires_us
        )

    def use(self, node_id: UUID, *, at_us: int) -> None:
        if self.node_id is not None:
            raise DomainError("this invite code has been used")
        if at_us >= self.expires_us:
            raise DomainError("this invite code has expired")
        self.trigger(InviteUsed, at_us=at_us, node_id=node_id)

    def apply(self, event: Event) -> None:
        match event:
            case InviteCreated():
                self.friend_id, self.expires_us = event.friend_id, event.expires_us
            case InviteUsed():
                self.node_id = event.node_id
            case _:
                raise TypeError(type(event).__name__)
