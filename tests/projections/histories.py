"""A small generator of valid histories: the aggregates decide, so no event is one the ledger would refuse.

`History.play(moves)` turns any list of (move, number) pairs into the events of a log; a move that the state does not
allow does nothing, so that Hypothesis can drop any of them when it shrinks.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar
from uuid import UUID, uuid5

from ledger.aggregates.base import Aggregate, DomainError
from ledger.aggregates.book import Book
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node
from ledger.aggregates.payout import payout_id
from ledger.aggregates.stream import Stream
from ledger.event_codec import encode
from ledger.events import (
    EpochSettled,
    Event,
    PayoutApproved,
    PayoutAttempted,
    PayoutCancelled,
    PayoutLine,
    PayoutPlanned,
    PayoutProposed,
    PayoutResolved,
    ReceiptsRefused,
    Segment,
    SegmentsServed,
    SessionOpened,
)
from ledger.ids import BOOK_ID, NAMESPACE, delivery_id, node_id, stream_id
from ledger.judged import Judged, pack
from ledger.settlement import Credit, settle
from ledger.settlement import pages as to_pages
from ledger.verdict import Cap, Verdict

Move = tuple[str, int]
FRIENDS = 3
SLUGS = ("alpha", "beta")
OUTCOMES = ("ok", "wrong_bytes", "unreachable", "refused", "slow")


def named(kind: str, number: int) -> UUID:
    return uuid5(NAMESPACE, f"test {kind} {number}")


T = TypeVar("T")


def pick(things: list[T], number: int) -> list[T]:
    """One of them, or none when there is none."""
    return [things[number % len(things)]] if things else []


PART_EVENTS = 3


class Log:
    """Events at dense positions, in memory."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.entries = [Entry(i, e) for i, e in enumerate(events)]

    def size(self) -> int:
        return len(self.entries)

    def read(self, start: int, limit: int) -> list["Entry"]:
        return self.entries[start : start + limit]

    def happened_us(self, position: int) -> int:
        return self.entries[position].event.at_us

    @contextmanager
    def scan(self, start: int, limit: int, skip: Collection[type[Event]]) -> Iterator["Scan"]:
        page = self.entries[start : start + limit]
        yield Scan(
            [(entry.position, entry.event) for entry in page if type(entry.event) not in skip],
            end=start + len(page),
        )

    @contextmanager
    def parts(self, start: int, limit: int, skip: Collection[type[Event]]) -> Iterator["Parts"]:
        page = self.entries[start : start + limit]
        wanted = [entry for entry in page if type(entry.event) not in skip]
        few = [wanted[i : i + PART_EVENTS] for i in range(0, len(wanted), PART_EVENTS)]
        yield Parts(
            [([x.position for x in part], b"".join(encode(x.event) for x in part)) for part in few],
            end=start + len(page),
        )

    def wait(self, size: int, timeout_s: float) -> int:
        return self.size()


class Parts(list[tuple[list[int], bytes]]):
    def __init__(self, parts: list[tuple[list[int], bytes]], end: int) -> None:
        super().__init__(parts)
        self.end = end


class Scan(list[tuple[int, Event]]):
    def __init__(self, events: list[tuple[int, Event]], end: int) -> None:
        super().__init__(events)
        self.end = end


class Entry:
    def __init__(self, position: int, event: Event) -> None:
        self.position = position
        self.event = event


