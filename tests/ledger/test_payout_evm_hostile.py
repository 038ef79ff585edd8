"""Tokens, recipients and chains at their worst, with the books: what they call paid has left, and nothing else has."""

from pathlib import Path
from typing import Any

import pytest
from evm_chain import ETHER, GWEI, OPERATOR
from evm_world import CONFIRMATIONS, DESTINATIONS, World, asked, payment
from log_ledger import LogLedger
from test_payout import AT, FRIENDS, earn
from test_payout_evm_books import balances, finish, planned, run

from ledger.aggregates.payout import Payout
from ledger.application import Ledger
from ledger.rails import OtherPayment, Outcome
from ledger.rails.given import given
from ledger.rails.journal import Journal
from ledger.services import crew, payouts


@pytest.fixture
def funded(ledger: Ledger) -> Ledger:
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    earn(ledger)
    return ledger


# --- tokens


@pytest.mark.parametrize(("decimals", "smallest"), [(0, 10**6), (24, 1), (30, 1)])
def test_a_token_without_decimals_or_with_many(
    funded: Ledger, tmp_path: Path, decimals: int, smallest: int
) -> None:
    world = World(tmp_path, decimals=decimals, supply=10**60)
    before = balances(funded, "available")
    batch_id = planned(funded, world)
    assert batch_id is not None
    finish(funded, world, batch_id)
    assert balances(funded, "paid") == world.amounts_paid == {f: a - a % smallest for f, a in before.items()}
    assert balances(funded, "available") == {f: a % smallest for f, a in before.items()}


@pytest.mark.parametrize(
    ("kind", "state"),
    [("refusing", "failed"), ("mute", "failed"), ("greedy", "unknown"), ("silent", "confirmed")],
)
def test_a_token_that_does_not_do_as_it_is_told(
    funded: Ledger, tmp_path: Path, kind: str, state: str
) -> None:
    """False, nothing at all, a part kept: only what arrived whole is paid, and only what did not move is available."""
    world = World(tmp_path, kind)
    batch_id = planned(funded, world)
    assert batch_id is not None
    if kind == "refusing":
        assert world.asset.token is not None
        world.chain.pause(world.asset.token)
        world.chain.mine()
    for _ in range(3):
        run(funded, world.rail(), batch_id)
        world.chain.mine(CONFIRMATIONS)
        payouts.reconcile(funded, world.rail(), batch_id, at_us=AT)
    assert {line.state.value for line in funded.load(Payout, batch_id).lines.values()} == {state}
    pot = {"failed": "available", "unknown": "in_flight", "confirmed": "paid"}[state]
    assert all(balances(funded, pot).values())
    assert sum(sum(balances(funded, p).values()) for p in ("available", "in_flight", "paid")) == 9_500_000
    if kind == "greedy":  # it moved one base unit less than it was told, and nobody is paid twice for it
        assert {world.got(f) for f in FRIENDS} == {a * 10**12 - 1 for a in balances(funded, pot).values()}


# --- recipients


def test_a_recipient_that_reverts_is_refused_before_anything_is_signed(tmp_path: Path) -> None:
    world = World(tmp_path, None)
    for code in ("0 0 REVERT", ":more @more JUMP"):  # the other takes all the gas there is
        contract = world.chain.place(code)
        world.journal.unlink(missing_ok=True)
        answer = world.rail().submit(payment(0, destination=contract))
        assert (answer.outcome, answer.reference) == (Outcome.FAILED, "the chain refuses this transfer")
        assert not world.chain.pool


def test_a_recipient_that_reverts_after_it_was_signed_fails_and_one_that_takes_it_is_paid(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, None)
    # Whoever sends it no coins makes it refuse all coins from then on.
    contract = world.chain.place(
        "CALLVALUE @paid JUMPI 1 0 SSTORE STOP :paid 0 SLOAD @no JUMPI STOP :no 0 0 REVERT"
    )
    world.rail().submit(payment(0, destination=contract))
    world.chain.mine(CONFIRMATIONS)
    assert asked(world.rail(), 0) == "confirmed"
    world.rail().submit(payment(1, destination=contract))
    waiting = dict(world.chain.pool)
    world.chain.pool.clear()
    world.chain.poke(contract)
    world.chain.mine()
    world.chain.pool |= waiting
    world.chain.mine(CONFIRMATIONS)
    answer = world.rail().look_up("batch:1")
    assert answer.outcome is Outcome.FAILED
    assert answer.reference.startswith("reverted")
    assert world.chain.coins(contract) == 15 * ETHER // 10


# --- amounts


def test_the_smallest_and_the_largest_amounts(tmp_path: Path) -> None:
    for decimals in (6, 18, 30):
        folder = tmp_path / str(decimals)
        folder.mkdir()
        world = World(folder, decimals=decimals, supply=2**200)
        for n, amount_micro in enumerate((1, 10**15, 2**53 - 1)):
            world.rail().submit(payment(n, amount_micro))
        world.chain.mine(CONFIRMATIONS)
        assert [asked(world.rail(), n) for n in range(3)] == ["confirmed"] * 3
        assert list(world.amounts_paid.values()) == [1, 10**15, 2**53 - 1]


