"""Payouts on a real chain: whatever dies, lies, drops or reorganises, a line is paid once or not at all."""

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from eth_account import Account
from evm_chain import ETHER, GWEI, OPERATOR, STRANGER, LocalChain, RpcError
from hypothesis import given
from hypothesis import strategies as st
from test_payout import AT, FRIENDS, Killed, earn

from ledger.aggregates.book import Book
from ledger.aggregates.payout import LineState, Payout
from ledger.application import Ledger
from ledger.ids import BOOK_ID
from ledger.rails import Answer, OtherPayment, Outcome, Payment, journal
from ledger.rails.evm.address import AddressError, check_address
from ledger.rails.evm.asset import AmountError, Asset
from ledger.rails.evm.fees import Fees, FeeTooHigh, replacement, suggest
from ledger.rails.evm.node import Node, NodeError, NodeRefused, Transport
from ledger.rails.evm.rail import EvmRail, InsufficientFunds, UnknownTransactions, WrongChain
from ledger.services import crew, payouts
from ledger.services.destinations import Destination

CONFIRMATIONS = 3
ADDRESSES = {f: Account.from_key(f.int.to_bytes(32)).address for f in FRIENDS}
DESTINATIONS = {f: Destination(address, f.bytes) for f, address in ADDRESSES.items()}
COMMITMENTS = {f: d.commitment for f, d in DESTINATIONS.items()}


class World:
    """A chain, an asset on it, and the operator's journal."""

    def __init__(self, folder: Path, kind: str | None = "standard", *, decimals: int = 18) -> None:
        self.chain = LocalChain()
        token = self.chain.deploy(kind, decimals=decimals) if kind else None
        self.asset = Asset(self.chain.chain_id, token, decimals, "EUR")
        self.journal = folder / "evm.journal"
        self.first_nonce = 1 if token else 0  # making the token took one

    def rail(self, transport: Transport | None = None, **changes: Any) -> EvmRail:
        options = {
            "fee_cap": 100 * GWEI,
            "confirmations": CONFIRMATIONS,
            "from_nonce": self.first_nonce,
        } | changes
        asset = options.pop("asset", self.asset)
        account = options.pop("account", OPERATOR)
        return EvmRail(self.journal, Node(transport or self.chain.ask), account, asset, **options)

    def got(self, friend: UUID) -> int:
        """In base units, from the chain's state."""
        address, token = ADDRESSES[friend], self.asset.token
        return self.chain.coins(address) if token is None else self.chain.tokens(token, address)

    @property
    def amounts_paid(self) -> dict[UUID, int]:
        """In micro-units."""
        return {f: self.got(f) * 10**6 // 10**self.asset.decimals for f in FRIENDS}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def payment(n: int, amount_micro: int = 1_500_000, **changes: Any) -> Payment:
    friend = FRIENDS[n % 3]
    fields = {"friend_id": friend, "unit": "EUR", "destination": ADDRESSES[friend]} | changes
    return Payment(key=f"batch:{n}", amount_micro=amount_micro, **fields)


def asked(rail: EvmRail, n: int) -> str:
    return rail.look_up(f"batch:{n}").outcome.value


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

GARBAGE: list[object] = [
    None,
    1,
    "",
    "0x",
    "0x0",
    "0x1",
    "0xzz",
    "0x" + "f" * 65,
    "0x" + "00" * 32,
    [],
    {},
    True,
]


class Liar:
    """One answer, the `at`-th, is replaced by what `lie` makes of it; or the node is away before or after it."""

    def __init__(self, ask: Transport, at: int, lie: Callable[[str, object], object]) -> None:
        self.ask, self.left, self.lie = ask, at, lie

    def __call__(self, method: str, params: Sequence[object]) -> object:
        self.left -= 1
        answer = self.ask(method, params)
        return self.lie(method, answer) if self.left == 0 else answer


def away(method: str, answer: object) -> object:
    raise NodeError("late")


def refuses(method: str, answer: object) -> object:
    raise NodeRefused(-32000, "nonce too low")


def twisted(name: str) -> Callable[[str, object], object]:
    """A field of the answer says something else of the same form."""

    def lie(method: str, answer: object) -> object:
        if not isinstance(answer, Mapping) or name not in answer:
            return answer
        value = answer[name]
        if isinstance(value, list):
            return {**answer, name: []}
        flipped = {"0x0": "0x1", "0x1": "0x0"}.get(value) or value[:-1] + ("1" if value[-1] == "0" else "0")
        return {**answer, name: flipped}

    return lie


LIES = {
    "away": away,
    "refuses": refuses,
    **{f"says {value!r}": (lambda _m, _a, value=value: value) for value in GARBAGE},
    **{f"twists {name}": twisted(name) for name in ("status", "blockHash", "blockNumber", "hash", "logs")},
    **{f"twists {name} ": twisted(name) for name in ("transactionHash", "from", "transactions", "number")},
}


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