class History:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.book = Book(BOOK_ID)
        self.streams: list[Stream] = []
        self.broadcasts: list[Broadcast] = []
        self.nodes: list[Node] = []
        self.credits: list[Credit] = []
        self.batches: list[tuple[UUID, list[PayoutLine], dict[int, int]]] = []  # id, lines, attempts
        self.versions: dict[UUID, int] = {}
        self.epoch = 0

    def play(self, moves: Sequence[Move]) -> list[Event]:
        for move, number in moves:
            try:
                MOVES[move](self, number)
            except DomainError:
                continue
        return self.events

    # --- helpers

    @property
    def now_us(self) -> int:
        return 1_700_000_000_000_000 + len(self.events) * 1_000_000

    def keep(self, *aggregates: Aggregate) -> None:
        for aggregate in aggregates:
            self.events += aggregate.collect_events()

    def raw(self, event_class: type[Event], originator_id: UUID, **fields: object) -> None:
        """An event of an aggregate that decides nothing here."""
        version = self.versions.get(originator_id, 0) + 1
        self.versions[originator_id] = version
        self.events.append(
            event_class(  # type: ignore[call-arg]
                originator_id=originator_id, originator_version=version, at_us=self.now_us, **fields
            )
        )

    # --- streams

    def register(self, number: int) -> None:
        slug = SLUGS[number % len(SLUGS)]
        if all(s.slug != slug for s in self.streams):
            stream = Stream(stream_id(slug))
            stream.register(slug=slug, key_sha256=bytes(32), owner_id=named("owner", 0), at_us=self.now_us)
            self.streams.append(stream)
            self.keep(stream)
            self.book.set_tariff(
                stream.id,
                effective_epoch=self.book.next_epoch,
                rate_micro_per_gb=10_000_000,
                fee_bp=500,
                floor_bp=1000,
                plain_bp=5000,
                plain_income_cap_bp=3000,
                at_us=self.now_us,
            )
            self.keep(self.book)

    def go_live(self, number: int) -> None:
        for stream in pick(self.streams, number):
            broadcast = Broadcast(named("broadcast", len(self.broadcasts)))
            stream.go_live(broadcast.id, at_us=self.now_us)
            broadcast.start(
                stream_id=stream.id,
                rendition_id=named("rendition", len(self.broadcasts)),
                first_sequence=stream.next_sequence,
                video_codec="h264",
                audio_codec="aac",
                at_us=self.now_us,
            )
            self.broadcasts.append(broadcast)
            self.keep(stream, broadcast)

    def publish(self, number: int) -> None:
        for broadcast in pick(self.broadcasts, number):
            first = broadcast.next_sequence
            segments = [
                Segment(s, 4_000_000, 1000 + number, bytes(32), self.now_us)
                for s in range(first, first + 1 + number % 3)
            ]
            broadcast.publish(segments, at_us=self.now_us)
            self.keep(broadcast)

    def interrupt(self, number: int) -> None:
        for broadcast in self.broadcasts[-1:]:
            if number % 2:
                broadcast.interrupt(reason="gone", at_us=self.now_us)
            else:
                broadcast.resume(at_us=self.now_us)
            self.keep(broadcast)

    def go_offline(self, number: int) -> None:
        for stream in pick(self.streams, number):
            for broadcast in (b for b in self.broadcasts if b.id == stream.broadcast_id):
                broadcast.end(reason="stopped", at_us=self.now_us)
                stream.go_offline(reason="stopped", next_sequence=broadcast.next_sequence, at_us=self.now_us)
                self.keep(stream, broadcast)

    def retire_stream(self, number: int) -> None:
        for stream in pick(self.streams, number):
            if number % 3:
                stream.mark_stale(unused_us=0, at_us=self.now_us)
            else:
                stream.archive(reason="done", at_us=self.now_us)
            self.keep(stream)

    def watch(self, number: int) -> None:
        for stream in pick(self.streams, number):
            session = named("session", len(self.events))
            self.raw(
                SessionOpened,
                session,
                session_id=session,
                stream_id=stream.id,
                viewer_class=1,
                viewer_key=bytes(32),
                prefix_commitment=bytes(16),
                account_id=None,
            )

    # --- nodes and delivery

    def join(self, number: int) -> None:
        key = bytes([len(self.nodes) % 256]) * 32
        node = Node(node_id(key))
        if len(self.nodes) < 4:
            friend = named("friend", number % FRIENDS)
            node.join(
                public_key=key,
                friend_id=friend,
                invite_id=named("invite", number),
                prefix_commitment=bytes(16),
                at_us=self.now_us,
            )
            self.nodes.append(node)
            self.keep(node)

    def probe(self, number: int) -> None:
        if self.nodes:
            node = self.nodes[number % len(self.nodes)]
            node.probed(
                outcome=OUTCOMES[number // 4 % 5],
                sequence=1,
                latency_us=2,
                segment_bytes=3,
                session_id=None,
                at_us=self.now_us,
            )
            self.keep(node)

    def presence(self, number: int) -> None:
        if self.nodes:
            node = self.nodes[number % len(self.nodes)]
            commands: list[Callable[[], object]] = [
                lambda: node.go_online(at_us=self.now_us),
                lambda: node.go_offline(reason="silent", at_us=self.now_us),
                lambda: node.suspend(reason="wrong bytes", at_us=self.now_us),
                lambda: node.reinstate(reason="fixed", at_us=self.now_us),
                lambda: node.see_at(bytes([number % 7]) * 16, at_us=self.now_us),
                lambda: node.retire(reason="left", at_us=self.now_us),
            ]
            commands[number // 4 % len(commands)]()
            self.keep(node)

    def serve(self, number: int) -> None:
        if self.nodes and self.broadcasts:
            node = self.nodes[number % len(self.nodes)]
            broadcast = self.broadcasts[number // 4 % len(self.broadcasts)]
            judged = self._judged(number)
            self.raw(
                SegmentsServed,
                delivery_id(broadcast.id),
                node_id=node.id,
                batch_header=bytes(147) if number % 3 else b"",
                first_sequence=broadcast.first_sequence,
                network_limit=2,
                receipts=bytes(205 * len(judged)),
                **pack(
                    range(len(judged)),
                    [named("session", 0)] * len(judged),
                    [bytes(16)] * len(judged),
                    judged,
                ),
            )
            assert broadcast.stream_id is not None
            self.credits.append(
                Credit(
                    stream_id=broadcast.stream_id,
                    node_id=node.id,
                    friend_id=node.friend_id,
                    plain=bool(number % 2),
                    late=False,
                    units=sum(j.units for j in judged),
                    credited_bytes=sum(j.credited_bytes for j in judged),
                )
            )

    def refuse(self, number: int) -> None:
        if self.nodes:
            node = self.nodes[number % len(self.nodes)]
            node.trigger(
                ReceiptsRefused,
                at_us=self.now_us,
                batch_header=bytes([number % 256]) * 147,
                indices=(0,),
                receipts=bytes(205),
                judged=(Judged(Verdict.UNKNOWN_TICKET.value),),
            )
            self.keep(node)

    def _judged(self, number: int) -> tuple[Judged, ...]:
        verdicts = list(Verdict)
        first = Judged(Verdict.ACCEPTED.value, 1 + number % 5, (1 + number % 5) * 100_000_000)
        second = verdicts[number % len(verdicts)]
        if second is Verdict.ACCEPTED:
            return (first,)
        cap = Cap.OWN_ACCOUNT.value if second is Verdict.CAPPED else ""
        return (first, Judged(second.value, cap=cap))

    # --- money

    def deposit(self, number: int) -> None:
        for stream in pick(self.streams, number):
            if number % 5:
                self.book.deposit(
                    stream.id,
                    amount_micro=number * 1000 + 1,
                    reference=f"deposit {len(self.events)}",
                    at_us=self.now_us,
                )
            else:
                self.book.withdraw(
                    stream.id,
                    amount_micro=number + 1,
                    reference=f"withdrawal {len(self.events)}",
                    at_us=self.now_us,
                )
            self.keep(self.book)

    def settle(self, number: int) -> None:
        tariffs = {s.id: t for s in self.streams if (t := self.book.tariff(s.id, self.epoch))}
        budgets = {s.id: self.book.budget(s.id) for s in self.streams}
        pages = to_pages(settle(self.credits, tariffs, budgets))
        self.book.settle_epoch(self.epoch, log_to=len(self.events), pages=pages, at_us=self.now_us)
        self.epoch += 1
        self.credits = []
        self.keep(self.book)

    def release(self, number: int) -> None:
        for epoch in sorted(self.book.holds)[:1]:
            self.book.release_hold(epoch, at_us=self.now_us)
            self.keep(self.book)

    def dispute(self, number: int) -> None:
        settled = [(n, x) for n, x in enumerate(self.events) if isinstance(x, EpochSettled) and x.lines]
        for position, event in pick(settled, number):
            line = number % len(event.lines)
            self.book.open_dispute(
                event.lines[line],
                epoch=event.epoch,
                position=position,
                settled_version=event.originator_version,
                number=line,
                opened_by="friend",
                reason="why",
                at_us=self.now_us,
            )
            self.keep(self.book)

    def decide(self, number: int) -> None:
        for dispute in pick([d for d in self.book.disputes.values() if d.state == "open"], number):
            decide = self.book.uphold_dispute if number % 2 else self.book.reject_dispute
            decide(dispute.number, reason="because", at_us=self.now_us)
            self.keep(self.book)

    def adjust(self, number: int) -> None:
        friend = f"friend:{named('friend', number % FRIENDS)}:available"
        for stream in pick(self.streams, number):
            places = [f"budget:{stream.id}", friend, "fees"]
            source, target = places[number % 3], places[(number + 1) % 3]
            self.book.adjust(
                source=source,
                target=target,
                amount_micro=1 + number,
                reference=f"adjustment {len(self.events)}",
                reason="corrected",
                at_us=self.now_us,
            )
            self.keep(self.book)

    def plan_payout(self, number: int) -> None:
        reserved = {line.friend_id for _, lines, _ in self.batches for line in lines}
        due = {f: a for f, a in self.book.available().items() if f not in reserved}
        if due:
            lines = [PayoutLine(i, f, a, bytes(32)) for i, (f, a) in enumerate(due.items(), 1)]
            batch_id = payout_id(len(self.batches) + 1)
            self.batches.append((batch_id, lines, {}))
            self.raw(PayoutPlanned, batch_id, rail="csv", lines=tuple(lines))
            self.raw(PayoutProposed, batch_id, operator="planner")
            if number % 4:
                self.raw(PayoutApproved, batch_id, operator="op")
            else:
                self.raw(PayoutCancelled, batch_id, reason="no")
                self.batches[-1] = (batch_id, [], {})

    def pay(self, number: int) -> None:
        for batch_id, lines, attempts in self.batches[-1:]:
            for line in pick(lines, number):
                if line.line not in attempts:
                    self.book.reserve_payout_line(
                        batch_id,
                        line.line,
                        friend_id=line.friend_id,
                        amount_micro=line.amount_micro,
                        at_us=self.now_us,
                    )
                    self.keep(self.book)
                elif (batch_id, line.line) not in self.book.reservations:
                    return
                attempt = attempts[line.line] = attempts.get(line.line, 0) + 1
                self.raw(PayoutAttempted, batch_id, line=line.line, attempt=attempt, key=f"key {attempt}")
                outcome = ("confirmed", "failed", "unknown")[number % 3]
                self.raw(
                    PayoutResolved,
                    batch_id,
                    line=line.line,
                    attempt=attempt,
                    outcome=outcome,
                    reference="bank 7",
                )
                if outcome == "confirmed":
                    self.book.confirm_payout_line(batch_id, line.line, at_us=self.now_us)
                elif outcome == "failed":
                    self.book.fail_payout_line(batch_id, line.line, at_us=self.now_us)
                self.keep(self.book)

    def give_back(self, number: int) -> None:
        for key in pick([key for key, line in self.book.paid.items() if line.left_micro], number):
            left = self.book.paid[key].left_micro
            self.book.return_payout_line(
                *key,
                amount_micro=left if number % 2 else 1 + number % left,
                reference=f"return {len(self.events)}",
                reason="account closed",
                at_us=self.now_us,
            )
            self.keep(self.book)


MOVES: dict[str, Callable[[History, int], None]] = {
    "register": History.register,
    "go_live": History.go_live,
    "publish": History.publish,
    "interrupt": History.interrupt,
    "go_offline": History.go_offline,
    "retire_stream": History.retire_stream,
    "watch": History.watch,
    "join": History.join,
    "probe": History.probe,
    "presence": History.presence,
    "serve": History.serve,
    "refuse": History.refuse,
    "deposit": History.deposit,
    "settle": History.settle,
    "release": History.release,
    "dispute": History.dispute,
    "decide": History.decide,
    "adjust": History.adjust,
    "plan_payout": History.plan_payout,
    "pay": History.pay,
    "give_back": History.give_back,
}

# Enough of everything that any further moves have something to act on.
OPENING: list[Move] = [
    ("register", 0),
    ("deposit", 5001),
    ("join", 0),
    ("join", 1),
    ("go_live", 0),
    ("publish", 2),
    ("serve", 5),
    ("serve", 6),
    ("settle", 0),
    ("dispute", 1),
    ("adjust", 2),
    ("release", 0),
    ("plan_payout", 1),
    ("pay", 2),
]
