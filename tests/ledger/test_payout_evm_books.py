"""Paying on a chain with the books: whatever dies, they say what the chain paid."""

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from evm_chain import GWEI, LocalChain, RpcError
from evm_liars import LIES, Liar
from evm_world import COMMITMENTS, CONFIRMATIONS, DESTINATIONS, World
from test_payout import AT, FRIENDS, Killed, earn

from ledger.aggregates.book import Book
from ledger.aggregates.payout import LineState, Payout
from ledger.application import Ledger
from ledger.ids import BOOK_ID
from ledger.rails import journal
from ledger.rails.evm.fees import FeeTooHigh
from ledger.rails.evm.node import NodeError, Transport
from ledger.rails.evm.rail import EvmRail, InsufficientFunds, UnknownTransactions, WrongChain
from ledger.services import crew, payouts


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- with the books


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    earn(ledger)
    return ledger


def balances(ledger: Ledger, state: str) -> dict[UUID, int]:
    book = ledger.load(Book, BOOK_ID)
    return {f: book.balance(f"friend:{f}:{state}") for f in FRIENDS}


def planned(ledger: Ledger, world: World, friends: Sequence[UUID] = FRIENDS) -> UUID | None:
    plan = payouts.plan(
        ledger,
        rail=world.asset.name,
        threshold_micro=1,
        destinations={f: COMMITMENTS[f] for f in friends},
        at_us=AT,
        quantum_micro=world.asset.quantum_micro,
    )
    if plan.batch_id is not None:
        payouts.approve(ledger, plan.batch_id, operator="op", at_us=AT)
    return plan.batch_id


def run(ledger: Ledger, rail: EvmRail, batch_id: UUID) -> None:
    payouts.run(ledger, rail, batch_id, destinations=DESTINATIONS, at_us=AT)


def finish(ledger: Ledger, world: World, batch_id: UUID) -> None:
    """As the operator goes on, with nothing in the way any more."""
    for _ in range(4):
        run(ledger, world.rail(), batch_id)
        world.chain.mine(CONFIRMATIONS)
        payouts.reconcile(ledger, world.rail(), batch_id, at_us=AT)
        if not ledger.load(Payout, batch_id).open:
            return
    raise AssertionError("lines stay open")


def test_what_has_no_base_unit_stays_available(funded: Ledger, tmp_path: Path) -> None:
    world = World(tmp_path, decimals=2)
    before = balances(funded, "available")
    batch_id = planned(funded, world)
    assert batch_id is not None
    finish(funded, world, batch_id)
    assert balances(funded, "available") == {f: a % 10_000 for f, a in before.items()}
    assert balances(funded, "paid") == world.amounts_paid == {f: a - a % 10_000 for f, a in before.items()}


class Deadly:
    """Kills at the n-th dangerous instruction: around each save, each question to the node, each write on disk."""

    def __init__(self, at: int, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, chain: LocalChain) -> None:
        self.left, self.chain = at, chain
        save, add = ledger.save, journal.Journal.add

        def saving(*aggregates: Any) -> list[int]:
            self.step()
            positions = save(*aggregates)
            self.step()
            return positions

        def adding(self_: journal.Journal, key: str, make: Callable[..., Any]) -> bool:
            def made(known: Mapping[str, Any]) -> Any:
                record = make(known)
                self.step()  # signed, and not on disk
                return record

            new = add(self_, key, made)
            self.step()
            return new

        monkeypatch.setattr(ledger, "save", saving)
        monkeypatch.setattr(journal.Journal, "add", adding)

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed("here")

    def ask(self, method: str, params: Sequence[object]) -> object:
        self.step()
        answer = self.chain.ask(method, params)
        self.step()
        return answer


@pytest.mark.parametrize(("lines", "every"), [(1, 1), (2, 7)])
def test_killed_at_any_instruction_each_line_is_paid_exactly_once(
    funded: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int, every: int
) -> None:
    world, friends = World(tmp_path), FRIENDS[:lines]
    at, survived = 1, False
    while not survived:
        batch_id = planned(funded, world, friends)
        assert batch_id is not None
        with monkeypatch.context() as patched, suppress(Killed):
            rail = world.rail(Deadly(at, funded, patched, world.chain).ask)
            run(funded, rail, batch_id)
            world.chain.mine(CONFIRMATIONS)
            payouts.reconcile(funded, rail, batch_id, at_us=AT)
            survived = True
        finish(funded, world, batch_id)
        for friend in friends:
            assert balances(funded, "paid")[friend] == world.amounts_paid[friend]
            assert balances(funded, "in_flight")[friend] == balances(funded, "available")[friend] == 0
        at += every
        earn(funded, at)
    assert at > 40 * lines


