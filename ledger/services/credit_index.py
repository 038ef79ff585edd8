"""CreditIndex: which credits an epoch settles, folded from the log and from nothing else.

Invariant: two folds of the same log prefix give the same credits for the same epoch and log range. Nothing is taken
out by asking; only an `EpochSettled` in the log marks credits as settled. So the hub that settles and the auditor who
checks use this one class, and a settlement that was not saved leaves no trace here.

Rules that the log alone decides:
- A credit is *late* when the newest segment its receipt claims was published (by PROGRAM-DATE-TIME) in an earlier
  epoch than the one that settles it.
- Claims for plain players count, per node, stream and UTC day of the ticket's issue, up to
  min(plain_sample_factor x segments the hub saw fetched at itself, segments the hub saw polled). The bound is
  cumulative: a claim that comes before its observation waits for it and is settled with it.
- A node is credited for at most what its line can have carried in an hour (or an epoch, when that is longer), by the
  time of publication of each claim's newest segment; what is beyond that is `over_rate` (ledger.node_rates).
- What was delivered to a spot check is left out: the claims for the tickets that its session had when it was named
  (NodeProbed), and what the hub observed of them, unless they were settled before that.
- Settings are those in force at the end of the settled range.
"""

import hashlib
import struct
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat, takewhile
from operator import attrgetter
from typing import Final
from uuid import UUID

import msgspec

from ledger.event_codec import decode
from ledger.events import (
    CrewFounded,
    EpochSettled,
    Event,
    NodeJoined,
    NodeProbed,
    SegmentsPublished,
    SegmentsServed,
    SessionObserved,
    SettingsChanged,
    TicketIssued,
)
from ledger.friends import Friends
from ledger.money import part_of
from ledger.node_rates import HOUR_US, Epochs, NodeRates, Part
from ledger.receipt import BITMAP_BITS, SIGNED_BYTES
from ledger.services.credit_heads import Issued, Probed, Row, read
from ledger.settings import Settings
from ledger.settlement import Credit
from ledger.ticket import BODY_BYTES, DOMAIN, MAX_SEGMENTS, VERSION, Ticket, ViewerClass
from ledger.verdict import Verdict

DAY_US: Final = 86_400 * 1_000_000
# Of a receipt's body (ledger.receipt) the ticket hash, base sequence and bitmap. Whoever judged it has read all of it.
_CLAIMED: Final = struct.Struct(">x32s4xQ64s")
# Of a ticket's body (ledger.ticket): version, class, session, stream, rendition, first, last, settle_by_s.
_SCOPE: Final = struct.Struct(">BB24x16s16s16s64xQQQ28x")
assert _SCOPE.size == BODY_BYTES

_CLASSES: Final = frozenset(map(int, ViewerClass))
_ACCEPTED: Final = Verdict.ACCEPTED.value
_POSITION: Final = attrgetter("position")


class BrokenLogError(ValueError):
    """The log credits something that it does not contain. Names the position."""


_Marks = list[tuple[int, int]]  # of a rendition: (last sequence, epoch), ascending


class _Issued(msgspec.Struct, gc=False):
    """A ticket of a signing viewer. There may be a million of them, until the last of their receipts is settled: what
    many have in common is one object."""

    marks: _Marks
    settle_by_us: int
    pool: "_PoolKey"


@dataclass(slots=True)
class _Ticket:
    """A ticket of a plain player."""

    session_id: UUID
    marks: _Marks
    first: int
    last: int
    settle_by_us: int
    pool: "_PoolKey"
    polled: int = 0  # bit i: segment first + i was listed to the player
    fetched: int = 0  # bit i: the hub saw it fetched
    probed: int | None = None  # position where its session was named a spot check's

    def is_probe(self, log_to: int) -> bool:
        """As far as the log before `log_to` tells."""
        return self.probed is not None and self.probed < log_to


