"""Chains drop, replace and reorganise; nodes are away, late, or lie: a line is paid once or not at all."""

import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from evm_chain import ETHER, GWEI
from evm_liars import LIES, Liar
from evm_world import CONFIRMATIONS, World, asked, payment
from test_payout import FRIENDS

from ledger.rails import Answer, Outcome, journal
from ledger.rails.evm.fees import FeeTooHigh
from ledger.rails.evm.node import NodeError
from ledger.rails.evm.rail import InsufficientFunds, UnknownTransactions, WrongChain


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- dropped, replaced, reorganised


def test_a_dropped_transaction_is_sent_again_as_it_was(world: World) -> None:
    first = world.rail().submit(payment(0)).reference
    world.rail().submit(payment(1))
    world.chain.pool.clear()
    world.chain.mine(CONFIRMATIONS)
    assert (asked(world.rail(), 0), world.amounts_paid[FRIENDS[0]]) == ("unknown", 0)
    world.rail().prepare([])
    world.chain.mine(CONFIRMATIONS)
    assert world.rail().look_up("batch:0") == Answer(Outcome.CONFIRMED, first)
    assert asked(world.rail(), 1) == "confirmed"


@pytest.mark.parametrize("old_one_survives", [True, False])
def test_a_transaction_that_became_too_cheap_is_replaced_and_paid_once(
    world: World, old_one_survives: bool
) -> None:
    first = world.rail(fee_cap=2 * GWEI).submit(payment(0)).reference
    kept = dict(world.chain.pool)
    world.chain.pool.clear()
    world.chain.raise_base_fee(10)
    if old_one_survives:
        world.chain.pool |= kept
    world.rail(fee_cap=2 * GWEI + 1).look_up("batch:0")
    with pytest.raises(FeeTooHigh):
        world.rail(fee_cap=2 * GWEI).prepare([])
    world.rail().prepare([])
    world.rail().prepare([])  # twice is once
    assert len(journal.Journal(world.journal).all()) == 2
    world.chain.mine(CONFIRMATIONS)
    answer = world.rail().look_up("batch:0")
    assert answer.outcome is Outcome.CONFIRMED
    assert answer.reference != first
    assert world.amounts_paid[FRIENDS[0]] == 1_500_000


def test_of_two_replacements_at_once_the_one_on_disk_is_sent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other is in no journal: mined, it would be a stranger's use of the nonce, and the line be paid again."""
    world.rail(fee_cap=2 * GWEI).submit(payment(0))
    world.chain.pool.clear()
    world.chain.raise_base_fee(10)
    slow, add = world.rail(), journal.Journal.add

    def overtaken(self: journal.Journal, key: str, make: Any) -> bool:
        monkeypatch.setattr(journal.Journal, "add", add)
        world.rail(fee_cap=5 * GWEI).prepare([])  # with other fees
        world.chain.pool.clear()  # and the node forgets it
        return add(self, key, make)

    monkeypatch.setattr(journal.Journal, "add", overtaken)
    slow.prepare([])
    assert len(journal.Journal(world.journal).all()) == 2
    world.chain.mine(CONFIRMATIONS)
    assert asked(world.rail(), 0) == "confirmed"
    assert world.amounts_paid[FRIENDS[0]] == 1_500_000


def test_the_older_version_may_be_the_one_that_is_mined(world: World) -> None:
    first = world.rail(fee_cap=2 * GWEI).submit(payment(0)).reference
    kept = dict(world.chain.pool)
    world.chain.pool.clear()
    world.chain.raise_base_fee(10)
    world.rail().prepare([])
    world.chain.pool.clear()
    world.chain.mine(12)
    world.chain.pool |= kept
    world.chain.mine(CONFIRMATIONS)
    assert world.rail().look_up("batch:0") == Answer(Outcome.CONFIRMED, first)
    for at in range(1, 12):  # a node that does not know its receipt yet
        said = asked(world.rail(Liar(world.chain.ask, at, LIES["says None"])), 0)
        assert said in ("confirmed", "unknown")
    world.rail().prepare([])
    world.chain.mine(CONFIRMATIONS)
    assert world.amounts_paid[FRIENDS[0]] == 1_500_000


def test_a_nonce_that_went_to_another_transaction_fails_the_line_when_that_is_deep_enough(
    world: World,
) -> None:
    world.chain.mine(9)
    world.rail().submit(payment(0))
    world.rail().submit(payment(1))
    world.chain.spend_nonce(1)
    for _ in range(CONFIRMATIONS):
        assert asked(world.rail(), 0) == "unknown"
        world.chain.mine()
    answer = world.rail().look_up("batch:0")
    assert answer.outcome is Outcome.FAILED
    assert answer.reference.startswith("nonce used by 0x")
    assert asked(world.rail(), 1) == "confirmed"
    assert world.amounts_paid[FRIENDS[0]] == 0


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("mined", [1, 2])
def test_a_reorganised_payment_is_paid_once(world: World, keep: bool, mined: int) -> None:
    world.rail().submit(payment(0))
    world.chain.mine(mined)
    world.chain.reorganise(mined, keep=keep)
    assert asked(world.rail(), 0) == "unknown"
    world.rail().prepare([])
    world.chain.mine(1)
    world.chain.reorganise(1, keep=keep)
    world.rail().submit(payment(0))
    world.chain.mine(CONFIRMATIONS)
    assert asked(world.rail(), 0) == "confirmed"
    assert world.amounts_paid[FRIENDS[0]] == 1_500_000


# --- nodes that are away, late, or lie


