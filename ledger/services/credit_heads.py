"""What the fold of credits reads of each event of the log: nearly always little of it.

Invariant: what `read` gives of a row is what `event_codec.decode` would give of it, as far as the fields here go. An
event that the fold has to see whole is not read here, and of an event that it does not look at only the time is.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Protocol, Union

import msgspec

from ledger import events as e
from ledger.event_codec import EVENT_TYPES, UPCASTERS
from ledger.events import Event

# What `CreditIndex.apply` looks at; an old version of one of them is seen whole.
FOLDED: Final[frozenset[type[Event]]] = frozenset(
    {
        e.CrewFounded,
        e.EpochSettled,
        e.NodeJoined,
        e.NodeProbed,
        e.SegmentsPublished,
        e.SegmentsServed,
        e.SessionObserved,
        e.SettingsChanged,
        e.TicketIssued,
    }
)

Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]  # of a UUID


class Row(Protocol):
    """A row of the log."""

    @property
    def topic(self) -> str: ...
    @property
    def state(self) -> bytes: ...


class Head(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", gc=False):
    """Of an event that the fold does not look at."""

    at_us: int


class Probed(Head, frozen=True, tag=str(e.NodeProbed.__struct_config__.tag)):
    originator_id: Id
    outcome: str
    latency_us: int
    segment_bytes: int
    session_id: Id | None


class Issued(Head, frozen=True, tag=str(e.TicketIssued.__struct_config__.tag)):
    node_id: Id
    ticket: bytes


READ: Final[frozenset[type[Event]]] = frozenset({e.NodeProbed, e.TicketIssued})  # of what is folded


def _heads() -> dict[str, type[Head]]:
    whole = FOLDED - READ | UPCASTERS.keys()
    heads: dict[str, type[Head]] = {str(c.__struct_config__.tag): c for c in (Probed, Issued)}
    for tag, kind in EVENT_TYPES.items():
        if kind not in whole and tag not in heads:
            head: Any = msgspec.defstruct("Other", [], bases=(Head,), tag=tag, frozen=True, gc=False)
            heads[tag] = head
    return heads


_HEADS: Final = _heads()
_wanted: Any = Union[tuple(_HEADS.values())]  # noqa: UP007  # they are known now only
_decoder: Final[msgspec.msgpack.Decoder[list[Head]]] = msgspec.msgpack.Decoder(list[_wanted])


def read(rows: Sequence[Row]) -> list[Head | None] | None:
    """The head of each, None for one to be seen whole; None in place of them all when `ledger.events` has to look
    at each: among the bytes is what is unknown, or is not what its row says.
    """
    kinds = [_HEADS.get(row.topic) for row in rows]
    whole = None in kinds
    states = (
        [row.state for row, kind in zip(rows, kinds, strict=True) if kind]
        if whole
        else [r.state for r in rows]
    )
    try:
        read: list[Head] = _decoder.decode(b"\xdd" + len(states).to_bytes(4) + b"".join(states))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    of_each = iter(read)
    heads = [next(of_each) if kind else None for kind in kinds] if whole else list[Head | None](read)
    return heads if [type(head) if head else None for head in heads] == kinds else None
