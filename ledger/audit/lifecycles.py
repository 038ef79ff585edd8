"""What becomes of streams, broadcasts and nodes: READY, LIVE, OFFLINE; published, ended; suspended, retired.

Invariant: an aggregate is in the state that its events so far lead to, and no event passes that its state does not
allow. Streams and nodes are in memory, they grow with the people; broadcasts and their renditions are on disk.
"""

import re
from typing import Final
from uuid import UUID

import msgspec

from ledger.audit.crew import present, require
from ledger.audit.store import Store
from ledger.events import (
    BroadcastEnded,
    BroadcastInterrupted,
    BroadcastResumed,
    BroadcastStarted,
    NodeJoined,
    NodeReinstated,
    NodeRetired,
    NodeSuspended,
    NodeWentOffline,
    NodeWentOnline,
    SegmentsPublished,
    StreamArchived,
    StreamKeyRotated,
    StreamMarkedStale,
    StreamRegistered,
    StreamWentLive,
    StreamWentOffline,
)
from ledger.ids import stream_id

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,38}")  # two that look alike are one
_READY, _LIVE, _OFFLINE, _ARCHIVED, _STALE = "ready", "live", "offline", "archived", "stale"
_RUNNING, _INTERRUPTED, _ENDED = b"r", b"i", b"e"
_ACTIVE, _SUSPENDED, _RETIRED = "active", "suspended", "retired"
_IN_MEMORY: Final = 4_096


class _Stream(msgspec.Struct):
    state: str = _READY
    broadcast: UUID | None = None  # the live one
    next_sequence: int = 0


class _Node(msgspec.Struct):
    state: str = _ACTIVE
    online: bool = False


class State(msgspec.Struct):
    streams: dict[UUID, _Stream] = {}
    nodes: dict[UUID, _Node] = {}


class Lifecycles:
    def __init__(self, store: Store, state: State | None = None) -> None:
        self.state = state or State()
        self._broadcasts = store.table(b"l", lambda state_: state_, bytes, _IN_MEMORY)  # id -> how it is
        self._renditions = store.table(b"r", bytes, bytes, _IN_MEMORY)  # each is of one broadcast

    # --- streams

    def registered(self, event: StreamRegistered) -> None:
        require(event.originator_id == stream_id(event.name), "the stream's id does not follow from its name")
        require(_NAME.fullmatch(event.name) is not None, "a stream's name is 2 to 39 of a-z, 0-9 and -")
        self.state.streams[event.originator_id] = _Stream()

    def stream_changed(
        self,
        event: StreamKeyRotated | StreamWentLive | StreamWentOffline | StreamArchived | StreamMarkedStale,
    ) -> None:
        stream = self._stream(event.originator_id)
        match event:
            case StreamKeyRotated():
                require(stream.state != _ARCHIVED, "a new key for a stream that is archived")
            case StreamWentLive():
                require(stream.state not in (_LIVE, _ARCHIVED), f"a stream that is {stream.state} goes live")
                stream.state, stream.broadcast = _LIVE, event.broadcast_id
            case StreamWentOffline():
                is_it = stream.state == _LIVE and stream.broadcast == event.broadcast_id
                require(is_it, "the stream is not live with that broadcast")
                require(event.next_sequence >= stream.next_sequence, "the stream's sequence goes back")
                stream.state, stream.broadcast = _OFFLINE, None
                stream.next_sequence = event.next_sequence
            case StreamArchived():
                ends = stream.state not in (_LIVE, _ARCHIVED)
                require(ends, f"a stream that is {stream.state} is archived")
                stream.state = _ARCHIVED
            case StreamMarkedStale():
                require(stream.state == _READY, f"a stream that is {stream.state} is called stale")
                stream.state = _STALE

    def _stream(self, sid: UUID) -> _Stream:
        return present(self.state.streams.get(sid), f"stream {sid} was never registered")

    # --- broadcasts

    def started(self, event: BroadcastStarted) -> None:
        stream, key = self._stream(event.stream_id), event.rendition_id.bytes
        require(stream.broadcast == event.originator_id, "the stream is not live with that broadcast")
        require(event.first_sequence == stream.next_sequence, "the stream's sequence does not go on")
        require(key not in self._renditions, "the rendition is another broadcast's")
        self._renditions.put(key, b"")
        self._broadcasts.put(event.originator_id.bytes, _RUNNING)

    def published(self, event: SegmentsPublished) -> None:
        require(self._broadcast(event.originator_id) != _ENDED, "the broadcast has ended")

    def broadcast_changed(
        self, event: BroadcastInterrupted | BroadcastResumed | BroadcastEnded, next_sequence: int
    ) -> None:
        """`next_sequence`: after the last segment that it published."""
        state = self._broadcast(event.originator_id)
        require(state != _ENDED, "the broadcast has ended")
        match event:
            case BroadcastInterrupted():
                require(state == _RUNNING, "the broadcast is interrupted already")
                state = _INTERRUPTED
            case BroadcastResumed():
                require(state == _INTERRUPTED, "the broadcast was not interrupted")
                state = _RUNNING
            case BroadcastEnded():
                require(event.next_sequence == next_sequence, "the broadcast ends elsewhere than it did")
                state = _ENDED
        self._broadcasts.put(event.originator_id.bytes, state)

    def _broadcast(self, bid: UUID) -> bytes:
        return present(self._broadcasts.get(bid.bytes), f"broadcast {bid} never started")

    # --- nodes

    def node_changed(
        self,
        event: NodeJoined | NodeWentOnline | NodeWentOffline | NodeSuspended | NodeReinstated | NodeRetired,
    ) -> None:
        if isinstance(event, NodeJoined):
            self.state.nodes[event.originator_id] = _Node()
            return
        node = present(self.state.nodes.get(event.originator_id), f"node {event.originator_id} never joined")
        require(
            node.state != _RETIRED or isinstance(event, NodeWentOffline), "a retired node does not come back"
        )
        match event:
            case NodeWentOnline():
                require(not node.online, "the node is online already")
                node.online = True
            case NodeWentOffline():
                require(node.online, "the node is not online")
                node.online = False
            case NodeSuspended():
                require(node.state == _ACTIVE, "the node is suspended already")
                node.state = _SUSPENDED
            case NodeReinstated():
                require(node.state == _SUSPENDED, "the node was not suspended")
                node.state = _ACTIVE
            case NodeRetired():
                node.state, node.online = _RETIRED, False