def one_wrong_answer(world: World, n: int, at: int, lie: str, *, fails: bool) -> bool:
    """In the life of payment `n`, the `at`-th answer is wrong; False when it has fewer. What follows must be true."""
    friend, before = FRIENDS[n % 3], world.got(FRIENDS[n % 3])
    liar = Liar(world.chain.ask, at, LIES[lie])
    rail, honest = world.rail(liar), world.rail()
    with suppress(NodeError, WrongChain, UnknownTransactions, FeeTooHigh, InsufficientFunds):
        rail.prepare([10**6])
        rail.submit(payment(n, 10**6))
    if fails and world.chain.pool and honest.look_up(f"batch:{n}").outcome is Outcome.UNKNOWN:
        world.chain.spend_nonce(next(iter(world.chain.pool))[1])
    world.chain.mine(CONFIRMATIONS)
    answer = Answer(Outcome.UNKNOWN)
    with suppress(WrongChain):
        answer = rail.look_up(f"batch:{n}")
    world.chain.mine()
    truth = honest.look_up(f"batch:{n}").outcome
    assert world.got(friend) - before == (ETHER if truth is Outcome.CONFIRMED else 0), (lie, at)
    assert answer.outcome in (truth, Outcome.UNKNOWN, Outcome.ABSENT), (lie, at, answer)
    return liar.left <= 0


@pytest.mark.parametrize("fails", [False, True])
def test_one_wrong_answer_makes_no_final_answer_wrong(tmp_path: Path, fails: bool) -> None:
    """At every call, of a payment that is made and of one whose nonce went to another; a lie for each, in turn."""
    world, at, lies = World(tmp_path), 1, list(LIES)
    random.Random(7).shuffle(lies)
    while one_wrong_answer(world, at, at, lies[at % len(lies)], fails=fails):
        at += 1
    assert at > 20


def test_no_wrong_answer_in_a_look_up_makes_a_final_answer_wrong(tmp_path: Path) -> None:
    """Each lie at each call, about a payment that is made, one that is reverted and one whose nonce went elsewhere."""
    world = World(tmp_path)
    token = world.asset.token
    assert token is not None
    world.rail().submit(payment(0))
    world.chain.mine()
    for n in (1, 2):
        world.rail().submit(payment(n))
    waiting = dict(world.chain.pool)
    world.chain.pool.clear()
    world.chain.pause(token)
    world.chain.mine()
    world.chain.pool |= waiting
    world.chain.spend_nonce(3)
    world.chain.mine(CONFIRMATIONS)
    for n, truth in enumerate(("confirmed", "failed", "failed")):
        assert asked(world.rail(), n) == truth
        for name, lie in LIES.items():
            at, left = 0, 0
            while left <= 0:
                at += 1
                liar = Liar(world.chain.ask, at, lie)
                with suppress(WrongChain):
                    assert asked(world.rail(liar), n) in (truth, "unknown"), (name, at)
                left = liar.left


def test_a_receipt_of_a_block_that_is_gone_is_no_proof(world: World) -> None:
    world.rail().submit(payment(0))
    world.chain.mine(2)
    receipts: list[object] = []

    def stale(method: str, params: Sequence[object]) -> object:
        answer = world.chain.ask(method, params)
        if method != "eth_getTransactionReceipt":
            return answer
        receipts.append(answer)
        return receipts[0]

    assert asked(world.rail(stale), 0) == "unknown"
    world.chain.reorganise(2, keep=False)
    world.chain.mine(2 * CONFIRMATIONS)
    assert asked(world.rail(stale), 0) == "unknown"
    world.rail(stale).prepare([])
    world.chain.mine(CONFIRMATIONS)
    assert asked(world.rail(stale), 0) == "unknown"
    assert asked(world.rail(), 0) == "confirmed"


def test_a_receipt_of_a_block_that_gave_way_to_one_with_the_same_payment_is_no_proof(world: World) -> None:
    """On the other branch, at the same height, the transfer was reverted; the node still shows the old receipt."""
    token = world.asset.token
    assert token is not None
    sent = world.rail().submit(payment(0)).reference
    waiting = dict(world.chain.pool)
    world.chain.pool.clear()
    world.chain.mine()
    world.chain.pool |= waiting
    world.chain.mine()
    paid = world.chain.ask("eth_getTransactionReceipt", [sent])
    world.chain.reorganise(2, keep=False)
    world.chain.pause(token)
    world.chain.mine()
    world.chain.pool |= waiting
    world.chain.mine(CONFIRMATIONS)

    def stale(method: str, params: Sequence[object]) -> object:
        return paid if method == "eth_getTransactionReceipt" else world.chain.ask(method, params)

    assert asked(world.rail(stale), 0) == "unknown"
    assert asked(world.rail(), 0) == "failed"
    assert world.got(FRIENDS[0]) == 0


def test_a_coin_that_arrived_is_not_called_reverted(tmp_path: Path) -> None:
    """By a node that says so in the receipt, while the recipient has it."""
    world = World(tmp_path, None)
    world.rail().submit(payment(0))
    world.chain.mine(CONFIRMATIONS)

    def lies(method: str, params: Sequence[object]) -> object:
        answer = world.chain.ask(method, params)
        return LIES["twists status"](method, answer)

    assert asked(world.rail(lies), 0) == "unknown"
    assert asked(world.rail(), 0) == "confirmed"


def test_a_nonce_that_went_elsewhere_before_the_block_in_which_it_was_signed(world: World) -> None:
    """The chain went back, and the other transaction is further down than the newest block was then."""
    world.chain.mine(3)
    world.rail().submit(payment(0))
    world.chain.pool.clear()
    world.chain.reorganise(2, keep=False)
    world.chain.spend_nonce(1)
    world.chain.mine(2 * CONFIRMATIONS)
    assert asked(world.rail(), 0) == "failed"
