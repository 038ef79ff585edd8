"""`streamrp2p payout --rail evm`, as an operator types it, against a chain that is served over HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from eth_account import Account
from evm_chain import ETHER, OPERATOR, LocalChain, served
from test_bookkeeping import bean_check
from test_payout_command import FRIEND, Shell, earned, shell
from web3 import HTTPProvider, Web3

from ledger.application import Ledger
from ledger.rails.evm.key import KeyFileError, make_key, open_account
from ledger.rails.evm.node import HttpTransport, Node, NodeError

__all__ = ["earned", "shell"]  # fixtures

ADDRESS = Account.from_key(FRIEND.int.to_bytes(32)).address
KEY = OPERATOR.key.hex().removeprefix("0x")
BALANCE_OF = [
    {
        "type": "function",
        "name": "balanceOf",
        "stateMutability": "view",
        "inputs": [{"name": "owner", "type": "address"}],
        "outputs": [{"name": "", "type": "uint256"}],
    }
]


@pytest.fixture
def chain() -> LocalChain:
    return LocalChain()


@pytest.fixture
def url(chain: LocalChain) -> Iterator[str]:
    with served(chain) as url:
        yield url


@pytest.fixture
def set_up(
    shell: Shell, chain: LocalChain, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    key = tmp_path / "keys" / "evm.key"
    key.touch(mode=0o600)
    key.write_text(KEY)
    for name, value in {
        "RPC_URL": url,
        "CHAIN_ID": str(chain.chain_id),
        "UNIT": "CHF",
        "CONFIRMATIONS": "3",
    }.items():
        monkeypatch.setenv(f"STREAMRP2P_EVM_{name}", value)


@pytest.fixture
def observer(url: str) -> Iterator[Web3]:
    """Somebody else's program, looking at the same chain."""
    with requests.Session() as session:
        yield Web3(HTTPProvider(url, session=session))


