"""What each epoch has to pay, folded from the log a second time: as ledger.services.credit_index, in bounded memory.

Invariant: `due` and `credits` give what `CreditIndex` gives on the same log; tests hold the two together. What is not
settled yet is a row of 57 bytes for each event (of signing viewers) or receipt (of plain players), on disk but for the
newest.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
import numpy as np
import numpy.typing as npt

from ledger import claims as told
from ledger.audit import tickets as t
from ledger.audit.columns import Columns, Served
from ledger.audit.crew import failing_at
from ledger.audit.facts import Broadcast, struct_table
from ledger.audit.store import Store
from ledger.events import (
    CrewFounded,
    EpochSettled,
    NodeProbed,
    SegmentsPublished,
    SessionObserved,
    SettingsChanged,
)
from ledger.money import part_of
from ledger.node_rates import HOUR_US, Epochs, NodeRates, Part
from ledger.receipt import BITMAP_BITS
from ledger.services.credit_index import DAY_US, BrokenLogError
from ledger.settings import Settings
from ledger.settlement import Credit

STEP_US: Final = 10_000_000  # times of what was stated are kept this exactly
ROWS: Final = 4_096  # facts in one row of the store
SIGNED, PLAIN, SEEN = range(3)
_FEW: Final = 1 << 54  # bytes; 256 receipts of so many are fewer than 2^63
_FACT: Final = np.dtype(
    [
        ("position", "<i8"),
        ("epoch", "<i8"),  # of the event that states it
        ("pool", "<i8"),
        ("published", "<i8"),  # epoch of the newest segment claimed
        ("units", "<i8"),  # or segments polled
        ("size", "<u8"),  # credited bytes, or segments fetched at the hub
        ("ticket", "<i8"),  # of a plain player: where it was issued
        ("kind", "u1"),
    ]
)
_Rows = npt.NDArray[np.void]


class Fact(NamedTuple):
    position: int
    epoch: int
    pool: int
    published: int
    units: int
    size: int
    ticket: int
    kind: int


class Due(NamedTuple):
    """A newly credited receipt."""

    receipt: int  # which of the event's
    pool: int
    plain: bool
    issued: int  # position of the ticket
    settle_by_us: int
    newest: int  # sequence of the newest segment it claims
    units: int
    credited_bytes: int


class Pool(msgspec.Struct, array_like=True):
    """What is added up together: the tickets of one node, for one stream, issued on one UTC day."""

    stream_id: UUID
    node_id: UUID
    friend_id: UUID
    day: int
    settle_by_us: int  # the latest of its tickets'


class _Tally(msgspec.Struct, array_like=True):
    """Plain claims of a pool: what was seen and paid, and the claims that wait, oldest first."""

    polled: int = 0
    fetched: int = 0
    paid: int = 0
    waiting: list[tuple[int, int, int, int]] = []  # published epoch, units, bytes, ticket


class _Player(msgspec.Struct, array_like=True):
    """A ticket of a plain player. Bit i of the bitmaps: segment first + i."""

    first: int
    last: int
    settle_by_us: int
    pool: int
    position: int
    polled: bytes = b""  # listed to the player
    fetched: bytes = b""  # the hub saw it fetched


class State(msgspec.Struct):
    genesis_us: int = 0
    epoch_us: int = 0  # 0 until the crew is founded
    next_epoch: int = 0
    settled_to: int = 0
    settings: list[tuple[int, Settings]] = []  # (position, from there on)
    rates: NodeRates = msgspec.field(default_factory=NodeRates)
    probes: dict[int, tuple[int, int]] = {}  # ticket -> where its session was named a spot check's; its pool
    runs: list[tuple[int, int]] = []  # (position, epoch) wherever the epoch of events changes
    pools: dict[int, Pool] = {}
    made: int = 0  # pools ever
    settle_by_s: set[int] = set()  # of the tickets that may bring receipts
    forgotten_at: int = -1  # position of the settlement at which tickets were forgotten last,
    forgotten_us: int = 0  # those to be settled before this
    chunks: tuple[int, int] = (0, 0)  # facts in the store: rows [from, to)
    taken: int = 0  # facts of the first of them that are settled
    newest: bytes = b""  # facts that are not in the store yet
    # (position, when) of events that may state facts, each the last before which all are older: both ascend.
    stated: list[tuple[int, int]] = []


class Dues:
    def __init__(self, store: Store, state: State | None = None) -> None:
        self.state = state or State(settings=[(0, Settings())])
        self._rows = store.table(b"f", bytes, bytes, 4)
        self._players = struct_table(store, b"o", list[_Player], 4_096)
        self._published = struct_table(store, b"q", list[tuple[int, int]], 256)  # by rendition
        self._tallies = struct_table(store, b"w", _Tally, 1_024)
        self._pool_of = {(p.stream_id, p.node_id, p.day): n for n, p in self.state.pools.items()}
        self._newest: list[Fact] = [Fact(*row) for row in np.frombuffer(self.state.newest, _FACT).tolist()]
        self._draft: tuple[int, int, dict[int, _Tally], list[Part[int]]] | None = None

    def saved(self) -> State:
        self.state.newest = np.array(self._newest, _FACT).tobytes()
        return self.state

    # --- folding

    def founded(self, event: CrewFounded) -> None:
        self.state.genesis_us, self.state.epoch_us = event.genesis_us, event.epoch_length_s * 1_000_000

    def passed(self, position: int, at_us: int) -> None:
        """After each event: epochs are told by the events' times."""
        epoch, runs = self.epoch_of(at_us), self.state.runs
        if not runs or runs[-1][1] != epoch:
            runs.append((position, epoch))

    def states(self, position: int, at_us: int) -> None:
        """The event there may bring facts, and says that it is of that time."""
        stated, step = self.state.stated, at_us // STEP_US * STEP_US
        while stated and stated[-1][1] >= step:
            stated.pop()
        stated.append((position, step))

    def stated_before(self, at_us: int) -> int:
        """The position of the last event that may bring facts and is older than that; -1 when there is none."""
        before = bisect_left(self.state.stated, at_us // STEP_US * STEP_US, key=itemgetter(1))
        return self.state.stated[before - 1][0] if before else -1

    def delivered_in(self, stream_id: UUID, epoch: int) -> bool:
        """Whether something is to be paid, and not settled yet, that was published and judged in the epoch or later."""
        pools = [number for number, pool in self.state.pools.items() if pool.stream_id == stream_id]
        for rows in self._facts():
            later = (rows["published"] >= epoch) & (rows["epoch"] >= epoch) & (rows["kind"] != SEEN)
            if (later & np.isin(rows["pool"], pools)).any():
                return True
        return False

    def unsettled_bytes(self) -> int:
        """Credited, and in no settlement yet."""
        return sum(int(rows["size"][rows["kind"] != SEEN].sum(dtype=object) or 0) for rows in self._facts())

    def in_this_epoch(self, times_us: list[int]) -> bool:
        """Whether events of these times begin no other epoch than the last event's."""
        runs = self.state.runs
        return bool(runs) and {self.epoch_of(min(times_us)), self.epoch_of(max(times_us))} == {runs[-1][1]}

    def settings_changed(self, position: int, event: SettingsChanged) -> None:
        self.state.settings.append((position, Settings.recorded(event.settings)))

    def probed(self, position: int, event: NodeProbed) -> None:
        """The tickets that its session has by now are a spot check's."""
        self.state.rates.probed(position, event)
        if event.session_id is not None:
            for p in self._known_players(event.session_id.bytes):
                if p.position < position:
                    self.state.probes.setdefault(p.position, (position, p.pool))

    def issued(self, *, stream_id: UUID, node_id: UUID, friend_id: UUID, at_us: int, settle_by_s: int) -> int:
        """A ticket, signed or plain. Returns its pool."""
        state, key = self.state, (stream_id, node_id, at_us // DAY_US)
        number = self._pool_of.get(key)
        if number is None:
            number = self._pool_of[key] = state.made
            state.pools[number] = Pool(stream_id, node_id, friend_id, key[2], 0)
            state.made += 1
        pool = state.pools[number]
        pool.settle_by_us = max(pool.settle_by_us, settle_by_s * 1_000_000)
        state.settle_by_s.add(settle_by_s)
        return number

    def issued_plain(
        self, session: bytes, *, first: int, last: int, settle_by_s: int, pool: int, position: int
    ) -> None:
        known = self._players.get(session) or []
        known.append(_Player(first, last, settle_by_s * 1_000_000, pool, position))
        self._players.put(session, known)

    def served(self, position: int, at_us: int, rendition: bytes, dues: Sequence[Due]) -> list[Fact]:
        """What the credited receipts of one event say; to be added in the order of the log."""
        facts = []
        epoch = self.epoch_of(at_us)
        marks = self._published.get(rendition) or []
        totals: dict[tuple[int, int], list[int]] = {}
        for due in dues:
            if self._forgotten(due.issued, due.settle_by_us):
                raise BrokenLogError(
                    f"position {position}: receipt {due.receipt} credits a ticket that was never issued"
                )
            i = bisect_left(marks, (due.newest, -1))
            published = marks[i][1] if i < len(marks) else epoch
            if due.plain:
                counts = (due.units, due.credited_bytes)
                facts.append(Fact(position, epoch, due.pool, published, *counts, due.issued, PLAIN))
                continue
            total = totals.setdefault((due.pool, published), [0, 0])
            total[0] += due.units
            total[1] += due.credited_bytes
        for (pool, published), (units, size) in totals.items():
            if size >> 63:
                raise BrokenLogError(f"position {position}: credits of more than 2^63 bytes")
            facts.append(Fact(position, epoch, pool, published, units, size, -1, SIGNED))
        return facts

    def served_columns(
        self, served: Sequence[Served], broadcast: Broadcast, found: Columns, accepted: npt.NDArray[np.bool_]
    ) -> list[Fact]:
        """As `served`, for several events at once: the receipts that were accepted."""
        facts = []
        _, tickets, claims, _ = found
        marks = self._published.get(broadcast.rendition_id.bytes) or []
        newest = claims[told.END] - 1
        # Nearly always one pool for an event, and segments of one epoch.
        usual = accepted & (tickets[t.PLAIN] == 0) & (tickets[t.ISSUED] >= self.state.forgotten_at)
        if len(marks) > 1:
            usual &= newest > marks[-2][0]
        pools, units, sizes = tickets[t.POOL], claims[told.UNITS], claims[told.SIZE]
        ends = list(accumulate([len(s.event.indices) for s in served]))
        starts = np.array([0, *ends[:-1]])
        one_pool = np.minimum.reduceat(pools, starts) == np.maximum.reduceat(pools, starts)
        simple = one_pool & np.logical_and.reduceat(usual, starts)
        simple &= np.maximum.reduceat(sizes, starts) < _FEW
        if not marks or marks[-1][0] < broadcast.manifest.next - 1:
            simple[:] = False
        all_pools, all_units = pools[starts].tolist(), np.add.reduceat(units, starts).tolist()
        all_sizes = np.add.reduceat(sizes, starts).tolist()
        for n, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True)):
            position, event = served[n].position, served[n].event
            if simple[n]:
                counts = (all_units[n], all_sizes[n])
                epoch, published = self.epoch_of(event.at_us), marks[-1][1]
                facts.append(Fact(position, epoch, all_pools[n], published, *counts, -1, SIGNED))
                continue
            which = start + np.flatnonzero(accepted[start:end])
            rows = zip(
                (which - start).tolist(),
                pools[which].tolist(),
                (tickets[t.PLAIN, which] == 1).tolist(),
                tickets[t.ISSUED, which].tolist(),
                tickets[t.SETTLE_S, which].tolist(),
                newest[which].tolist(),
                units[which].tolist(),
                sizes[which].tolist(),
                strict=True,
            )
            dues = [Due(i, p, plain, at, by_s * 1_000_000, *rest) for i, p, plain, at, by_s, *rest in rows]
            with failing_at(position):
                facts += self.served(position, event.at_us, broadcast.rendition_id.bytes, dues)
        return facts

    def add(self, facts: Iterable[Fact]) -> None:
        """In the order of the log."""
        for fact in facts:
            self._add(fact)

    def goes_on(self, event: SegmentsPublished) -> bool:
        """Whether all are behind those that are known of their rendition: then these stay as they are."""
        marks = self._published.get(event.rendition_id.bytes)
        return not marks or not event.segments or event.segments[0].sequence > marks[-1][0]

    def observed(self, position: int, event: SessionObserved) -> None:
        """Each sequence counts once, for the newest ticket of the session that covers it."""
        session, epoch = event.session_id.bytes, self.epoch_of(event.at_us)
        known = self._known_players(session)
        covering = [
            p
            for p in reversed(known)
            if p.position < position and p.first - BITMAP_BITS < event.base_sequence <= p.last
        ]
        polled = int.from_bytes(event.polled, "little")
        fetched = int.from_bytes(event.fetched_at_hub, "little")
        for p in covering:
            polled &= ~_shift(int.from_bytes(p.polled, "little"), p.first - event.base_sequence)
            fetched &= ~_shift(int.from_bytes(p.fetched, "little"), p.first - event.base_sequence)
        for p in covering:
            offset = p.first - event.base_sequence
            window = _shift((1 << (p.last - p.first + 1)) - 1, offset)
            seen, at_hub = polled & window, fetched & window
            p.polled = _bits(int.from_bytes(p.polled, "little") | _shift(seen, -offset))
            p.fetched = _bits(int.from_bytes(p.fetched, "little") | _shift(at_hub, -offset))
            polled, fetched = polled & ~window, fetched & ~window
            if seen or at_hub:
                counts = (seen.bit_count(), at_hub.bit_count())
                self._add(Fact(position, epoch, p.pool, 0, *counts, p.position, SEEN))
        if known:
            self._players.put(session, known)

    def _known_players(self, session: bytes) -> list[_Player]:
        """The tickets of a plain player that are not forgotten, oldest first; also those later in the bundle."""
        known = self._players.get(session) or []
        return [p for p in known if not self._forgotten(p.position, p.settle_by_us)]

    def published(self, event: SegmentsPublished) -> None:
        marks = self._published.get(event.rendition_id.bytes) or []
        for segment in event.segments:
            epoch = self.epoch_of(segment.program_us)
            if marks and epoch <= marks[-1][1]:
                marks[-1] = (segment.sequence, marks[-1][1])
            else:
                marks.append((segment.sequence, epoch))
        self._published.put(event.rendition_id.bytes, marks)

    def settled(self, position: int, event: EpochSettled) -> None:
        """The last page of a settlement."""
        state = self.state
        tallies, parts = self._settle(event.epoch, event.log_to)
        for number, tally in tallies.items():
            self._tallies.put(number.to_bytes(8), tally)
        state.rates.settled(parts, self._nodes(), self._epochs)
        self._drop(event.log_to)
        later = [s for s in state.settings if s[0] >= event.log_to]
        state.settings = [(0, self.settings(event.log_to)), *later]
        state.stated = [s for s in state.stated if s[0] >= event.log_to]
        state.runs = state.runs[max(0, bisect_left(state.runs, (event.log_to + 1, -1)) - 1) :]
        state.next_epoch, state.settled_to = event.epoch + 1, event.log_to
        self._draft = None
        start_us = state.genesis_us + event.epoch * state.epoch_us
        self._forget(position, start_us - DAY_US)
        # As CreditIndex: of what was published before that hour, nothing comes any more.
        days = [start_us // DAY_US, *(pool.day for pool in state.pools.values())]
        state.rates.forget_before(min(days) * DAY_US - HOUR_US, self._epochs)

    def _forget(self, position: int, time_us: int) -> None:
        """Drop tickets that can bring no more receipts, and with the last ticket of a day its pool."""
        state = self.state
        over = {s for s in state.settle_by_s if s * 1_000_000 < time_us}
        state.forgotten_at, state.forgotten_us = position, time_us
        if not over:
            return
        state.settle_by_s -= over
        unsettled = {int(n) for rows in self._facts() for n in np.unique(rows["pool"])}
        gone = [n for n, pool in state.pools.items() if pool.settle_by_us < time_us and n not in unsettled]
        for number in gone:
            pool = state.pools.pop(number)
            del self._pool_of[pool.stream_id, pool.node_id, pool.day]
            self._tallies.remove(number.to_bytes(8))
        if gone:
            state.probes = {t: named for t, named in state.probes.items() if named[1] in state.pools}

    def _forgotten(self, issued: int, settle_by_us: int) -> bool:
        return issued < self.state.forgotten_at and settle_by_us < self.state.forgotten_us

    # --- asking

    def epoch_of(self, at_us: int) -> int:
        state = self.state
        return max(0, (at_us - state.genesis_us) // state.epoch_us) if state.epoch_us else 0

    def due(self, position: int, at_us: int) -> tuple[int, int] | None:
        """(epoch, log_to) of the settlement to make before the event at `position`, or None (CreditIndex.due)."""
        state, now = self.state, self.epoch_of(at_us)
        if not state.epoch_us or now <= state.next_epoch:
            return None
        epoch = now - 1
        oldest = next((int(rows["epoch"][0]) for rows in self._facts()), None)
        if oldest is not None:
            epoch = min(max(oldest, state.next_epoch), epoch)
        return epoch, self.cut(epoch, position, at_us)

    def cut(self, epoch: int, position: int, at_us: int) -> int:
        """Where the events of later epochs begin that a settlement of `epoch` before `position` may not take in."""
        state, now = self.state, self.epoch_of(at_us)
        starts = [start for start, _ in state.runs[1:]] + [position]
        for (start, of), end in zip(state.runs, starts, strict=True):
            first = max(start, state.settled_to)
            if first < end and epoch < of <= now:
                return first
        return position

    def any_before(self, log_to: int) -> bool:
        """Whether a settlement of the log up to there settles anything."""
        return next(self._facts(log_to), None) is not None

    def credits(self, epoch: int, log_to: int) -> list[Credit]:
        """What a settlement of `epoch` that reads the log up to `log_to` has to pay."""
        return [self._credit(part, epoch) for part in self._settle(epoch, log_to)[1]]

    def settings(self, log_to: int) -> Settings:
        """Those in force at the end of the log before `log_to`."""
        return [s for position, s in self.state.settings if position < log_to or position == 0][-1]

    def _settle(self, epoch: int, log_to: int) -> tuple[dict[int, _Tally], list[Part[int]]]:
        """The tallies as they are after that settlement, and what it pays. Made once, asked for twice."""
        if self._draft is not None and self._draft[:2] == (epoch, log_to):
            return self._draft[2:]
        totals: dict[tuple[int, bool, int], list[int]] = defaultdict(lambda: [0, 0])

        def pay(pool: int, plain: bool, published: int, units: int, size: int) -> None:
            total = totals[pool, plain, published]
            total[0] += units
            total[1] += size

        tallies: dict[int, _Tally] = {}
        for rows in self._facts(log_to):
            for row in rows[rows["kind"] != SIGNED].tolist():
                fact = Fact(*row)
                if self._is_probe(fact.ticket, log_to):
                    continue
                tally = tallies.get(fact.pool) or tallies.setdefault(fact.pool, self._tally(fact.pool))
                if fact.kind == SEEN:
                    tally.polled, tally.fetched = tally.polled + fact.units, tally.fetched + fact.size
        settings = self.settings(log_to)
        factor = settings.plain_sample_factor
        allowed = {n: min(factor * t.fetched, t.polled) - t.paid for n, t in tallies.items()}
        for number, tally in tallies.items():
            waiting, tally.waiting = tally.waiting, []
            for claim in waiting:
                if self._is_probe(claim[3], log_to):
                    continue
                allowed[number] -= _claim(tally, allowed[number], number, claim, pay)
        for rows in self._facts(log_to):
            for row in rows[rows["kind"] != SEEN].tolist():
                fact = Fact(*row)
                if fact.kind == SIGNED:
                    pay(fact.pool, False, fact.published, fact.units, fact.size)
                elif not self._is_probe(fact.ticket, log_to):
                    claim, number = (fact.published, fact.units, fact.size, fact.ticket), fact.pool
                    allowed[number] -= _claim(tallies[number], allowed[number], number, claim, pay)
        found = self.state.rates.parts(totals, self._nodes(), log_to, settings, self._epochs)
        self._draft = (epoch, log_to, tallies, found)
        return tallies, found

    def _is_probe(self, ticket: int, log_to: int) -> bool:
        """Whether it is a spot check's, as far as the log before `log_to` tells."""
        named = self.state.probes.get(ticket)
        return named is not None and named[0] < log_to

    def _tally(self, number: int) -> _Tally:
        """A copy: asking changes nothing."""
        known = self._tallies.get(number.to_bytes(8))
        return _Tally(known.polled, known.fetched, known.paid, list(known.waiting)) if known else _Tally()

    def _nodes(self) -> dict[int, UUID]:
        return {number: pool.node_id for number, pool in self.state.pools.items()}

    @property
    def _epochs(self) -> Epochs:
        return Epochs(self.state.genesis_us, self.state.epoch_us)

    def _credit(self, part: Part[int], epoch: int) -> Credit:
        pool = self.state.pools[part.pool]
        return Credit(
            stream_id=pool.stream_id,
            node_id=pool.node_id,
            friend_id=pool.friend_id,
            plain=part.plain,
            late=part.published < epoch,
            units=part.units,
            credited_bytes=part.credited_bytes,
            over_rate=part.over_rate,
            published=part.published,
        )

    # --- facts that are not settled yet

    def _add(self, fact: Fact) -> None:
        self._newest.append(fact)
        if len(self._newest) == ROWS:
            first, end = self.state.chunks
            self._rows.put(end.to_bytes(8), np.array(self._newest, _FACT).tobytes())
            self.state.chunks = (first, end + 1)
            self._newest.clear()

    def _facts(self, log_to: int | None = None) -> Iterator[_Rows]:
        """In the order of the log, in parts that are not empty, up to `log_to` (None: all)."""
        skip = self.state.taken
        for rows in self._chunks():
            rows, skip = rows[skip:], 0
            if log_to is not None:
                rows = rows[: int(np.searchsorted(rows["position"], log_to))]
            if not len(rows):
                return
            yield rows

    def _chunks(self) -> Iterator[_Rows]:
        for number in range(*self.state.chunks):
            data = self._rows.get(number.to_bytes(8))
            assert data is not None
            yield np.frombuffer(data, _FACT)
        yield np.array(self._newest, _FACT)

    def _drop(self, log_to: int) -> None:
        """The facts before `log_to` are settled."""
        state = self.state
        state.taken += sum(len(rows) for rows in self._facts(log_to))
        first, end = state.chunks
        while state.taken >= ROWS and first < end:
            self._rows.remove(first.to_bytes(8))
            first, state.taken = first + 1, state.taken - ROWS
        state.chunks = (first, end)
        if first == end:
            del self._newest[: state.taken]
            state.taken = 0


def _claim(
    tally: _Tally, allowed: int, pool: int, claim: tuple[int, int, int, int], pay: Callable[..., None]
) -> int:
    """Pay what the observations allow of a plain claim; the rest waits. Returns the units paid."""
    published, units, size, ticket = claim
    if allowed <= 0:
        tally.waiting.append(claim)
        return 0
    taken = min(units, allowed)
    taken_bytes = part_of(size, taken, units)
    pay(pool, True, published, taken, taken_bytes)
    tally.paid += taken
    if taken < units:
        tally.waiting.append((published, units - taken, size - taken_bytes, ticket))
    return taken


def _shift(bits: int, by: int) -> int:
    return bits << by if by >= 0 else bits >> -by


def _bits(bits: int) -> bytes:
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")
