"""A crew's life with every type of event that the ledger knows, told through the real services and published."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crew_life import HOUR_US, HUB, Life, make_id, make_key

from ledger.aggregates.node import Node
from ledger.aggregates.payout import payout_id
from ledger.application import Ledger
from ledger.events import (
    EpochSettled,
    Event,
    NodeMoved,
    NodeProbed,
    NodeProbedV1,
    SegmentsServed,
    SegmentsServedV1,
)
from ledger.keys import key_id
from ledger.rails import Answer, Outcome, Payment
from ledger.receipt import Receipt, to_bitmap
from ledger.services import broadcasts, budgets, crew, disputes, nodes, payouts, returns, settle, streams
from ledger.services.destinations import Destination


@dataclass
class ScriptedRail:
    """Answers each key as it is told, one answer after the other; the last one for ever."""

    answers: dict[str, list[Outcome]]
    name: str = "scripted"
    paid: set[str] = field(default_factory=set)

    def prepare(self, amounts_micro: Sequence[int]) -> None: ...

    def submit(self, payment: Payment) -> Answer:
        self.paid.add(payment.key)
        return self.look_up(payment.key)

    def look_up(self, key: str) -> Answer:
        if key not in self.paid:
            return Answer(Outcome.ABSENT)
        left = self.answers[key]
        return Answer(left.pop(0) if len(left) > 1 else left[0], "ref")


def live_through_everything(ledger: Ledger, folder: Path, publish: Callable[[int], object]) -> Life:
    life = Life(ledger)
    _found(life)
    publish(life.tick())
    _serve(life)
    publish(life.tick())
    _settle_and_dispute(life)
    publish(life.tick())
    _pay(life)
    publish(life.tick())
    return life


def _found(life: Life) -> None:
    ledger = life.ledger
    life.found()
    for purpose in ("ticket", "log"):
        old = make_key(f"old {purpose}").public_key
        crew.add_key(ledger, purpose, old, at_us=life.tick())
        crew.retire_key(ledger, purpose, key_id(old), at_us=life.tick(600))
    crew.change_settings(
        ledger,
        {"hold_s": 7_200, "payout_threshold_micro": 1, "prefix_sessions_max": 1, "settle_by_s": 600},
        at_us=life.tick(),
    )
    for slug in ("spare", "idle"):
        streams.register_stream(
            ledger,
            slug=slug,
            owner_id=make_id("owner"),
            stream_key=f"{slug}_" + "b" * 32,
            at_us=life.tick(),
        )
    spare, idle = streams.load_stream(ledger, "spare"), streams.load_stream(ledger, "idle")
    assert spare is not None
    assert idle is not None
    streams.rotate_key(ledger, spare.id, stream_key="spare_" + "c" * 32, at_us=life.tick())
    streams.archive_stream(ledger, spare.id, reason="not used", at_us=life.tick())
    streams.mark_stale(ledger, idle.id, unused_us=1, at_us=life.tick())
    for name in ("anna", "ben", "cleo", "dora"):
        life.join(name)
    nodes.change_node(ledger, life.nodes["anna"][1].id, lambda n: n.go_online(at_us=life.tick()))
    nodes.change_node(
        ledger,
        life.nodes["anna"][1].id,
        lambda n: n.trigger(NodeMoved, at_us=life.tick(), prefix_commitment=b"m" * 16),
    )
    nodes.change_node(ledger, life.nodes["anna"][1].id, lambda n: n.see_at(b"a" * 16, at_us=life.tick(120)))
    nodes.change_node(ledger, life.nodes["ben"][1].id, lambda n: n.go_online(at_us=life.tick()))
    nodes.change_node(
        ledger,
        life.nodes["ben"][1].id,
        lambda n: n.go_offline(reason="no heartbeat", at_us=life.tick()),
    )
    nodes.retire(ledger, life.nodes["dora"][1].id, reason="moved away", at_us=life.tick())


def _probe(life: Life, name: str, outcome: str, session: str | None = None) -> None:
    def change(node: Node) -> None:
        node.probed(
            outcome=outcome,
            sequence=0,
            latency_us=50_000,
            segment_bytes=1_000,
            session_id=make_id(session) if session is not None else None,
            at_us=life.tick(),
        )

    nodes.change_node(life.ledger, life.nodes[name][1].id, change)


def _serve(life: Life) -> None:
    ledger = life.ledger
    life.go_live()
    broadcasts.interrupt_broadcast(ledger, life.broadcast.id, reason="gone", at_us=life.tick())
    broadcasts.start_or_resume(
        ledger,
        life.stream_id,
        new_broadcast_id=make_id("none"),
        new_rendition_id=make_id("none"),
        video_codec="h264",
        audio_codec="aac",
        grace_s=30,
        at_us=life.tick(),
    )
    life.publish(3)
    first, second = life.ticket("anna", "vera"), life.ticket("ben", "walt")
    third = life.ticket("cleo", "xena")
    plain = life.ticket("ben")
    watched = life.serial
    probe = life.ticket("ben")
    probed = life.serial
    for ticket in (plain, probe):
        life.desk.observe(
            ticket.ticket.session_id,
            base_sequence=0,
            polled=to_bitmap(0, range(10)),
            fetched_at_hub=to_bitmap(0, [3]),
            at_us=life.tick(),
        )
    unknown = Receipt(ticket_hash=bytes(32), counter=1, base_sequence=0, bitmap=bytes(64), digest=bytes(32))
    verdicts = life.batch(
        "anna",
        life.receipt(first, "vera", [0, 1, 2]),
        unknown.sign(make_key("vera")).encode(),
        life.receipt(first, "vera", [0, 1, 2]),
        life.receipt(first, "vera", [0, 1, 2, 3]),
        life.receipt(second, "walt", [0]),
        life.receipt(first, "walt", [5]),
        life.receipt(first, "vera", [200]),
        life.receipt(first, "vera", [4, 5], wrong_digest=True),
        b"\xff" * 205,
    )
    assert len(set(verdicts)) == 8
    alone = life.desk.judge_receipt(life.receipt(second, "walt", [1, 2, 6]), at_us=life.tick())
    assert alone.verdict == "accepted"
    assert life.batch("ben", life.receipt(plain, "ben", [3, 4, 5]), life.receipt(probe, "ben", [3])) == [
        "accepted",
        "accepted",
    ]
    del watched
    _probe(life, "ben", "ok", f"session {probed - 1}")
    _probe(life, "anna", "slow")
    nodes.suspend(ledger, life.nodes["ben"][1].id, reason="wrong bytes", at_us=life.tick())
    life.tick(120)
    assert life.batch("ben", life.receipt(plain, "ben", [8])) == ["capped"]
    nodes.reinstate(ledger, life.nodes["ben"][1].id, reason="talked", at_us=life.tick())
    assert life.batch("cleo", life.receipt(third, "xena", [0, 1])) == ["accepted"]
    # Many at once: what is judged in columns.
    many = [life.ticket("cleo", f"many {n}") for n in range(14)]
    sent = [life.receipt(t, f"many {n}", list(range(1 + n % 4))) for n, t in enumerate(many)]
    verdicts = life.batch("cleo", *sent)
    assert set(verdicts) == {"accepted"}, verdicts
    broadcasts.end_broadcast(ledger, life.broadcast.id, reason="stopped", at_us=life.tick())
    life.tick(700)
    assert life.batch("cleo", life.receipt(third, "xena", [0, 1, 2])) == ["late"]


def _settle_and_dispute(life: Life) -> None:
    ledger = life.ledger
    life.tick(3_600)
    assert life.settle()
    (at,) = [
        r.position for r in ledger.read(0, 10_000) if isinstance(r.event, EpochSettled) and r.event.lines
    ]
    for line in (0, 1, 2):
        disputes.open_dispute(ledger, at, line, reason="why", at_us=life.tick())
    disputes.decide_dispute(ledger, 1, uphold=True, reason="so", at_us=life.tick())
    disputes.decide_dispute(ledger, 2, uphold=False, reason="so", at_us=life.tick())
    life.go_live(6)
    ticket = life.ticket("anna", "vera")
    assert life.batch("anna", life.receipt(ticket, "vera", [0, 1])) == ["accepted"]
    budgets.set_tariff(ledger, life.stream_id, rate_micro_per_gb=10**11, at_us=life.tick())
    life.tick(7_200)
    assert life.settle()
    settle.release_due_holds(ledger, hold_s=7_200, at_us=life.tick())
    disputes.decide_dispute(ledger, 3, uphold=False, reason="so", at_us=life.tick())
    budget, friend = f"budget:{life.stream_id}", f"friend:{life.nodes['anna'][1].friend_id}:available"
    for n, (source, target) in enumerate([(budget, friend), (friend, "fees"), ("fees", budget)]):
        disputes.adjust(
            ledger,
            source=source,
            target=target,
            amount_micro=10,
            reference=f"a{n}",
            reason="counted",
            rests_on=(at,),
            at_us=life.tick(),
        )


def _pay(life: Life) -> None:
    ledger = life.ledger
    where = {n.friend_id: Destination("someone", b"s" * 16) for _, n in life.nodes.values()}
    commitments = {f: d.commitment for f, d in where.items()}
    rail = ScriptedRail({})

    def plan() -> None:
        plan = payouts.plan(
            ledger,
            rail=rail.name,
            threshold_micro=1,
            destinations=commitments,
            at_us=life.tick(),
            operator="planner",
        )
        assert plan.batch_id is not None

    plan()
    payouts.cancel(ledger, payout_id(1), reason="too early", at_us=life.tick())
    plan()
    outcomes = [
        [Outcome.CONFIRMED],
        [Outcome.FAILED, Outcome.CONFIRMED],
        [Outcome.UNKNOWN, Outcome.CONFIRMED],
    ]
    rail.answers = {f"{payout_id(2)}:{n}": answers for n, answers in enumerate(outcomes, 1)}
    payouts.approve(ledger, payout_id(2), operator="approver", at_us=life.tick())
    payouts.run(ledger, rail, payout_id(2), destinations=where, at_us=life.tick())
    results = payouts.reconcile(ledger, rail, payout_id(2), at_us=life.tick(60))
    assert [r.state for r in results] == ["confirmed"] * 3
    for line, amount_micro in ((1, 1_000), (2, None)):
        returns.return_line(
            ledger,
            payout_id(2),
            line,
            amount_micro=amount_micro,
            reference=f"return {line}",
            reason="account closed",
            at_us=life.tick(),
        )
    budgets.withdraw(ledger, life.stream_id, amount_micro=1_000, reference="back", at_us=life.tick())


def as_written_before(event: Event) -> Event:
    """The event as a hub of before would have recorded it, where there was another version."""
    match event:
        case NodeProbed(session_id=None):
            return NodeProbedV1(
                originator_id=event.originator_id,
                originator_version=event.originator_version,
                at_us=event.at_us,
                outcome=event.outcome,
                sequence=event.sequence,
                latency_us=event.latency_us,
                segment_bytes=event.segment_bytes,
            )
        case SegmentsServed():
            return SegmentsServedV1(
                originator_id=event.originator_id,
                originator_version=event.originator_version,
                at_us=event.at_us,
                node_id=event.node_id,
                batch_header=event.batch_header,
                indices=tuple(event.indices),
                receipts=event.receipts,
                sessions=event.session_ids,
                networks=event.viewer_networks,
                judged=event.judged,
                first_sequence=event.first_sequence,
                network_limit=event.network_limit,
            )
        case _:
            return event


__all__ = ["HOUR_US", "HUB", "ScriptedRail", "as_written_before", "live_through_everything"]
