"""What the log says of the crew at each point: settings, keys, streams, invites, nodes.

Invariant: the state is a function of the events so far. The hub reads these facts a moment before it appends what it
decided on them, and the log orders only each aggregate by itself; so a value that was in force up to `RACE_US` before
an event's time is as good as the present one.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter
from typing import Final, Generic, TypeVar
from uuid import UUID

import msgspec

from ledger.aggregates.base import DomainError
from ledger.audit.report import AuditFailure
from ledger.events import (
    CrewFounded,
    InviteCreated,
    InviteUsed,
    KeyAdded,
    KeyRetired,
    NodeJoined,
    NodeMoved,
    NodeReinstated,
    NodeRetired,
    NodeSeenAt,
    NodeSuspended,
    SettingsChanged,
)
from ledger.ids import invite_id, node_id
from ledger.judge import NodeFacts
from ledger.keys import PUBLIC_KEY_BYTES, key_id
from ledger.networks import Networks, seen
from ledger.settings import Settings

RACE_US: Final = 60_000_000
STEP_US: Final = 10_000_000
CAME: Final = 512  # deliveries wait for others within a bundle of 256 events
EPOCH_MOST_S: Final = 7 * 86_400

# What malformed facts make the rules raise. Anything else is a defect of this program and is not hidden.
_BROKEN: Final = (ValueError, KeyError, IndexError, TypeError, OverflowError, DomainError)

V = TypeVar("V")


class failing_at:
    """Whatever the rules raise, as an AuditFailure that names the position."""

    __slots__ = ("_position",)

    def __init__(self, position: int) -> None:
        self._position = position

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, e: BaseException | None, _traceback: object) -> None:
        if isinstance(e, AuditFailure):
            at = self._position if e.position is None else e.position
            raise AuditFailure(e.reason, position=at, file=e.file, before_rules=e.before_rules) from e
        if isinstance(e, _BROKEN):
            raise AuditFailure(f"the event cannot be replayed: {e!r}", position=self._position) from e


def require(holds: bool, reason: str) -> None:
    """Raises AuditFailure; the replay adds the position."""
    if not holds:
        raise AuditFailure(reason)


def present(value: V | None, reason: str) -> V:
    """The value, when there is one. Raises AuditFailure."""
    if value is None:
        raise AuditFailure(reason)
    return value


class Dated(msgspec.Struct, Generic[V]):
    """A value that changes, with those that it had a moment ago."""

    now: V
    past: list[tuple[int, V]] = []  # (time of the change, value until then), oldest first

    def change(self, value: V, at_us: int) -> None:
        self.past = [(t, v) for t, v in self.past if t > at_us - RACE_US] + [(at_us, self.now)]
        self.now = value

    def in_force(self, at_us: int, log_us: int) -> Iterator[V]:
        """The present value, then those that were in force around `at_us`, newest first.

        `log_us`: how far the log had come. An event that is dated back does not bring back what was long ago.
        """
        yield self.now
        for changed_us, value in reversed(self.past):
            if abs(changed_us - at_us) < RACE_US and log_us - changed_us < 2 * RACE_US:
                yield value


class Key(msgspec.Struct):
    public_key: bytes
    retired_us: int | None = None


class State(msgspec.Struct):
    settings: Dated[Settings]
    nodes: dict[UUID, Dated[NodeFacts]] = {}
    networks: dict[UUID, Networks] = {}
    genesis_us: int = 0
    epoch_us: int = 0
    keys: dict[tuple[str, bytes], Key] = {}  # (purpose, key id)
    invites: dict[UUID, tuple[UUID, int]] = {}  # invite -> (friend, expiry)
    used: dict[UUID, UUID] = {}  # invite -> node
    # (position, the latest time of an event up to there) wherever that grew by STEP_US; of the last few.
    came: list[tuple[int, int]] = []
    dated_back: tuple[int, int] = (0, -1)  # the most that an event was behind that, and its position


class Crew:
    """In memory: it grows with the people, not with what they do."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or State(Dated(Settings()))

    @property
    def settings(self) -> Dated[Settings]:
        return self.state.settings

    def passed(self, position: int, at_us: int) -> None:
        """Before what is judged of the event at `position`."""
        came = self.state.came
        behind_us = came[-1][1] - at_us if came else 0
        if behind_us > max(RACE_US, self.state.dated_back[0]):
            self.state.dated_back = (behind_us, position)
        if not came or at_us >= came[-1][1] + STEP_US:
            came.append((position, at_us))
            if len(came) > 2 * CAME:
                del came[:CAME]

    def log_us(self, position: int) -> int:
        """The latest time of an event up to `position`, one of the last few hundred."""
        came = self.state.came
        before = bisect_right(came, position, key=itemgetter(0))
        return came[max(before - 1, 0)][1] if came else 0

    def came_before(self, at_us: int) -> list[tuple[int, int]]:
        """Where in the last few hundred steps the log had come that far, up to `at_us`: positions and times, both
        ascending."""
        return self.state.came[: bisect_right(self.state.came, at_us, key=itemgetter(1))]

    def epoch_of(self, at_us: int) -> int:
        return max(0, (at_us - self.state.genesis_us) // self.state.epoch_us) if self.state.epoch_us else 0

    def ticket_key(self, key_id_: bytes, at_us: int) -> bytes:
        """The public half of a key that might sign tickets at that time."""
        unknown = f"signed by the ticket key {key_id_.hex()}, which the log does not name"
        key = present(self.state.keys.get(("ticket", key_id_)), unknown)
        retired = key.retired_us is not None and key.retired_us <= at_us - RACE_US
        require(not retired, f"signed by the ticket key {key_id_.hex()}, which was retired")
        return key.public_key

    def log_keys(self) -> dict[bytes, bool]:
        """Every key that was ever allowed to sign checkpoints, and whether it was retired since."""
        keys = self.state.keys.items()
        return {k.public_key: k.retired_us is not None for (purpose, _), k in keys if purpose == "log"}

    def node(self, nid: UUID) -> Dated[NodeFacts]:
        node = self.state.nodes.get(nid)
        if (
            node is None
        ):  # here and elsewhere: a reason is made when there is something to tell, ids take long
            raise AuditFailure(f"node {nid} never joined")
        return node

    # --- folding

    def founded(self, event: CrewFounded) -> None:
        require(self.state.epoch_us == 0, "the crew is founded twice")
        require(0 < event.epoch_length_s <= EPOCH_MOST_S, "an epoch lasts from 1 second to 7 days")
        length_us = event.epoch_length_s * 1_000_000
        begins = event.genesis_us == event.at_us - event.at_us % length_us
        require(begins, "epoch 0 is not the one in which the crew was founded")
        self.state.genesis_us, self.state.epoch_us = event.genesis_us, event.epoch_length_s * 1_000_000

    def settings_changed(self, event: SettingsChanged) -> None:
        self.settings.change(Settings.recorded(event.settings), event.at_us)

    def key_added(self, event: KeyAdded) -> None:
        require(event.purpose in ("ticket", "log"), f"a key for {event.purpose!r}")
        require(
            len(event.public_key) == PUBLIC_KEY_BYTES and event.key_id == key_id(event.public_key),
            "the key's id is not its own",
        )
        require((event.purpose, event.key_id) not in self.state.keys, "the key was added before")
        self.state.keys[event.purpose, event.key_id] = Key(event.public_key)

    def key_retired(self, event: KeyRetired) -> None:
        key = present(
            self.state.keys.get((event.purpose, event.key_id)), "a key is retired that was never added"
        )
        require(key.retired_us is None, "the key was retired before")
        key.retired_us = event.at_us

    def invite_created(self, event: InviteCreated) -> None:
        require(event.originator_id == invite_id(event.code_sha256), "the invite's id is not its code's")
        require(event.originator_id not in self.state.invites, "the invite is created twice")
        self.state.invites[event.originator_id] = (event.friend_id, event.expires_us)

    def invite_used(self, event: InviteUsed) -> None:
        _, expires_us = present(self.state.invites.get(event.originator_id), "there is no such invite")
        require(event.originator_id not in self.state.used, "the invite was used before")
        require(event.at_us < expires_us, "the invite had expired")
        self.state.used[event.originator_id] = event.node_id

    def node_joined(self, event: NodeJoined) -> None:
        require(event.originator_id == node_id(event.public_key), "the node's id is not its key's")
        require(event.originator_id not in self.state.nodes, "the node joined before")
        invited = self.state.used.get(event.invite_id) == event.originator_id
        require(invited, "the node joined without an invite")
        require(
            self.state.invites[event.invite_id][0] == event.friend_id, "the node joined for another friend"
        )
        self.state.nodes[event.originator_id] = Dated(
            NodeFacts(
                event.public_key, event.friend_id, frozenset((event.prefix_commitment,)), suspended=False
            )
        )
        self.state.networks[event.originator_id] = {event.prefix_commitment: event.at_us}

    def node_moved(self, event: NodeMoved | NodeSeenAt) -> None:
        node, network = self.node(event.originator_id), event.prefix_commitment
        known = self.state.networks[event.originator_id] if isinstance(event, NodeSeenAt) else {}
        networks = self.state.networks[event.originator_id] = seen(known, network, event.at_us)
        node.change(replace(node.now, networks=frozenset(networks)), event.at_us)

    def node_stopped(self, event: NodeSuspended | NodeRetired) -> None:
        node = self.node(event.originator_id)
        node.change(replace(node.now, suspended=True), event.at_us)

    def node_reinstated(self, event: NodeReinstated) -> None:
        node = self.node(event.originator_id)
        node.change(replace(node.now, suspended=False), event.at_us)
