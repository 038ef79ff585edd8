"""Projection: one read model, built from the events in order.

Invariant: the rows after position n are a function of events 0..n alone, whatever the batches were. Every event type
is either handled or named as ignored; any other stops the projection, so nothing is skipped because a program is old.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import Connection, Table

from ledger import events as e
from ledger.event_codec import UnknownEventError
from ledger.events import Event
from projections.excerpts import Transfer
from projections.fold import ProjectionError, Rows, Tally
from projections.schema import Tables

Handler = Callable[[Any, int], None]  # of an excerpt of the event (projections.excerpts) and its position
Kinds = frozenset[type[Event]]

CREW: Kinds = frozenset({e.CrewFounded, e.SettingsChanged, e.KeyAdded, e.KeyRetired})
STREAM: Kinds = frozenset(
    {
        e.StreamRegistered,
        e.StreamKeyRotated,
        e.StreamWentLive,
        e.StreamWentOffline,
        e.StreamArchived,
        e.StreamMarkedStale,
    }
)
BROADCAST: Kinds = frozenset(
    {e.BroadcastStarted, e.SegmentsPublished, e.BroadcastInterrupted, e.BroadcastResumed, e.BroadcastEnded}
)
SESSION: Kinds = frozenset({e.SessionOpened, e.SessionObserved, e.TicketIssued})
DELIVERY: Kinds = frozenset({e.SegmentsServed})
INVITE: Kinds = frozenset({e.InviteCreated, e.InviteUsed})
NODE: Kinds = frozenset(
    {
        e.NodeJoined,
        e.NodeMoved,
        e.NodeSeenAt,
        e.NodeWentOnline,
        e.NodeWentOffline,
        e.NodeProbed,
        e.NodeSuspended,
        e.NodeReinstated,
        e.NodeRetired,
        e.ReceiptsRefused,
    }
)
TARIFF: Kinds = frozenset({e.TariffSet})
MONEY: Kinds = frozenset(
    {
        e.BudgetDeposited,
        e.BudgetWithdrawn,
        e.EpochSettled,
        e.HoldsReleased,
        e.PayoutLineReserved,
        e.PayoutLineConfirmed,
        e.PayoutLineFailed,
        e.PayoutLineReturned,
        e.DisputeOpened,
        e.DisputeUpheld,
        e.DisputeRejected,
        e.AdjustmentBooked,
    }
)
PAYOUT: Kinds = frozenset(
    {
        e.PayoutPlanned,
        e.PayoutProposed,
        e.PayoutApproved,
        e.PayoutCancelled,
        e.PayoutAttempted,
        e.PayoutResolved,
    }
)
DISPUTES: Kinds = frozenset({e.DisputeOpened, e.DisputeUpheld, e.DisputeRejected})
TREE: Kinds = frozenset({e.StateRecorded})
# Those above, and not whatever the ledger has: a kind that nobody has thought of here stops every projection.
EVERY: Kinds = CREW.union(STREAM, BROADCAST, SESSION, DELIVERY, INVITE, NODE, TARIFF, MONEY, PAYOUT, TREE)


class Projection:
    """Subclasses gather changes in `Rows` and `Tally` attributes, with the handlers given to `use`."""

    name: ClassVar[str]
    version: ClassVar[int]  # of the shape and meaning of the rows: change it, and they are built again
    ignores: ClassVar[Kinds]

    def __init__(self, tables: Tables) -> None:
        """Bind to a set of tables, the live ones or those of a rebuild; calls `use`."""
        raise NotImplementedError

    def use(self, folds: Iterable[Rows | Tally], handles: Mapping[type[Event], Handler]) -> None:
        self._folds = tuple(folds)
        self.handlers = dict(handles)

    @staticmethod
    def tables(tables: Tables) -> tuple[Table, ...]:
        """The tables this projection writes; nobody else does."""
        raise NotImplementedError

    @property
    def reads(self) -> Kinds:
        """Every event type it handles or ignores."""
        return self.ignores | self.handlers.keys()

    def flush(self, connection: Connection) -> None:
        """Write the gathered changes, in the caller's transaction."""
        for fold in self._folds:
            fold.flush(connection)

    def discard(self) -> None:
        """Forget the gathered changes: they were not committed."""
        for fold in self._folds:
            fold.discard()


class Unreadable(Exception):
    """One projection cannot take an event. The others can."""

    def __init__(self, projection: Projection, error: UnknownEventError | ProjectionError) -> None:
        super().__init__(f"{projection.name}: {error}")
        self.name = projection.name
        self.error = error


def check_balanced(transfer: Transfer, position: int) -> None:
    """Raises ProjectionError when the postings do not sum to zero."""
    if sum([amount_micro for _, amount_micro in transfer.postings]) != 0:
        raise ProjectionError(f"the postings of a transfer at position {position} do not sum to zero")


@lru_cache(4_096)
def friend_of(account: str) -> bytes | None:
    """The friend of `friend:<uuid>:<pot>`; None for every other account."""
    kind, _, rest = account.partition(":")
    return UUID(rest.partition(":")[0]).bytes if kind == "friend" else None