def test_runs_at_once_pay_once(funded: Ledger, tmp_path: Path, database_url: str) -> None:
    world = World(tmp_path)
    batch_id = planned(funded, world)
    assert batch_id is not None
    ledgers = [Ledger(database_url) for _ in range(3)]
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda one: run(one, world.rail(), batch_id), ledgers))
    finally:
        for one in ledgers:
            one.close()
    assert [record["nonce"] for record in journal.Journal(world.journal).all().values()] == [1, 2, 3]
    finish(funded, world, batch_id)
    assert balances(funded, "paid") == world.amounts_paid
    assert set(balances(funded, "available").values()) == {0}


class EvmLife:
    """An operator, a node and a chain that do whatever the dice say."""

    def __init__(self, ledger: Ledger, world: World, seed: int) -> None:
        self.ledger, self.world, self.dice = ledger, world, random.Random(seed)
        self.epoch = 0

    def steps(self, count: int) -> None:
        often = [self.run, self.run, self.reconcile, self.reconcile, self.mine, self.mine]
        seldom = [self.plan, self.plan, self.drop, self.reorganise, self.other_use, self.dearer]
        for _ in range(count):
            self.dice.choice(often + seldom)()
            self.check()

    def check(self) -> None:
        paid, in_flight, got = (
            balances(self.ledger, "paid"),
            balances(self.ledger, "in_flight"),
            self.world.amounts_paid,
        )
        for friend in FRIENDS:
            assert got[friend] <= paid[friend] + in_flight[friend]
            assert paid[friend] <= got[friend]

    def open(self) -> list[UUID]:
        return [p.id for p in payouts.batches(self.ledger) if p.open]

    def transport(self) -> Transport:
        lie = LIES[self.dice.choice(list(LIES))] if self.dice.random() < 0.5 else lambda _, answer: answer
        return Liar(self.world.chain.ask, self.dice.randrange(1, 30), lie)

    def rail(self) -> EvmRail:
        return self.world.rail(self.transport(), fee_cap=self.dice.choice([2, 20, 200]) * GWEI)

    def plan(self) -> None:
        if not self.open():
            self.epoch += 1
            earn(self.ledger, self.epoch)
            planned(self.ledger, self.world)

    def run(self) -> None:
        for batch_id in self.open():
            with suppress(NodeError, WrongChain, UnknownTransactions, FeeTooHigh, InsufficientFunds):
                run(self.ledger, self.rail(), batch_id)

    def reconcile(self) -> None:
        for batch_id in self.open():
            with suppress(WrongChain):
                payouts.reconcile(self.ledger, self.rail(), batch_id, at_us=AT)

    def mine(self) -> None:
        self.world.chain.mine(self.dice.randrange(1, 4))

    def drop(self) -> None:
        for place in list(self.world.chain.pool):
            if self.dice.random() < 0.5:
                del self.world.chain.pool[place]

    def reorganise(self) -> None:
        blocks = self.dice.randrange(1, CONFIRMATIONS)
        if self.world.chain.height > blocks + 2:
            self.world.chain.reorganise(blocks, keep=self.dice.random() < 0.5)
            # The other branch is at least as long, or nobody would have gone over to it.
            waiting, self.world.chain.pool = self.world.chain.pool, {}
            self.world.chain.mine(self.dice.randrange(blocks))
            self.world.chain.pool = waiting
            self.world.chain.mine(blocks)

    def other_use(self) -> None:
        if self.world.chain.pool:
            with suppress(RpcError):  # known, or too cheap for what it would replace
                self.world.chain.spend_nonce(self.dice.choice(list(self.world.chain.pool))[1])

    def dearer(self) -> None:
        if self.dice.random() < 0.5:
            self.world.chain.raise_base_fee(3)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_the_books_say_what_the_chain_paid(
    funded: Ledger, tmp_path: Path, seed: int
) -> None:
    world = World(tmp_path, (None, "standard")[seed % 2])
    life = EvmLife(funded, world, seed)
    planned(funded, world)
    life.steps(60)
    while life.open():
        finish(funded, world, life.open()[0])
    assert balances(funded, "paid") == world.amounts_paid
    assert set(balances(funded, "in_flight").values()) == {0}
    states = {line.state for p in payouts.batches(funded) for line in p.lines.values()}
    assert states <= {LineState.CONFIRMED, LineState.FAILED}
