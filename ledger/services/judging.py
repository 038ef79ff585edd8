"""Judging: receipts whose signatures were verified, decided and recorded for all who wait at once.

Threads verify signatures on all cores; what follows is one at a time in any case: it is Python, and a broadcast has one
writer. So the thread whose turn it is judges what the others brought meanwhile too, with one query to load and one
transaction to record. Invariants: batches are judged in the order in which they came, each seeing the credits of those
before it; one that cannot be judged fails nobody else.
"""

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from ledger.aggregates.base import Aggregate, DomainError
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.crew import Crew
from ledger.aggregates.delivery import Delivery, Presented
from ledger.aggregates.node import Node
from ledger.application import Conflict, Ledger, Unavailable
from ledger.events import ReceiptsRefused, SegmentsServed
from ledger.ids import CREW_ID, delivery_id
from ledger.judged import CAP_NAMES, VERDICT_CODES, VERDICT_NAMES, Judged
from ledger.receipt_digests import ReceiptDigests
from ledger.services.retry import until_saved
from ledger.together import Together, Turn
from ledger.verdict import Verdict

TOGETHER_MAX: Final = 2_000  # receipts that are judged before the next thread's turn,
BATCH_SIZE: Final = 8  # where a batch costs as much as so many

OUT_OF_RANGE: Final = VERDICT_CODES[Verdict.OUT_OF_RANGE.value]

Place = tuple[UUID, int]  # originator and version of an event
Refused = tuple[int, bytes, Verdict]  # index in the batch, receipt, why
Decision = SegmentsServed | ReceiptsRefused


class UnknownNodeError(DomainError):
    """The batch is signed by a key that never joined."""


class ReceiptAnswer(
    msgspec.Struct, frozen=True, order=True, gc=False, rename={"credited_bytes": "bytes"}
):  # in JSON as api.receipts has it
    index: int  # of the receipt in its batch
    verdict: str
    units: int
    credited_bytes: int
    cap: str
    position: int  # where the verdict stands in the log


class Sent(NamedTuple):
    """A batch, or a receipt that a viewer sent itself, on its way to judgement."""

    presented: dict[UUID, Presented]  # by broadcast
    refused: Sequence[Refused]  # what belongs to none
    node_id: UUID
    batch_header: bytes  # none of a receipt alone
    known_hash: bytes
    at_us: int


class Answered(NamedTuple):
    answers: list[ReceiptAnswer]
    places: list[Place]  # where they stand