# --- the chain goes back, and becomes dear


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("depth", [CONFIRMATIONS - 1, CONFIRMATIONS, CONFIRMATIONS + 1])
def test_a_chain_that_goes_back_as_far_as_the_setting_and_further(
    funded: Ledger, tmp_path: Path, depth: int, keep: bool
) -> None:
    """Less than the setting takes nothing back. What goes further takes back what the books have as paid: the next run
    sends the very same transaction again, also of a payout that is finished, and nothing is paid twice."""
    world = World(tmp_path)
    batch_id = planned(funded, world)
    assert batch_id is not None
    world.chain.mine(CONFIRMATIONS)
    run(funded, world.rail(), batch_id)
    world.chain.mine(CONFIRMATIONS)
    payouts.reconcile(funded, world.rail(), batch_id, at_us=AT)
    assert funded.load(Payout, batch_id).state == "finished"
    paid = balances(funded, "paid")
    world.chain.reorganise(depth, keep=keep)
    back = depth >= CONFIRMATIONS
    assert world.amounts_paid == (dict.fromkeys(FRIENDS, 0) if back else paid)
    assert len(world.chain.pool) == (3 if back and keep else 0)
    signed = world.journal.read_bytes()
    run(funded, world.rail(), batch_id)
    world.chain.mine(CONFIRMATIONS)
    assert balances(funded, "paid") == world.amounts_paid == paid
    assert world.journal.read_bytes() == signed


def test_prices_that_rise_three_times_make_versions_of_one_nonce(tmp_path: Path) -> None:
    """Each is put in place of the one before, none passes the cap, and whichever is mined is the payment."""
    for mined in range(4):
        folder = tmp_path / str(mined)
        folder.mkdir()
        world = World(folder)
        world.rail(fee_cap=2 * GWEI).submit(payment(0))
        versions = [dict(world.chain.pool)]
        for rise in range(3):
            world.chain.pool.clear()
            world.chain.raise_base_fee(10)
            world.chain.pool |= versions[-1]
            world.rail(fee_cap=1_000 * GWEI).prepare([])
            assert len(Journal(world.journal).all()) == rise + 2
            versions.append(dict(world.chain.pool))
        records = list(Journal(world.journal).all().values())
        assert len({(r["nonce"], r["to"], r["amount"]) for r in records}) == 1
        world.chain.pool.clear()
        while world.chain.base_fee > records[mined]["max_fee"]:
            world.chain.mine(5)
        world.chain.pool |= versions[mined]
        world.chain.mine()
        world.chain.pool |= versions[3 - mined]  # another one is too late
        world.chain.mine(CONFIRMATIONS)
        answer = world.rail().look_up("batch:0")
        assert (answer.outcome, answer.reference) == (Outcome.CONFIRMED, records[mined]["hash"])
        assert world.amounts_paid[FRIENDS[0]] == 1_500_000


def test_the_account_itself_is_no_recipient(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.rail().submit(payment(0, destination=OPERATOR.address)).outcome is Outcome.FAILED
    assert world.asset.token is not None
    assert world.rail().submit(payment(1, destination=world.asset.token)).outcome is Outcome.FAILED


# --- a database from a backup of each moment, beside a journal and a chain of today


def test_a_database_restored_from_each_moment_takes_up_what_the_chain_paid(tmp_path: Path) -> None:
    """The same plan again: nothing is signed a second time, and each is paid once."""
    moments = 1
    cut = 0
    while cut < moments:
        folder = tmp_path / str(cut)
        folder.mkdir()
        world, ledger = World(folder), LogLedger()
        of: Any = ledger
        crew.found_crew(of, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
        earn(of)
        batch_id = planned(of, world, FRIENDS[:2])
        assert batch_id is not None
        finish(of, world, batch_id)
        signed = world.journal.read_bytes()
        kept = [n for n in ledger.saved if n >= 4]  # from after what was earned
        moments = len(kept)
        ledger.cut(kept[cut])
        if not payouts.batches(of):
            assert planned(of, world, FRIENDS[:2]) == batch_id
        payouts.approve(of, batch_id, operator="op", at_us=AT)
        finish(of, world, batch_id)
        assert balances(of, "paid") == world.amounts_paid
        assert world.journal.read_bytes() == signed
        assert set(balances(of, "in_flight").values()) == {0}
        cut += 1
    assert moments > 6


def test_a_restored_database_that_plans_otherwise_pays_nobody_again(tmp_path: Path) -> None:
    """Another friend under the number of the lost payout: refused, as the journal knows whom it paid."""
    world, ledger = World(tmp_path), LogLedger()
    of: Any = ledger
    crew.found_crew(of, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    earn(of)
    earned = ledger.size()
    batch_id = planned(of, world, FRIENDS[:2])
    assert batch_id is not None
    finish(of, world, batch_id)
    ledger.cut(earned)
    assert planned(of, world, FRIENDS[1:]) == batch_id
    for _ in range(2):
        with pytest.raises(OtherPayment):
            payouts.run(
                of, world.rail(), batch_id, destinations=DESTINATIONS, at_us=AT, given=given(tmp_path)
            )
    world.chain.mine(CONFIRMATIONS)
    assert list(world.amounts_paid.values()) == [3_166_667, 3_166_667, 0]
