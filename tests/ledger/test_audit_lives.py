"""Whatever the services do, in whatever order, the audit agrees with them."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest
from crew_life import LOG, Life, make_key, probe
from forged_log import ORIGIN

from ledger.aggregates.base import DomainError
from ledger.aggregates.book import Book
from ledger.application import Ledger
from ledger.audit import audit
from ledger.batch import Batch
from ledger.events import EpochSettled
from ledger.ids import BOOK_ID
from ledger.rails import Answer, Outcome, Payment
from ledger.receipt import to_bitmap
from ledger.services import broadcasts, budgets, crew, disputes, nodes, payouts, returns, settle
from ledger.services.destinations import Destination
from ledger.ticket import SignedTicket
from ledger.tlog.publisher import Publisher


@dataclass
class MoodyRail:
    """Pays a key once, and answers whatever the dice say that a rail may answer."""

    dice: random.Random
    name: str = "moody"
    paid: dict[str, Outcome] = field(default_factory=dict)

    def prepare(self, amounts_micro: Sequence[int]) -> None: ...

    def submit(self, payment: Payment) -> Answer:
        known = self.paid.setdefault(
            payment.key, self.dice.choice([Outcome.CONFIRMED, Outcome.FAILED, Outcome.UNKNOWN])
        )
        return Answer(known, "ref")

    def look_up(self, key: str) -> Answer:
        known = self.paid.get(key, Outcome.ABSENT)
        if known is Outcome.UNKNOWN:
            known = self.paid[key] = self.dice.choice([Outcome.CONFIRMED, Outcome.FAILED, Outcome.UNKNOWN])
        elif known is Outcome.FAILED and self.dice.random() < 0.5:
            known = self.paid[key] = Outcome.CONFIRMED
        return Answer(known, "ref")


class RandomLife:
    """A crew of three nodes, several broadcasts, viewers of both kinds; each step is one service call."""

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.dice = random.Random(seed)
        self.life = Life(ledger)
        self.ledger = ledger
        self.rail = MoodyRail(self.dice)
        self.tickets: list[tuple[SignedTicket, str, str]] = []  # ticket, node, who signs
        self.batches: list[tuple[str, bytes]] = []
        self.payouts: list[UUID] = []
        self.moves: dict[UUID, int] = {}  # friend -> how often they said anew where to pay
        self.life.found()
        crew.change_settings(ledger, {"hold_s": 3600, "payout_threshold_micro": 1}, at_us=self.life.tick())
        for name in ("anna", "ben", "cleo"):
            self.life.join(name)
        self.life.go_live(8)

    def steps(self) -> list[Callable[[], object]]:
        usual = [self.issue, self.issue, self.send, self.send, self.send, self.observe, self.publish]
        seldom = [
            self.send_alone,
            self.resend,
            self.next_broadcast,
            self.node_changes,
            self.money_in_and_out,
            self.settings,
            self.an_hour,
            self.pay,
            self.reconcile,
            self.give_back,
            self.dispute,
            self.dispute,
            self.decide,
            self.adjust,
        ]
        return usual * 2 + seldom

    def run(self, count: int) -> None:
        for _ in range(count):
            self.life.tick(self.dice.choice([1, 1, 5, 40]))
            with suppress(DomainError):  # a command that the state does not allow: it changed nothing
                self.dice.choice(self.steps())()

    # --- delivery

    def issue(self) -> None:
        node, viewer = self.dice.choice(list(self.life.nodes)), self.dice.choice(["vera", "walt", None])
        self.tickets.append((self.life.ticket(node, viewer), node, viewer or node))

    def _receipt(self, ticket: SignedTicket, signer: str) -> bytes:
        high = self.dice.choice([3, 5, 6, 30])
        if self.dice.random() < 0.1:
            signer = "stranger"
        sequences = sorted({self.dice.randrange(high) for _ in range(self.dice.randrange(6))})
        return self.life.receipt(ticket, signer, sequences, wrong_digest=self.dice.random() < 0.1)

    def send(self) -> None:
        if not self.tickets:
            return
        _, node, _ = self.dice.choice(self.tickets)
        some = self.dice.choices(self.tickets, k=self.dice.randrange(1, 6))
        receipts = [
            self._receipt(t, signer) for t, at, signer in some if at == node or self.dice.random() < 0.2
        ]
        if self.dice.random() < 0.2:
            receipts.append(self.dice.randbytes(205))
        at_s = self.life.now_us // 1_000_000
        self.batches.append((node, Batch.sign(make_key(node), at_s - 10, at_s, receipts).encode()))
        self.life.desk.judge_batch(self.batches[-1][1], at_us=self.life.now_us)

    def resend(self) -> None:
        if self.batches:
            self.life.desk.judge_batch(self.dice.choice(self.batches)[1], at_us=self.life.now_us)

    def send_alone(self) -> None:
        if self.tickets:
            ticket, _, signer = self.dice.choice(self.tickets)
            receipt = self.life.receipt(ticket, signer, [self.dice.randrange(8)])
            self.life.desk.judge_receipt(receipt, at_us=self.life.now_us)

    def observe(self) -> None:
        if self.tickets:
            ticket = self.dice.choice(self.tickets)[0].ticket
            first = ticket.first_sequence
            self.life.desk.observe(
                ticket.session_id,
                base_sequence=first,
                polled=to_bitmap(first, range(first, first + self.dice.randrange(1, 9))),
                fetched_at_hub=to_bitmap(first, [first + self.dice.randrange(4)]),
                at_us=self.life.now_us,
            )

    def publish(self) -> None:
        self.life.publish(self.dice.randrange(1, 4))

    def next_broadcast(self) -> None:
        broadcasts.end_broadcast(self.ledger, self.life.broadcast.id, reason="over", at_us=self.life.tick())
        self.life.go_live(6)

    def node_changes(self) -> None:
        nid, at_us = self.dice.choice(list(self.life.nodes.values()))[1].id, self.life.now_us
        change = self.dice.choice(["suspend", "reinstate", "reinstate", "move", "online", "probe"])
        if change == "move":
            nodes.change_node(self.ledger, nid, lambda n: n.see_at(self.dice.randbytes(16), at_us=at_us))
        elif change == "probe":
            probe(self.ledger, nid, self.dice, [t for t, _, _ in self.tickets], at_us=at_us)
        elif change == "online":
            nodes.change_node(self.ledger, nid, lambda n: n.go_online(at_us=at_us))
        elif change == "suspend":
            nodes.suspend(self.ledger, nid, reason="dice", at_us=at_us)
        else:
            nodes.reinstate(self.ledger, nid, reason="dice", at_us=at_us)

    # --- money

    def money_in_and_out(self) -> None:
        stream, at_us = self.life.stream_id, self.life.now_us
        amount = self.dice.randrange(1, 10**7)
        what = self.dice.choice([budgets.deposit, budgets.withdraw])
        what(self.ledger, stream, amount_micro=amount, reference=f"r{at_us}", at_us=at_us)
        if self.dice.random() < 0.5:
            rate = self.dice.choice([10**9, 10**11, 10**12])
            budgets.set_tariff(
                self.ledger, stream, rate_micro_per_gb=rate, plain_bp=self.dice.randrange(10_000), at_us=at_us
            )

    def settings(self) -> None:
        changes = {
            "prefix_sessions_max": self.dice.randrange(1, 4),
            "plain_sample_factor": self.dice.randrange(1, 12),
            "hold_s": self.dice.choice([0, 3600]),
            "node_rate_floor": self.dice.choice([0, 1, 5_000_000]),
            "rate_to_the_byte": self.dice.choice([0, 1]),
            "late_by_own_tariff": self.dice.choice([0, 1]),
            "floor_most_bp": self.dice.choice([0, 5_000, 10_000]),
        }
        crew.change_settings(self.ledger, changes, at_us=self.life.now_us)

    def an_hour(self) -> None:
        self.life.tick(self.dice.choice([1800, 3600, 9000]))
        self.life.settle()
        hold_s = crew.settings(self.ledger).hold_s
        settle.release_due_holds(self.ledger, hold_s=hold_s, at_us=self.life.now_us)

    def pay(self) -> None:
        friends = [n.friend_id for _, n in self.life.nodes.values()]
        where = {f: Destination("someone", bytes([self.moves.get(f, 0)]) * 16) for f in friends}
        plan = payouts.plan(
            self.ledger,
            rail=self.rail.name,
            threshold_micro=1,
            destinations={f: d.commitment for f, d in where.items()},
            at_us=self.life.tick(),
        )
        if plan.batch_id is None:
            return
        if self.dice.random() < 0.2:
            payouts.cancel(self.ledger, plan.batch_id, reason="dice", at_us=self.life.tick())
            return
        self.payouts.append(plan.batch_id)
        payouts.approve(self.ledger, plan.batch_id, operator="op", at_us=self.life.tick())
        if self.dice.random() < 0.3:
            where.popitem()  # one of them had their destination erased
        payouts.run(self.ledger, self.rail, plan.batch_id, destinations=where, at_us=self.life.tick())

    def dispute(self) -> None:
        settled = [
            r for r in self.ledger.read(0, 50_000) if isinstance(r.event, EpochSettled) and r.event.lines
        ]
        if settled:
            at = self.dice.choice(settled)
            line = self.dice.randrange(len(at.event.lines))
            mine = at.event.lines[line].friend_id if self.dice.random() < 0.5 else None
            disputes.open_dispute(
                self.ledger,
                at.position,
                line,
                reason="dice",
                friend_id=mine,
                opened_by="friend" if mine else "creator",
                at_us=self.life.tick(),
            )

    def decide(self) -> None:
        for dispute in disputes.disputes(self.ledger):
            if dispute.state == "open" and self.dice.random() < 0.5:
                disputes.decide_dispute(
                    self.ledger,
                    dispute.number,
                    uphold=self.dice.random() < 0.5,
                    reason="dice",
                    at_us=self.life.tick(),
                )

    def adjust(self) -> None:
        friends = [f"friend:{n.friend_id}:available" for _, n in self.life.nodes.values()]
        places = [f"budget:{self.life.stream_id}", "fees", self.dice.choice(friends)]
        source, target = self.dice.sample(places, 2)
        disputes.adjust(
            self.ledger,
            source=source,
            target=target,
            amount_micro=self.dice.choice([1, 1_000]),
            reference=f"a{self.life.now_us}",
            reason="dice",
            rests_on=(self.dice.randrange(self.ledger.size()),),
            at_us=self.life.tick(),
        )

    def give_back(self) -> None:
        """What was paid comes back, whole or in part."""
        book = self.ledger.load_or_new(Book, BOOK_ID)
        left = [(key, line.left_micro) for key, line in sorted(book.paid.items()) if line.left_micro]
        if left:
            (batch_id, line), whole = self.dice.choice(left)
            made = returns.return_line(
                self.ledger,
                batch_id,
                line,
                amount_micro=self.dice.choice([None, 1, whole]),
                reference=f"back {self.life.now_us}",
                reason="account closed",
                at_us=self.life.tick(),
            )
            if self.dice.random() < 0.7:
                self.moves[made.friend_id] = self.moves.get(made.friend_id, 0) + 1

    def reconcile(self) -> None:
        for batch_id in self.payouts:
            payouts.reconcile(self.ledger, self.rail, batch_id, at_us=self.life.tick())


@pytest.mark.parametrize("seed", range(6))
def test_any_life_passes_the_audit_with_the_books_balances(ledger: Ledger, tmp_path: Path, seed: int) -> None:
    life = RandomLife(ledger, seed)
    publisher = Publisher(ledger, tmp_path, LOG, ORIGIN)
    kept: str | None = None
    for _ in range(4):
        life.run(40)
        publisher.publish(at_us=life.life.now_us)
        report = audit(tmp_path, since=kept, jobs=2)
        assert report.problem is None
        book = ledger.load(Book, BOOK_ID)
        assert report.balances == {a: m for a, m in sorted(book.accounts.items()) if m}
        assert report.size == ledger.size()
        kept = report.checkpoint
    assert report.counts.accepted > 2