class Judging:
    """Thread-safe."""

    def __init__(self, ledger: Ledger, digests: ReceiptDigests) -> None:
        self._ledger = ledger
        self._digests = digests
        self._together: Together[Sent, Answered] = Together(
            self._judge_turns,
            size=lambda sent: BATCH_SIZE + sum(len(p.indices) for p in sent.presented.values()),
            most=TOGETHER_MAX,
            interrupted=lambda: Unavailable("the thread that was judging was interrupted"),
        )

    def judge(self, sent: Sent) -> Answered:
        """The verdicts, durable. Raises UnknownNodeError, DomainError, Unavailable, Conflict."""
        return self._together.do(sent)

    def answers_at(self, places: Sequence[Place]) -> list[ReceiptAnswer]:
        """What was answered before, from the log."""
        answers: list[ReceiptAnswer] = []
        for recorded in self._ledger.find(places) if places else ():
            assert isinstance(recorded.event, Decision)
            answers += _answers(recorded.event, recorded.position)
        return sorted(answers)

    def _judge_turns(self, turns: Sequence[Turn[Sent, Answered]]) -> None:
        try:
            self._judge_group(turns)
        except Unavailable as e:
            for turn in turns:
                turn.error = Unavailable(*e.args)
                turn.error.__cause__ = e
        except Exception as e:
            if len(turns) == 1:
                turns[0].error = e
                return
            for turn in turns:
                self._judge_turns([turn])

    def _judge_group(self, turns: Sequence[Turn[Sent, Answered]]) -> None:
        """On what is in memory, without asking; the save asks. If others have gone on since, on what the log says."""
        with suppress(Conflict):
            self._attempt(turns, self._ledger.remembered)
            return
        # Outside of the error, which holds the aggregates until it is gone.
        until_saved(lambda: self._attempt(turns, self._ledger.load_each))

    def _attempt(self, turns: Sequence[Turn[Sent, Answered]], load: "_Load") -> None:
        """Load, decide, save in one transaction. Every turn has its outcome afterwards.

        What is refused with an error does not depend on how fresh the state is: who never joined, or never started, is
        looked for in the log, and what a node sent today only grows.
        """
        state = self._load([turn.item for turn in turns], load)
        decided: list[tuple[Turn[Sent, Answered], list[Place], list[Place]]] = []  # new places, earlier ones
        pending: dict[Aggregate, list[Decision]] = defaultdict(list)
        for turn in turns:
            turn.result = turn.error = None
            try:
                fresh, before = self._decide(turn.item, state)
            except DomainError as e:
                turn.error = e
                continue
            for aggregate, event in fresh:
                pending[aggregate].append(event)
            decided.append((turn, [_place(event) for _, event in fresh], before))
        new = {_place(event) for events in pending.values() for event in events}
        # Asked before the save: what fails after it would fail batches that are recorded.
        old = [self.answers_at([p for p in before if p not in new]) for _, _, before in decided]
        read = [a for a in state.read(pending.values()) if a not in pending]
        positions = self._ledger.save(*pending, unchanged=read)
        recorded = zip(chain.from_iterable(pending.values()), positions, strict=True)
        answers = {_place(event): _answers(event, position) for event, position in recorded}
        for (turn, fresh_places, before), known in zip(decided, old, strict=True):
            places = before + fresh_places
            found = sum([answers[place] for place in places if place in answers], known)
            turn.result = Answered(sorted(found) if len(places) > 1 else found, places)

    def _load(self, sent: Sequence[Sent], load: "_Load") -> "_State":
        nodes = dict.fromkeys(s.node_id for s in sent)
        broadcasts = dict.fromkeys(b for s in sent for b in s.presented)
        wanted: list[tuple[type[Aggregate], UUID]] = [(Crew, CREW_ID)]
        wanted += [(Node, n) for n in nodes] + [(Broadcast, b) for b in broadcasts]
        deliveries = {b: delivery_id(b) for b in broadcasts}
        wanted += [(Delivery, d) for d in deliveries.values()]
        found = dict(zip(wanted, load(*wanted), strict=True))
        founded = found[Crew, CREW_ID] or Crew(CREW_ID)
        assert isinstance(founded, Crew)
        state = _State(founded, {}, {}, {})
        for n in nodes:
            if isinstance(node := found[Node, n], Node):
                state.nodes[n] = node
        for b, d in deliveries.items():
            if isinstance(broadcast := found[Broadcast, b], Broadcast):
                state.broadcasts[b] = broadcast
            delivery = found[Delivery, d] or Delivery.of(b)
            assert isinstance(delivery, Delivery)
            state.deliveries[b] = delivery
        return state

    def _decide(self, sent: Sent, state: "_State") -> tuple[list[tuple[Aggregate, Decision]], list[Place]]:
        """The new events, and where verdicts stand that were given before. Raises DomainError and changes nothing."""
        node = state.nodes.get(sent.node_id)
        if node is None:
            raise UnknownNodeError("the node that signed this batch never joined")
        for broadcast_id in sent.presented:
            broadcast = state.broadcasts.get(broadcast_id)
            if broadcast is None or broadcast.rendition_id is None:
                raise DomainError("the broadcast never started")
        fresh: list[tuple[Aggregate, Decision]] = []
        before: list[Place] = []
        refused_before = node.refused_before(sent.known_hash) if sent.refused else None
        # This may be refused itself, so it is done first; it stands behind the others in the log.
        refusal = _refuse(node, sent) if sent.refused and refused_before is None else None
        for broadcast_id in sorted(sent.presented):
            delivery = state.deliveries[broadcast_id]
            version = delivery.judged_before(sent.known_hash) if sent.known_hash else None
            judged = version or self._judge(sent, broadcast_id, node, state)
            if isinstance(judged, int):
                before.append((delivery.id, judged))
            else:
                fresh.append((delivery, judged))
        if refusal is not None:
            fresh.append((node, refusal))
        elif refused_before is not None:
            before.append((node.id, refused_before))
        return fresh, before

    def _judge(self, sent: Sent, broadcast_id: UUID, node: Node, state: "_State") -> SegmentsServed | int:
        broadcast = state.broadcasts[broadcast_id]
        rendition_id = broadcast.rendition_id
        assert rendition_id is not None
        return state.deliveries[broadcast_id].judge(
            sent.presented[broadcast_id],
            batch_header=sent.batch_header,
            node_id=node.id,
            node=node.facts,
            manifest=broadcast.manifest,
            settings=state.crew.settings,
            digest_of=lambda nonce, sequences: self._digests.expected(rendition_id, nonce, sequences),
            at_us=sent.at_us,
        )


_Load = Callable[..., list[Aggregate | None]]


class _State(NamedTuple):
    crew: Crew
    nodes: dict[UUID, Node]
    broadcasts: dict[UUID, Broadcast]
    deliveries: dict[UUID, Delivery]  # by broadcast

    def read(self, decided: Iterable[list[Decision]]) -> list[Aggregate]:
        """What these verdicts depend on, beside what they are appended to.

        What was published stays so: a broadcast that goes on only matters to who claimed more than it had.
        """
        served = [event for events in decided for event in events if isinstance(event, SegmentsServed)]
        if not served:
            return []
        nodes = {event.node_id for event in served}
        beyond = {event.originator_id for event in served if OUT_OF_RANGE in event.verdicts}
        read: list[Aggregate] = [self.crew]
        read += [node for node_id, node in self.nodes.items() if node_id in nodes]
        return read + [b for b in self.broadcasts.values() if self.deliveries[b.id].id in beyond]


def _place(event: Decision) -> Place:
    return event.originator_id, event.originator_version


def _refuse(node: Node, sent: Sent) -> ReceiptsRefused:
    return node.refuse_receipts(
        batch_header=sent.batch_header,
        indices=tuple(i for i, _, _ in sent.refused),
        receipts=b"".join(receipt for _, receipt, _ in sent.refused),
        judged=tuple(Judged(verdict.value) for _, _, verdict in sent.refused),
        at_us=sent.at_us,
    )


def _answers(event: Decision, position: int) -> list[ReceiptAnswer]:
    if isinstance(event, ReceiptsRefused):
        return [
            ReceiptAnswer(i, j.verdict, j.units, j.credited_bytes, j.cap, position)
            for i, j in zip(event.indices, event.judged, strict=True)
        ]
    count = len(event.indices)
    units = struct.unpack(f">{count}H", event.units)
    sizes = struct.unpack(f">{count}Q", event.credited_bytes)
    return [
        ReceiptAnswer(i, VERDICT_NAMES[verdict], n, size, CAP_NAMES[cap], position)
        for i, verdict, n, size, cap in zip(
            event.indices, event.verdicts, units, sizes, event.caps, strict=True
        )
    ]
