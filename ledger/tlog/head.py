"""Head: what a publisher knows of the events it has taken in.

Invariant: after the rows 0 .. n-1, `tiles` is their tree, `balances` the sums of their postings, and `covered`
and `last_fact` say whether there is anything that no state leaf covers. Only events that can matter to it are decoded;
of the others it is checked that their bytes are of the type that their row names.
"""

from dataclasses import dataclass, field
from typing import Final, Protocol

from ledger.aggregates.tree import Tree
from ledger.event_codec import EVENT_TYPES, UnknownEventError, check_tag, decode
from ledger.events import KeyAdded, StateRecorded, transfers_of
from ledger.tlog.tiles import TileBuilder

_DECODED: Final = frozenset(
    tag
    for tag, cls in EVENT_TYPES.items()
    if cls in (StateRecorded, KeyAdded) or {"transfer", "transfers"} & set(cls.__struct_fields__)
)


class Row(Protocol):
    """One event of the ledger, as it is stored."""

    @property
    def position(self) -> int: ...
    @property
    def topic(self) -> str: ...
    @property
    def state(self) -> bytes: ...


@dataclass
class Head:
    tiles: TileBuilder
    tree: Tree
    balances: dict[str, int] = field(default_factory=dict)
    last_fact: int = -1  # position of the last event that is not a state leaf
    covered: int = 0  # events that the last state leaf covers
    known: int = 0  # `balances` had taken in the events before this position when the tree was taken up
    log_keys: list[bytes] = field(default_factory=list)

    def take(self, row: Row) -> None:
        """Everything but the tiles. Raises UnknownEventError, with the position."""
        try:
            if row.topic not in _DECODED:
                check_tag(row.state, row.topic)
                self.last_fact = row.position
                return
            event = decode(row.state, row.topic)
        except UnknownEventError as e:
            raise UnknownEventError(f"position {row.position}: {e}") from e
        if isinstance(event, StateRecorded):
            self.covered = event.position
            return
        self.last_fact = row.position
        if isinstance(event, KeyAdded) and event.purpose == "log":
            self.log_keys.append(event.public_key)
        if row.position < self.known:
            return
        for transfer in transfers_of(event):
            for posting in transfer.postings:
                self.balances[posting.account] = self.balances.get(posting.account, 0) + posting.amount_micro