def test_from_the_plan_to_the_chain(
    earned: Ledger,
    shell: Shell,
    chain: LocalChain,
    set_up: None,
    observer: Web3,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    token = chain.deploy("silent", decimals=6)
    monkeypatch.setenv("STREAMRP2P_EVM_TOKEN", token)
    monkeypatch.setenv("STREAMRP2P_EVM_DECIMALS", "6")
    everything = shell("destination", str(FRIEND), ADDRESS)
    batch_id = shell.json("plan", "--rail", "evm")["batch_id"]
    assert shell.json("show", "1")["rail"] == f"eip155:{chain.chain_id}/erc20:{token}"
    everything += shell("approve", "1", "--operator", "op")
    refused = shell("run", "1", code=1)  # the account made the token: the journal does not know that
    assert "--from-nonce 1" in refused
    assert shell.json("show", "1")["lines"][0]["state"] == "planned"

    dry = shell.json("run", "1", "--from-nonce", "1", "--dry-run")
    assert [line["action"] for line in dry["lines"]] == ["submit"]
    assert (dry["estimate"]["account"], dry["estimate"]["to pay"]) == (OPERATOR.address, "4.75")
    assert dry["estimate"]["missing"] == "nothing"
    assert not chain.pool

    everything += refused + shell("run", batch_id, "--from-nonce", "1", code=10)
    assert len(chain.pool) == 1
    assert "unknown" in shell("reconcile", "1", code=10)
    chain.pool.clear()  # no block takes it, and the node forgets it
    everything += shell("run", "1", code=10)
    chain.mine(2)
    assert shell.json("show", "1")["lines"][0]["state"] == "unknown"
    chain.mine()
    everything += shell("reconcile", "1")
    (line,) = shell.json("show", "1")["lines"]
    assert (line["state"], line["attempts"]) == ("confirmed", 1)
    assert shell.json("show", "1")["state"] == "finished"
    assert shell("run", "1")  # again: nothing is left to do
    chain.mine(3)

    contract = observer.eth.contract(address=Web3.to_checksum_address(token), abi=BALANCE_OF)
    assert contract.functions.balanceOf(ADDRESS).call() == 4_750_000
    receipt = observer.eth.get_transaction_receipt(line["reference"])
    assert (receipt["status"], receipt["from"]) == (1, OPERATOR.address)

    (row,) = json.loads(shell("export", "1", "--json"))["lines"]
    assert (row["amount"], row["state"], row["reference"]) == ("4.750000", "confirmed", line["reference"])
    books = tmp_path / "books.beancount"
    books.write_text(shell("export", "--format", "beancount", group="books"))
    checked = bean_check(books)
    assert checked.returncode == 0, checked.stderr
    log = "".join(str(r.event) for r in earned.read(0, 1_000))
    for secret in (KEY, "a-providers-key"):
        assert secret not in everything + log
    assert ADDRESS not in log
    assert (tmp_path / "payouts" / "evm.journal").stat().st_mode & 0o777 == 0o600


def test_the_coin_is_paid_too_and_the_account_shows_it(
    earned: Ledger, shell: Shell, chain: LocalChain, set_up: None, observer: Web3
) -> None:
    before = shell.json("account")
    assert (before["account"], before["has"], before["next nonce"]) == (OPERATOR.address, "1000000", 0)
    shell("destination", str(FRIEND), ADDRESS)
    shell("plan", "--rail", "evm")
    shell("approve", "1")
    assert "fees at most" in shell("run", "1", "--dry-run")
    shell("run", "1", code=10)
    chain.mine(3)
    shell("reconcile", "1")
    assert observer.eth.get_balance(ADDRESS) == 475 * ETHER // 100
    assert shell.json("account")["next nonce"] == 1


def test_mistakes_are_told_before_anything_is_reserved(
    earned: Ledger,
    shell: Shell,
    chain: LocalChain,
    set_up: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert "checksum" in shell("destination", str(FRIEND), ADDRESS.lower(), code=2)
    shell("destination", str(FRIEND), ADDRESS)

    def wrongly(name: str, value: str, *command: str, code: int) -> str:
        with monkeypatch.context() as patched:
            patched.setenv(f"STREAMRP2P_EVM_{name}", value)
            return shell(*command, code=code)

    plan, run = ("plan", "--rail", "evm"), ("run", "1")
    assert "EVM_UNIT=USD" in wrongly("UNIT", "USD", *plan, code=2)
    assert "EVM_CHAIN_ID is not set" in wrongly("CHAIN_ID", "", *plan, code=2)
    assert "EVM_TOKEN" in wrongly("TOKEN", ADDRESS.lower(), *plan, code=2)
    assert "EVM_TOKEN is not set" in wrongly("DECIMALS", "6", *plan, code=2)
    shell(*plan)
    shell("approve", "1")
    assert "EVM_TOKEN is not set" in wrongly("DECIMALS", "6", *run, code=2)
    told = wrongly("RPC_URL", "wss://node.example/v3/a-providers-key", *run, code=2)
    assert "a-providers-key" not in told
    assert "EVM_RPC_URL=***" in told
    told = wrongly("RPC_URL", "http://127.0.0.1:1/v3/a-providers-key", *run, code=10)
    assert "cannot be reached" in told
    assert "a-providers-key" not in told
    assert "planned for eip155:" in wrongly("CHAIN_ID", "1", *run, code=1)
    assert "cap is 1000000000 wei" in wrongly("FEE_CAP_GWEI", "1", *run, code=10)
    poor = tmp_path / "poor.key"
    make_key(poor)
    assert "nothing new was begun" in wrongly("KEY_FILE", str(poor), *run, code=1)
    assert "knows by itself" in shell("reconcile", "1", "--paid", "1", code=2)
    assert shell.json("show", "1")["lines"][0]["state"] == "planned"
    assert not (tmp_path / "payouts" / "evm.journal").exists()


def test_a_new_key_is_made_once(
    shell: Shell, set_up: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys" / "new.key"
    monkeypatch.setenv("STREAMRP2P_EVM_KEY_FILE", str(path))
    made = shell.json("account", "--make")
    assert made["has"] == "0"
    assert "exists already" in shell("account", "--make", code=2)
    assert shell.json("account")["account"] == made["account"]


# --- key files


def private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def test_a_key_is_read_as_digits_or_from_a_keystore(tmp_path: Path) -> None:
    for text in (KEY, f"0x{KEY}\n", f" {KEY.upper()} "):
        assert open_account(private(tmp_path / "k", text), None).address == OPERATOR.address
    store = json.dumps(Account.encrypt(OPERATOR.key, "sesame", kdf="pbkdf2", iterations=1))
    keystore = private(tmp_path / "store", store)
    passphrase = private(tmp_path / "phrase", "sesame\n")
    assert open_account(keystore, passphrase).address == OPERATOR.address
    for wrong, why in ((None, "name the file"), (private(tmp_path / "p2", "open"), "does not open")):
        with pytest.raises(KeyFileError, match=why):
            open_account(keystore, wrong)


def test_what_is_no_key_is_refused_and_not_repeated(tmp_path: Path) -> None:
    for text in ("", KEY[:-1], KEY + "0", "0" * 64, "f" * 64, "{}", '{"crypto": 1}', "x" * 70_000):
        with pytest.raises(KeyFileError) as error:
            open_account(private(tmp_path / "k", text), private(tmp_path / "p", "sesame"))
        assert not text or text not in str(error.value)
    (tmp_path / "k").write_text(KEY)
    (tmp_path / "k").chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        open_account(tmp_path / "k", None)
    with pytest.raises(KeyFileError, match="cannot be read"):
        open_account(tmp_path / "none", None)


# --- the node over HTTP


def test_an_answer_that_is_too_large_or_no_json_is_an_error(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = HttpTransport(url)
    try:
        assert Node(transport).latest().number == 0
        monkeypatch.setattr("ledger.rails.evm.node.MAX_ANSWER_BYTES", 100)
        with pytest.raises(NodeError, match="too large"):
            Node(transport).latest()
        monkeypatch.setattr("ledger.rails.evm.node.json", SimpleNamespace(loads=broken))
        with pytest.raises(NodeError, match="not in JSON"):
            Node(transport).chain_id()
    finally:
        transport.close()


def broken(_: object) -> Any:
    raise ValueError
