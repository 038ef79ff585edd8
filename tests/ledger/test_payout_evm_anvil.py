"""The EVM rail against somebody else's node: anvil, of Foundry, where it is installed."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_utils import to_checksum_address
from evm_chain import ETHER, GWEI, OPERATOR
from evm_token import PAUSE, token_code
from evm_world import ADDRESSES, CONFIRMATIONS, FRIENDS, payment

from ledger.rails import Answer, Outcome
from ledger.rails.evm import erc20
from ledger.rails.evm.asset import Asset
from ledger.rails.evm.node import HttpTransport, Node
from ledger.rails.evm.rail import EvmRail, InsufficientFunds
from ledger.rails.journal import Journal

ANVIL = shutil.which("anvil")
pytestmark = pytest.mark.skipif(ANVIL is None, reason="anvil is not installed")


@pytest.fixture
def ask() -> Iterator[HttpTransport]:
    assert ANVIL is not None
    command = [ANVIL, "--port", "0", "--no-mining", "--accounts", "1", "--hardfork", "prague"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as anvil:
        assert anvil.stdout is not None
        listening = next(line for line in iter(anvil.stdout.readline, "") if line.startswith("Listening on "))
        transport = HttpTransport(f"http://{listening.split()[-1]}")
        try:
            transport("anvil_setBalance", [OPERATOR.address, hex(1_000 * ETHER)])
            yield transport
        finally:
            transport.close()
            anvil.terminate()


class Chain:
    def __init__(self, ask: HttpTransport, folder: Path, kind: str | None) -> None:
        self.ask, self.node, self.folder, self.nonce = ask, Node(ask), folder, 0
        self.token = self.deploy(kind) if kind else None

    def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            self.ask("evm_mine", [])

    def deploy(self, kind: str) -> str:
        fields = {"from": OPERATOR.address, "data": "0x" + token_code(kind, supply=10**30, decimals=18).hex()}
        self.ask("anvil_impersonateAccount", [OPERATOR.address])
        made = self.ask("eth_sendTransaction", [fields])
        self.mine()
        self.nonce = 1
        receipt: Any = self.ask("eth_getTransactionReceipt", [made])
        return str(to_checksum_address(receipt["contractAddress"]))

    def rail(self) -> EvmRail:
        return EvmRail(
            self.folder / "journal",
            self.node,
            OPERATOR,
            Asset(self.node.chain_id(), self.token, 18, "EUR"),
            fee_cap=100 * GWEI,
            confirmations=CONFIRMATIONS,
            from_nonce=self.nonce,
        )

    def got(self, n: int) -> int:
        address = ADDRESSES[FRIENDS[n]].lower()
        if self.token is None:
            return self.node.balance(address)
        return erc20.number(self.node.call({"to": self.token, "data": erc20.balance_data(address)})) or 0


@pytest.mark.parametrize("kind", [None, "standard", "silent"])
def test_paid_once_though_dropped_and_reorganised(
    ask: HttpTransport, tmp_path: Path, kind: str | None
) -> None:
    chain = Chain(ask, tmp_path, kind)
    rail = chain.rail()
    rail.prepare([1_500_000])
    with pytest.raises(InsufficientFunds):
        rail.prepare([10**15] * 10**4)
    sent = rail.submit(payment(0))
    ask("anvil_dropTransaction", [sent.reference])
    chain.mine()
    assert rail.look_up("batch:0").outcome is Outcome.UNKNOWN
    rail.prepare([])
    rail.submit(payment(0))  # known already
    before = ask("evm_snapshot", [])
    chain.mine()
    assert chain.got(0) == 15 * ETHER // 10
    ask("evm_revert", [before])
    assert rail.look_up("batch:0").outcome is Outcome.UNKNOWN
    rail.prepare([])
    chain.mine(CONFIRMATIONS)
    assert rail.look_up("batch:0") == Answer(Outcome.CONFIRMED, sent.reference)
    rail.submit(payment(0))  # nonce too low
    chain.mine(CONFIRMATIONS)
    assert chain.got(0) == 15 * ETHER // 10


def test_reverted_and_used_nonces_fail(ask: HttpTransport, tmp_path: Path) -> None:
    chain = Chain(ask, tmp_path, "standard")
    rail = chain.rail()
    rail.submit(payment(0))
    chain.mine()
    replaced, reverted = (rail.submit(payment(n)).reference for n in (1, 2))
    ask("anvil_dropTransaction", [replaced])
    ask("anvil_dropTransaction", [reverted])
    stranger: Any = ask("eth_accounts", [])
    ask("eth_sendTransaction", [{"from": stranger[0], "to": chain.token, "data": PAUSE}])
    ask("eth_sendTransaction", [{"from": OPERATOR.address, "to": stranger[0], "value": "0x1"}])
    chain.mine()
    rail.prepare([])
    chain.mine(CONFIRMATIONS)
    answers = [rail.look_up(f"batch:{n}") for n in range(3)]
    assert [answer.outcome.value for answer in answers] == ["confirmed", "failed", "failed"]
    assert answers[1].reference.startswith("nonce used by")
    assert answers[2].reference == f"reverted {reverted}"
    assert [chain.got(n) for n in range(3)] == [15 * ETHER // 10, 0, 0]


def test_a_price_that_rises_is_met_with_the_same_nonce(ask: HttpTransport, tmp_path: Path) -> None:
    chain = Chain(ask, tmp_path, "standard")
    rail = chain.rail()
    first = rail.submit(payment(0)).reference
    for rise in (20, 60):
        ask("anvil_setNextBlockBaseFeePerGas", [hex(rise * GWEI)])
        chain.mine()  # too dear for what waits
        assert rail.look_up("batch:0").outcome is Outcome.UNKNOWN
        rail.prepare([])
    ask("anvil_setNextBlockBaseFeePerGas", [hex(60 * GWEI)])
    chain.mine(CONFIRMATIONS)
    answer = rail.look_up("batch:0")
    assert answer.outcome is Outcome.CONFIRMED
    assert answer.reference != first
    assert chain.got(0) == 15 * ETHER // 10
    assert len(Journal(tmp_path / "journal").all()) == 3


@pytest.mark.parametrize("depth", [CONFIRMATIONS - 1, CONFIRMATIONS, CONFIRMATIONS + 1])
def test_a_chain_that_goes_back_around_the_setting(ask: HttpTransport, tmp_path: Path, depth: int) -> None:
    chain = Chain(ask, tmp_path, None)
    rail = chain.rail()
    chain.mine(CONFIRMATIONS)
    sent = rail.submit(payment(0)).reference
    chain.mine(CONFIRMATIONS)
    assert rail.look_up("batch:0") == Answer(Outcome.CONFIRMED, sent)
    ask("anvil_reorg", [depth, []])
    ask("anvil_dropTransaction", [sent])
    gone = depth >= CONFIRMATIONS
    assert chain.got(0) == (0 if gone else 15 * ETHER // 10)
    assert rail.look_up("batch:0").outcome is (Outcome.UNKNOWN if gone else Outcome.CONFIRMED)
    rail.prepare([])
    chain.mine(CONFIRMATIONS)
    assert rail.look_up("batch:0") == Answer(Outcome.CONFIRMED, sent)
    assert chain.got(0) == 15 * ETHER // 10