@dataclass(frozen=True, slots=True, eq=False)
class _PoolKey:
    """One object per key, compared by identity: hashing three UUIDs for each receipt would be most of the fold."""

    stream_id: UUID
    node_id: UUID
    friend_id: UUID
    day: int


class _Claim(msgspec.Struct, frozen=True, gc=False):
    """Accepted units of one receipt, or of an event's for one pool. There may be millions: they hold no cycle and the
    collector need not look."""

    position: int
    epoch: int  # of the event that states it
    receipt: int  # which of the event's; 0 where it is several
    pool: _PoolKey
    plain: bool
    published_epoch: int
    units: int
    credited_bytes: int


class _PlainClaim(_Claim, frozen=True, gc=False):
    ticket: _Ticket


class _Seen(msgspec.Struct, frozen=True, gc=False):
    """What an observation newly says about one ticket."""

    position: int
    epoch: int
    ticket: _Ticket
    polled: int
    fetched: int


@dataclass(frozen=True, slots=True)
class Source:
    """What a credit comes from: one receipt in the log, or the part of it that is settled now."""

    position: int
    receipt: int  # which of the event's, from 0
    late: bool
    units: int
    credited_bytes: int


@dataclass(slots=True)
class _Pool:
    """Plain claims of one node for one stream and day: what was seen, what is paid, what waits (oldest first)."""

    polled: int = 0
    fetched: int = 0
    paid: int = 0
    waiting: list[_PlainClaim] = field(default_factory=list)


