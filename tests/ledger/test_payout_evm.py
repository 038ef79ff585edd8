"""Paying on a chain, when all goes well, and what is refused before anything is signed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from evm_chain import ETHER, GWEI, OPERATOR, STRANGER
from evm_world import CONFIRMATIONS, World, asked, payment
from hypothesis import given
from hypothesis import strategies as st
from test_payout import FRIENDS

from ledger.rails import Answer, OtherPayment, Outcome, journal
from ledger.rails.evm.address import AddressError, check_address
from ledger.rails.evm.asset import AmountError, Asset
from ledger.rails.evm.fees import Fees, FeeTooHigh, replacement, suggest
from ledger.rails.evm.rail import MAX_GAS, InsufficientFunds, UnknownTransactions, WrongChain


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# --- amounts, addresses, fees


@given(st.integers(1, 10**15), st.integers(0, 30))
def test_an_amount_becomes_base_units_exactly_or_is_refused(amount_micro: int, decimals: int) -> None:
    asset = Asset(1, None, decimals, "EUR")
    planned = amount_micro - amount_micro % asset.quantum_micro
    if planned:
        assert asset.base_units(planned) * 10**6 == planned * 10**decimals
    if amount_micro != planned:
        with pytest.raises(AmountError):
            asset.base_units(amount_micro)
    for none in (0, -asset.quantum_micro):
        with pytest.raises(AmountError):
            asset.base_units(none)


@given(st.binary(min_size=20, max_size=20), st.integers(0, 39))
def test_an_address_with_one_letter_in_the_wrong_case_is_no_address(raw: bytes, at: int) -> None:
    address = Account.from_key(raw.rjust(32, b"\x01")).address
    assert check_address(address) == address
    wrong = address[: 2 + at] + address[2 + at].swapcase() + address[3 + at :]
    if wrong != address:
        with pytest.raises(AddressError) as error:
            check_address(wrong)
        assert wrong[2:] not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "0x", "0x" + "0" * 40, "x" * 42, OPERATOR.address + "0", OPERATOR.address[2:]]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        check_address(text)


numbers = st.integers(0, 10**12)


@given(numbers, numbers, st.integers(1, 10**12), numbers, numbers)
def test_fees_stay_under_the_cap_and_a_replacement_pays_more(
    base: int, tip: int, cap: int, old_fee: int, old_tip: int
) -> None:
    if base >= cap:
        with pytest.raises(FeeTooHigh):
            suggest(base, tip, cap)
        return
    now = suggest(base, tip, cap)
    assert base <= now.max_fee <= cap
    assert now.tip <= now.max_fee
    old = Fees(max(old_fee, old_tip), old_tip)
    better = replacement(old, now, cap)
    if better is not None:
        assert better.max_fee <= cap
        assert better.tip <= better.max_fee
        assert better.max_fee * 10 >= old.max_fee * 11
        assert better.tip * 10 >= old.tip * 11


# --- one payment


@pytest.mark.parametrize("kind", [None, "standard", "silent"])
def test_a_payment_is_confirmed_when_it_is_deep_enough(tmp_path: Path, kind: str | None) -> None:
    world = World(tmp_path, kind)
    rail = world.rail()
    assert asked(rail, 0) == "absent"
    rail.prepare([1_500_000])
    sent = rail.submit(payment(0))
    for _ in range(CONFIRMATIONS):
        assert asked(rail, 0) == "unknown"
        assert rail.submit(payment(0)) == sent
        world.chain.mine()
    assert rail.look_up("batch:0") == Answer(Outcome.CONFIRMED, sent.reference)
    assert world.got(FRIENDS[0]) == 15 * ETHER // 10


def test_payments_have_one_nonce_each_in_order(world: World) -> None:
    rail = world.rail()
    for n in (0, 1, 2, 1, 0):
        rail.submit(payment(n))
    world.chain.mine()
    assert world.amounts_paid == dict.fromkeys(FRIENDS, 1_500_000)
    nonces = [record["nonce"] for record in journal.Journal(world.journal).all().values()]
    assert nonces == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"destination": "0x" + "ab" * 20}, "checksum"),
        ({"destination": "DE02"}, "not an address"),
        ({"destination": OPERATOR.address}, "paying account"),
        ({"unit": "USD"}, "pay EUR"),
        ({"amount_micro": 1_500_001}, "multiple"),
    ],
)
def test_what_can_never_be_paid_fails_and_nothing_is_signed(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    world = World(tmp_path, decimals=5)
    answer = world.rail().submit(payment(0, **changes))
    assert answer.outcome is Outcome.FAILED
    assert why in answer.reference
    assert changes.get("destination", "?") not in answer.reference
    assert world.rail().look_up("batch:0") == answer
    assert world.rail().submit(payment(0)) == answer  # for ever, even when it is asked better
    world.chain.mine(5)
    assert world.amounts_paid == dict.fromkeys(FRIENDS, 0)


@pytest.mark.parametrize(
    ("kind", "paused", "why"),
    [
        ("refusing", "before", "the chain refuses"),
        ("refusing", "after", "moved nothing"),
        ("standard", "before", "the chain refuses"),
        ("standard", "after", "reverted"),
        ("mute", "never", "moved nothing"),
    ],
)
def test_a_token_that_does_not_pay_makes_the_line_fail(
    tmp_path: Path, kind: str, paused: str, why: str
) -> None:
    world = World(tmp_path, kind)
    token = world.asset.token
    assert token is not None
    if paused == "before":
        world.chain.pause(token)
        world.chain.mine()
    world.rail().submit(payment(0))
    if paused == "after":
        waiting = dict(world.chain.pool)
        world.chain.pool.clear()
        world.chain.pause(token)
        world.chain.mine()
        world.chain.pool |= waiting
    world.chain.mine(CONFIRMATIONS)
    answer = world.rail().look_up("batch:0")
    assert answer.outcome is Outcome.FAILED
    assert answer.reference.startswith(why)
    assert world.got(FRIENDS[0]) == 0


def test_a_token_that_keeps_a_part_is_never_called_paid_nor_failed(tmp_path: Path) -> None:
    world = World(tmp_path, "greedy")
    world.rail().submit(payment(0))
    world.chain.mine(2 * CONFIRMATIONS)
    assert asked(world.rail(), 0) == "unknown"


# --- before anything is reserved


def test_too_little_of_the_token_or_of_the_coin_is_said_before(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(InsufficientFunds, match="base units to be paid"):
        world.rail().prepare([10**15] * 10**4)
    poor = Account.from_key(b"p" * 32)
    with pytest.raises(InsufficientFunds, match="wei that fees may take"):
        world.rail(account=poor, from_nonce=None).prepare([1])
    world.rail().prepare([10**6])


def test_what_is_signed_and_not_in_a_block_is_counted_too(tmp_path: Path) -> None:
    world = World(tmp_path, None)
    coins = world.chain.coins(OPERATOR.address)
    most = coins * 10**6 // ETHER - 10**6
    world.rail().submit(payment(0, most))
    with pytest.raises(InsufficientFunds):
        world.rail().prepare([10**6])
    assert world.rail().estimate([]).asset_needed == most * 10**12


def test_a_wrong_chain_token_or_number_of_decimals_is_refused(world: World) -> None:
    asset = world.asset
    for other, why in (
        (Asset(1, asset.token, 18, "EUR"), "the node is on chain"),
        (Asset(asset.chain_id, asset.token, 6, "EUR"), "18 decimals"),
        (Asset(asset.chain_id, STRANGER.address, 18, "EUR"), "no ERC-20"),
    ):
        with pytest.raises(WrongChain, match=why):
            world.rail(asset=other).prepare([10**6])
    world.rail().submit(payment(0))
    with pytest.raises(WrongChain, match="another asset"):
        world.rail(asset=Asset(asset.chain_id, None, 18, "EUR")).look_up("batch:0")
    with pytest.raises(OtherPayment, match="another amount"):
        world.rail().submit(payment(0, 2_000_000))


def test_fees_above_the_cap_wait(world: World) -> None:
    with pytest.raises(FeeTooHigh, match="try again later"):
        world.rail(fee_cap=GWEI // 10).prepare([1])
    with pytest.raises(FeeTooHigh):
        world.rail(fee_cap=GWEI // 10).submit(payment(0))
    assert asked(world.rail(), 0) == "absent"


def test_a_journal_that_does_not_know_what_the_chain_knows_signs_nothing(world: World) -> None:
    rail = world.rail()
    rail.prepare([1])
    rail.submit(payment(0))
    world.chain.mine(CONFIRMATIONS)
    world.journal.unlink()
    for attempt in (lambda: world.rail().prepare([1]), lambda: world.rail().submit(payment(1))):
        with pytest.raises(UnknownTransactions, match="--from-nonce 2"):
            attempt()
    world.rail(from_nonce=2).submit(payment(1))
    world.chain.mine(CONFIRMATIONS)
    assert asked(world.rail(), 1) == "confirmed"


def test_an_older_journal_signs_nothing_while_what_it_does_not_know_waits_for_a_block(world: World) -> None:
    world.rail().submit(payment(0))
    older = world.journal.read_bytes()
    world.rail().submit(payment(1))
    world.journal.write_bytes(older)
    assert asked(world.rail(), 1) == "absent"
    with pytest.raises(UnknownTransactions, match="--from-nonce 3"):
        world.rail().submit(payment(2))  # would take the nonce of 1, and 1 be signed again with another
    world.chain.mine(CONFIRMATIONS)
    with pytest.raises(UnknownTransactions, match="--from-nonce 3"):
        world.rail().submit(payment(1))
    assert world.got(FRIENDS[1]) == 3 * ETHER // 2


@pytest.mark.parametrize(("gas", "outcome"), [(MAX_GAS, "unknown"), (MAX_GAS + 1, "failed")])
def test_a_transfer_that_takes_too_much_gas_is_refused(world: World, gas: int, outcome: str) -> None:
    def dear(method: str, params: Sequence[object]) -> object:
        return hex(gas) if method == "eth_estimateGas" else world.chain.ask(method, params)

    assert world.rail(dear).submit(payment(0)).outcome.value == outcome


def test_nothing_is_signed_for_a_chain_that_the_node_is_not_on(world: World) -> None:
    other = Asset(1, world.asset.token, 18, "EUR")
    with pytest.raises(WrongChain, match="the node is on chain"):
        world.rail(asset=other).submit(payment(0))
    assert not world.journal.exists()


def test_each_chain_has_its_own_nonces(world: World) -> None:
    """What was signed for another chain by the same key, in the same journal, leaves no gap here."""
    sender = OPERATOR.address.lower()
    other = {"chain_id": 1, "sender": sender, "nonce": 40}
    journal.Journal(world.journal).add("other:1", lambda _: other)
    world.rail().submit(payment(0))
    world.chain.mine(CONFIRMATIONS)
    assert asked(world.rail(), 0) == "confirmed"


def test_a_nonce_that_the_node_forgot_is_not_given_to_another_payment(world: World) -> None:
    world.rail().submit(payment(0))
    world.chain.pool.clear()
    world.rail().submit(payment(1))
    assert [record["nonce"] for record in journal.Journal(world.journal).all().values()] == [1, 2]
    world.rail().prepare([])
    world.chain.mine(CONFIRMATIONS)
    assert [asked(world.rail(), n) for n in (0, 1)] == ["confirmed"] * 2


def test_a_key_that_somebody_signs_meanwhile_was_absent_and_is_known(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs at once: the other one signs between this one's look at the journal and its answer."""
    asking, asked_for = world.rail(), payment(1)
    look = asking._journal.all

    def meanwhile() -> dict[str, Any]:
        found = dict(look())
        monkeypatch.setattr(asking._journal, "all", look)
        world.rail().submit(asked_for)
        return found

    monkeypatch.setattr(asking._journal, "all", meanwhile)
    assert asking.look_up(asked_for.key).outcome is Outcome.ABSENT
    assert asking.look_up(asked_for.key).outcome is Outcome.UNKNOWN