class CreditIndex:
    def __init__(self, *, each_receipt: bool = False) -> None:
        """`each_receipt`: remember what signing viewers signed receipt by receipt, which only `sources` asks for."""
        self._each_receipt = each_receipt
        self.position = 0  # the next log position to apply
        self.next_epoch = 0
        self.settled_to = 0
        self._genesis_us = 0
        self._epoch_us = 0  # 0 until the crew is founded
        self._friends = Friends()
        self._tickets: dict[bytes, _Issued | _Ticket] = {}  # by hash
        self._plain_tickets: dict[UUID, list[_Ticket]] = defaultdict(
            list
        )  # session -> its tickets, oldest first
        self._published: dict[bytes, _Marks] = {}  # by the rendition's id
        self._settings: list[tuple[int, Settings]] = [(0, Settings())]  # (position, from there on)
        self._rates = NodeRates()
        self._runs: list[tuple[int, int]] = []  # (position, epoch) wherever the epoch of events changes
        # Not settled yet, by position. What plain players claim is bounded by what was seen, so their order counts.
        self._signed: list[_Claim] = []
        self._plain: list[_PlainClaim | _Seen] = []
        self._pools: dict[_PoolKey, _Pool] = {}
        self._pool_keys: dict[tuple[bytes, bytes, int], _PoolKey] = {}  # by stream, node, day

    # --- folding

    def take(self, rows: Sequence[Row]) -> None:
        """Fold the next rows of the log, as `apply` of each event would. Raises UnknownEventError, BrokenLogError; the
        rows before that one are folded then.
        """
        measured = self._rates.measured
        start_us, end_us = 0, 0  # of the epoch of the event before; nothing is in that of none
        for row, head in zip(rows, read(rows) or repeat(None), strict=False):
            if head is None:
                self.apply(self.position, decode(row.state, row.topic))
                start_us, end_us = 0, 0
                continue
            at_us = head.at_us
            if not start_us <= at_us < end_us:
                start_us, end_us = self._epoch_us_of(self._passed(self.position, at_us))
            if isinstance(head, Issued):
                self._apply_ticket(self.position, at_us, head.node_id, head.ticket)
            elif isinstance(head, Probed):
                measured(
                    self.position,
                    head.originator_id,
                    at_us,
                    head.outcome,
                    head.latency_us,
                    head.segment_bytes,
                )
                if head.session_id is not None:
                    self._spot_checked(self.position, UUID(bytes=head.session_id))
            self.position += 1

    def apply(self, position: int, event: Event) -> None:
        """Fold the event at `position`; positions must follow each other from 0."""
        if position != self.position:
            raise ValueError(f"position {position} does not follow; {self.position} does")
        if isinstance(event, CrewFounded):
            self._genesis_us, self._epoch_us = event.genesis_us, event.epoch_length_s * 1_000_000
        epoch = self._passed(position, event.at_us)
        match event:
            case SegmentsServed():
                self._apply_served(position, epoch, event)
            case TicketIssued():
                self._apply_ticket(position, event.at_us, event.node_id.bytes, event.ticket)
            case SessionObserved():
                self._apply_observed(position, epoch, event)
            case SegmentsPublished():
                self._apply_published(event)
            case NodeJoined():
                self._friends.joined(event.originator_id, event.friend_id)
            case SettingsChanged():
                self._settings.append((position, Settings.recorded(event.settings)))
            case NodeProbed():
                self._rates.probed(position, event)
                if event.session_id is not None:
                    self._spot_checked(position, event.session_id)
            case EpochSettled() if event.page == event.pages:
                self._apply_settled(event)
            case _:
                pass
        self.position = position + 1

    def _passed(self, position: int, at_us: int) -> int:
        """The epoch of an event."""
        epoch = self.epoch_of(at_us)
        if not self._runs or self._runs[-1][1] != epoch:
            self._runs.append((position, epoch))
        return epoch

    def _spot_checked(self, position: int, session_id: UUID) -> None:
        """The tickets that the session has by now are a spot check's."""
        for ticket in self._plain_tickets.get(session_id, ()):
            if ticket.probed is None:
                ticket.probed = position

    def _apply_ticket(self, position: int, at_us: int, node: bytes, signed: bytes) -> None:
        body = signed[:BODY_BYTES]
        if len(body) != BODY_BYTES:
            Ticket.decode_body(body)  # raises
        version, kind, session, stream, rendition, first, last, settle_by_s = _SCOPE.unpack(body)
        if version != VERSION or kind not in _CLASSES or not first <= last < first + MAX_SEGMENTS:
            Ticket.decode_body(body)  # raises
        pool = self._pool_keys.get((stream, node, at_us // DAY_US))
        if pool is None:
            pool = self._new_pool(position, stream, node, at_us // DAY_US)
        marks, settle_by_us = self._marks(rendition), settle_by_s * 1_000_000
        ticket_hash = hashlib.sha256(DOMAIN + body).digest()
        if kind != ViewerClass.PLAIN:
            self._tickets[ticket_hash] = _Issued(marks, settle_by_us, pool)
            return
        known = _Ticket(UUID(bytes=session), marks, first, last, settle_by_us, pool)
        self._tickets[ticket_hash] = known
        self._plain_tickets[known.session_id].append(known)

    def _new_pool(self, position: int, stream: bytes, node: bytes, day: int) -> _PoolKey:
        node_id = UUID(bytes=node)
        friend_id = self._friends.of(node_id)
        if friend_id is None:
            raise BrokenLogError(f"position {position}: a ticket for a node that never joined")
        pool = self._pool_keys[stream, node, day] = _PoolKey(UUID(bytes=stream), node_id, friend_id, day)
        return pool

    def _apply_served(self, position: int, epoch: int, event: SegmentsServed) -> None:
        signed: dict[tuple[_PoolKey, int, int], list[int]] = {}  # all of the event's or none
        plain: list[_PlainClaim] = []
        for i, judged in enumerate(event.judged):
            if judged.verdict != _ACCEPTED:
                continue
            ticket_hash, base, bitmap = _CLAIMED.unpack_from(event.receipts, i * SIGNED_BYTES)
            ticket = self._tickets.get(ticket_hash)
            if ticket is None:
                raise BrokenLogError(
                    f"position {position}: receipt {i} credits a ticket that was never issued"
                )
            newest = base + int.from_bytes(bitmap, "little").bit_length() - 1
            published = _epoch_published(ticket.marks, newest, epoch)
            units, size = judged.units, judged.credited_bytes
            if isinstance(ticket, _Ticket):
                pool = ticket.pool
                plain.append(_PlainClaim(position, epoch, i, pool, True, published, units, size, ticket))
                continue
            total = signed.setdefault((ticket.pool, published, i if self._each_receipt else 0), [0, 0])
            total[0] += units
            total[1] += size
        self._signed += [
            _Claim(position, epoch, i, pool, False, published, *total)
            for (pool, published, i), total in signed.items()
        ]
        self._plain += plain

    def _apply_observed(self, position: int, epoch: int, event: SessionObserved) -> None:
        """Each sequence counts once, for the newest ticket of the session that covers it."""
        tickets = [
            t
            for t in reversed(self._plain_tickets.get(event.session_id, []))
            if t.first - BITMAP_BITS < event.base_sequence <= t.last
        ]
        polled = int.from_bytes(event.polled, "little")
        fetched = int.from_bytes(event.fetched_at_hub, "little")
        for t in tickets:
            polled &= ~_shift(t.polled, t.first - event.base_sequence)
            fetched &= ~_shift(t.fetched, t.first - event.base_sequence)
        for t in tickets:
            offset = t.first - event.base_sequence
            window = _shift((1 << (t.last - t.first + 1)) - 1, offset)
            seen, at_hub = (polled & window).bit_count(), (fetched & window).bit_count()
            t.polled |= _shift(polled & window, -offset)
            t.fetched |= _shift(fetched & window, -offset)
            polled, fetched = polled & ~window, fetched & ~window
            if seen or at_hub:
                self._plain.append(_Seen(position, epoch, t, seen, at_hub))

    def _apply_published(self, event: SegmentsPublished) -> None:
        marks = self._marks(event.rendition_id.bytes)
        for segment in event.segments:
            epoch = self.epoch_of(segment.program_us)
            if marks and epoch <= marks[-1][1]:
                marks[-1] = (segment.sequence, marks[-1][1])
            else:
                marks.append((segment.sequence, epoch))

    def _apply_settled(self, event: EpochSettled) -> None:
        claims, touched = self._claims(event.log_to)
        parts, nodes = self._parts(claims, event.log_to)
        self._rates.settled(parts, nodes, self._epochs)
        self._pools |= touched
        del self._signed[: bisect_left(self._signed, event.log_to, key=_POSITION)]
        del self._plain[: bisect_left(self._plain, event.log_to, key=_POSITION)]
        later = [s for s in self._settings if s[0] >= event.log_to]
        self._settings = [(0, self.settings(event.log_to)), *later]
        first_run = max(0, bisect_left(self._runs, (event.log_to + 1, -1)) - 1)
        self._runs = self._runs[first_run:]
        self.next_epoch, self.settled_to = event.epoch + 1, event.log_to
        start_us = self._start_us(event.epoch)
        self._forget_before(start_us - DAY_US)
        # No ticket is issued in an epoch before this one, and nothing was published before a ticket for it was issued,
        # but for a few segments.
        days = [start_us // DAY_US, *(pool.day for pool in self._pool_keys.values())]
        self._rates.forget_before(min(days) * DAY_US - HOUR_US, self._epochs)

    def _forget_before(self, time_us: int) -> None:
        """Drop tickets that can bring no more receipts, and with the last ticket of a day its pools."""
        over = [h for h, t in self._tickets.items() if t.settle_by_us < time_us]
        if not over:
            return
        for ticket_hash in over:
            ticket = self._tickets.pop(ticket_hash)
            if isinstance(ticket, _Ticket):
                left = [t for t in self._plain_tickets.get(ticket.session_id, []) if t is not ticket]
                if left:
                    self._plain_tickets[ticket.session_id] = left
                else:
                    self._plain_tickets.pop(ticket.session_id, None)
        live = {t.pool for t in self._tickets.values()}
        live.update(fact.pool for fact in self._signed)
        live.update(fact.ticket.pool for fact in self._plain)
        self._pool_keys = {k: pool for k, pool in self._pool_keys.items() if pool in live}
        self._pools = {key: pool for key, pool in self._pools.items() if key in live}

    # --- asking

    def epoch_of(self, at_us: int) -> int:
        return max(0, (at_us - self._genesis_us) // self._epoch_us) if self._epoch_us else 0

    def ends_us(self, epoch: int) -> int:
        """When the epoch is over."""
        return self._start_us(epoch + 1)

    def due(self, at_us: int) -> tuple[int, int] | None:
        """(epoch, log_to) of the settlement to make now, or None.

        Epochs that are over and have nothing to settle are passed over: the next one with a credit is taken, or the
        last that is over. `log_to` is the first position whose event is of a later epoch, else the end of the log.
        An event from the future (a clock set wrong) ends no epoch.
        """
        now = self.epoch_of(at_us)
        if not self._epoch_us or now <= self.next_epoch:
            return None
        epoch = now - 1
        oldest = min(
            (facts[0] for facts in (self._signed, self._plain) if facts), key=_POSITION, default=None
        )
        if oldest is not None:
            epoch = min(max(oldest.epoch, self.next_epoch), epoch)
        starts = [start for start, _ in self._runs[1:]] + [self.position]
        for (start, of), end in zip(self._runs, starts, strict=True):
            first = max(start, self.settled_to)
            if first < end and epoch < of <= now:
                return epoch, first
        return epoch, self.position

    def credits(self, epoch: int, log_to: int) -> list[Credit]:
        """What a settlement of `epoch` that reads the log up to `log_to` has to pay. Changes nothing.

        There is one for each node, stream, kind, day of issue and epoch of publication; `settle` adds them up.
        """
        claims, _ = self._claims(log_to)
        return [
            Credit(
                stream_id=part.pool.stream_id,
                node_id=part.pool.node_id,
                friend_id=part.pool.friend_id,
                plain=part.plain,
                late=part.published < epoch,
                units=part.units,
                credited_bytes=part.credited_bytes,
                over_rate=part.over_rate,
                published=part.published,
            )
            for part in self._parts(claims, log_to)[0]
        ]

    def sources(
        self,
        epoch: int,
        log_to: int,
        *,
        stream_id: UUID,
        node_id: UUID,
        plain: bool,
        published: Callable[[int], bool],
    ) -> list[Source] | None:
        """Where the credits of one node come from, in the order of the log; of segments that were `published` in which
        epochs.

        None when more was claimed than its line can have carried: then no receipt is paid in full.
        Raises ValueError when this index does not remember each receipt.
        """
        if not self._each_receipt:
            raise ValueError("this index does not know each receipt")
        claims, _ = self._claims(log_to)
        if any(part.over_rate and part.pool.node_id == node_id for part in self._parts(claims, log_to)[0]):
            return None
        return sorted(
            (
                Source(c.position, c.receipt, c.published_epoch < epoch, c.units, c.credited_bytes)
                for c in claims
                if c.plain is plain
                and c.pool.node_id == node_id
                and c.pool.stream_id == stream_id
                and published(c.published_epoch)
            ),
            key=attrgetter("position", "receipt"),
        )

    def spot_checks(
        self,
        epoch: int,
        log_to: int,
        *,
        stream_id: UUID,
        node_id: UUID,
        published: Callable[[int], bool],
    ) -> list[Source]:
        """What a settlement leaves out, of one node: newly claimed for players that turned out to be the hub's."""
        return [
            Source(c.position, c.receipt, c.published_epoch < epoch, c.units, c.credited_bytes)
            for c in takewhile(lambda fact: fact.position < log_to, self._plain)
            if isinstance(c, _PlainClaim)
            and c.ticket.is_probe(log_to)
            and (c.pool.stream_id, c.pool.node_id) == (stream_id, node_id)
            and published(c.published_epoch)
        ]

    def settings(self, log_to: int) -> Settings:
        """Those in force at the end of the log before `log_to`."""
        return [s for position, s in self._settings if position < log_to or position == 0][-1]

    def _claims(self, log_to: int) -> tuple[list[_Claim], dict[_PoolKey, _Pool]]:
        """All that a settlement of the log up to `log_to` settles, one receipt (or part of one) each, and the pools as
        they are after that."""
        claims, touched = self._close(log_to)
        return [*takewhile(lambda claim: claim.position < log_to, self._signed), *claims], touched

    def _parts(self, claims: list[_Claim], log_to: int) -> tuple[list[Part[_PoolKey]], dict[_PoolKey, UUID]]:
        """The claims added up, and split where they are more than a line can have carried; the node of each pool."""
        totals: dict[tuple[_PoolKey, bool, int], list[int]] = defaultdict(lambda: [0, 0])
        for claim in claims:
            total = totals[claim.pool, claim.plain, claim.published_epoch]
            total[0] += claim.units
            total[1] += claim.credited_bytes
        nodes = {pool: pool.node_id for pool, _, _ in totals}
        return self._rates.parts(totals, nodes, log_to, self.settings(log_to), self._epochs), nodes

    @property
    def _epochs(self) -> Epochs:
        return Epochs(self._genesis_us, self._epoch_us)

    def _close(self, log_to: int) -> tuple[list[_Claim], dict[_PoolKey, _Pool]]:
        """The plain claims that may be paid, and the pools as they are after that."""
        touched: dict[_PoolKey, _Pool] = {}
        for fact in self._plain:
            if fact.position >= log_to:
                break
            if fact.ticket.is_probe(log_to):
                continue
            key = fact.ticket.pool
            pool = touched.get(key)
            if pool is None:
                known = self._pools.get(key, _Pool())
                waiting = [claim for claim in known.waiting if not claim.ticket.is_probe(log_to)]
                pool = touched[key] = replace(known, waiting=waiting)
            if isinstance(fact, _PlainClaim):
                pool.waiting.append(fact)
            else:
                pool.polled += fact.polled
                pool.fetched += fact.fetched
        factor = self.settings(log_to).plain_sample_factor
        return [claim for pool in touched.values() for claim in _payable(pool, factor)], touched

    def _epoch_us_of(self, epoch: int) -> tuple[int, int]:
        """Times that are in an epoch: from, and up to."""
        start_us = self._start_us(epoch)
        return start_us, start_us + self._epoch_us

    def _start_us(self, epoch: int) -> int:
        return self._genesis_us + epoch * self._epoch_us

    def _marks(self, rendition: bytes) -> _Marks:
        return self._published.setdefault(rendition, [])


def _epoch_published(marks: _Marks, sequence: int, otherwise: int) -> int:
    i = bisect_left(marks, (sequence, -1))
    return marks[i][1] if i < len(marks) else otherwise


def _shift(bits: int, by: int) -> int:
    return bits << by if by >= 0 else bits >> -by


def _payable(pool: _Pool, factor: int) -> Iterator[_Claim]:
    """Take from the waiting claims, oldest first, what the observations allow."""
    allowed = min(factor * pool.fetched, pool.polled) - pool.paid
    change = msgspec.structs.replace
    while pool.waiting and allowed > 0:
        claim = pool.waiting[0]
        units = min(claim.units, allowed)
        taken = change(claim, units=units, credited_bytes=part_of(claim.credited_bytes, units, claim.units))
        if units == claim.units:
            pool.waiting.pop(0)
        else:
            rest = claim.credited_bytes - taken.credited_bytes
            pool.waiting[0] = change(claim, units=claim.units - units, credited_bytes=rest)
        pool.paid += units
        allowed -= units
        yield taken
