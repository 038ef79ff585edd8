"""A real chain in this process (py-evm): its blocks, a pool of waiting transactions, and JSON-RPC to both.

The pool follows the rules of go-ethereum's (known, nonce too low, funds, replacement at 10 % more). The tests mine,
drop what waits, go back to an older block, and read what was really paid from the state, past JSON-RPC.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from eth._utils.address import generate_contract_address
from eth.vm.spoof import SpoofTransaction
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_tester import PyEVMBackend
from eth_utils import to_canonical_address, to_checksum_address
from evm_token import PAUSE, assemble, token_code

from ledger.rails.evm.node import read_answer
from ledger.rails.evm.rail import MAX_GAS

GWEI = 10**9
ETHER = 10**18
OPERATOR: LocalAccount = Account.from_key(
    (1).to_bytes(32)
)  # funded in eth-tester's first block, like the next
STRANGER: LocalAccount = Account.from_key((2).to_bytes(32))


class RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)


class LocalChain:
    def __init__(self) -> None:
        self.backend = PyEVMBackend()
        self.chain_id: int = self.backend.chain.chain_id
        self.pool: dict[tuple[bytes, int], Any] = {}
        self.senders: dict[bytes, bytes] = {}  # of all that was ever handed in: recovering one takes long
        self.lock = threading.Lock()

    # --- the world outside

    @property
    def height(self) -> int:
        return int(self.backend.chain.get_block().number) - 1

    @property
    def base_fee(self) -> int:
        """Of the next block, in wei per gas."""
        return int(self.backend.chain.get_block().header.base_fee_per_gas)

    def mine(self, blocks: int = 1) -> None:
        """Each takes from the pool what can run now."""
        for _ in range(blocks):
            chain = self.backend.chain
            for sender, nonce in sorted(self.pool):
                waiting, header = self.pool[sender, nonce], chain.get_block().header
                fits = header.gas_used + waiting.gas <= header.gas_limit
                pays = waiting.max_fee_per_gas >= header.base_fee_per_gas
                if fits and pays and nonce == self._next_nonce(sender):
                    chain.apply_transaction(waiting)
            self.backend.mine_blocks(1)
            self.pool = {(s, n): t for (s, n), t in self.pool.items() if n >= self.state().get_nonce(s)}

    def reorganise(self, blocks: int, *, keep: bool = True) -> None:
        """The newest blocks were never there; what they held waits again, or is gone."""
        chain = self.backend.chain
        for number in range(self.height - blocks + 1, self.height + 1):
            for transaction in chain.get_canonical_block_by_number(number).transactions:
                if keep:
                    self.pool.setdefault((self.senders[transaction.hash], transaction.nonce), transaction)
        target = chain.get_canonical_block_by_number(self.height - blocks)
        self.backend.revert_to_snapshot(target.hash)

    def raise_base_fee(self, blocks: int) -> None:
        """Full blocks: each raises it by an eighth. The INVALID instruction burns a block's gas at once."""
        for _ in range(blocks):
            limit = self.backend.chain.get_block().header.gas_limit
            self._stranger_sends(None, data="0xfe", gas=limit)
            self.mine()

    def deploy(self, kind: str = "standard", *, supply: int = 10**30, decimals: int = 18) -> str:
        """The address of a new token; the operator owns the whole supply."""
        code = token_code(kind, supply=supply, decimals=decimals)
        nonce = self.state().get_nonce(to_canonical_address(OPERATOR.address))
        made = OPERATOR.sign_transaction(
            self._fields(nonce, gas=400_000) | {"to": b"", "value": 0, "data": code}
        )
        self.send("0x" + bytes(made.raw_transaction).hex())
        self.mine()
        receipt = self.eth_getTransactionReceipt("0x" + bytes(made.hash).hex())
        assert receipt is not None
        assert receipt["status"] == "0x1"
        return str(to_checksum_address(receipt["contractAddress"]))

    def place(self, runtime: str) -> str:
        """The address of a new contract with this code (in the words of `evm_token.assemble`), made by a stranger."""
        code, nonce = assemble(runtime), self.state().get_nonce(to_canonical_address(STRANGER.address))
        size = len(code)
        # 12 bytes that return what follows them: PUSH1 size, DUP1, PUSH1 12, PUSH1 0, CODECOPY, PUSH1 0, RETURN
        init = bytes([0x60, size, 0x80, 0x60, 12, 0x60, 0, 0x39, 0x60, 0, 0xF3, 0])
        self._stranger_sends(None, data="0x" + (init + code).hex(), gas=300_000)
        self.mine()
        address = generate_contract_address(to_canonical_address(STRANGER.address), nonce)
        return str(to_checksum_address(address))

    def poke(self, contract: str) -> None:
        self._stranger_sends(contract, data="0x", gas=100_000)

    def pause(self, token: str) -> None:
        self._stranger_sends(token, data=PAUSE, gas=100_000)

    def spend_nonce(self, nonce: int, *, fee: int = 400 * GWEI) -> None:
        """The operator sends something else with it, past the program."""
        made = OPERATOR.sign_transaction(
            self._fields(nonce, gas=21_000, fee=fee) | {"to": STRANGER.address, "value": 1}
        )
        self.send("0x" + bytes(made.raw_transaction).hex())

    def coins(self, address: str) -> int:
        return int(self.state().get_balance(to_canonical_address(address)))

    def tokens(self, token: str, address: str) -> int:
        storage = self.state().get_storage(to_canonical_address(token), int(address, 16))
        return int(storage)

    def _stranger_sends(self, to: str | None, *, data: str, gas: int) -> None:
        nonce = self.state().get_nonce(to_canonical_address(STRANGER.address))
        fields = self._fields(nonce, gas=gas) | {"value": 0, "data": data, "to": to or b""}
        made = STRANGER.sign_transaction(fields)
        self.send("0x" + bytes(made.raw_transaction).hex())

    def _fields(self, nonce: int, *, gas: int, fee: int = 400 * GWEI) -> dict[str, Any]:
        fees = {"maxFeePerGas": fee, "maxPriorityFeePerGas": min(fee, 2 * GWEI)}
        return {"type": 2, "chainId": self.chain_id, "nonce": nonce, "gas": gas, **fees}

    # --- JSON-RPC

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        head = {"jsonrpc": "2.0", "id": request.get("id")}
        method = getattr(self, str(request.get("method")), None)
        with self.lock:
            try:
                if method is None:
                    raise RpcError(-32601, "the method does not exist")
                return head | {"result": method(*request.get("params", []))}
            except RpcError as error:
                return head | {"error": {"code": error.args[0], "message": error.args[1]}}

    def ask(self, method: str, params: Sequence[object]) -> object:
        """As a transport: the very text that would cross a network."""
        request = json.loads(json.dumps({"id": 7, "method": method, "params": list(params)}))
        return read_answer(method, 7, json.loads(json.dumps(self.answer(request))))

    def eth_chainId(self) -> str:
        return hex(self.chain_id)

    def eth_maxPriorityFeePerGas(self) -> str:
        return hex(GWEI)

    def eth_getBlockByNumber(self, which: str, whole: bool) -> dict[str, Any] | None:
        number = self._number(which)
        if number is None:
            return None
        block = self.backend.chain.get_canonical_block_by_number(number)
        header = block.header
        listed = [
            self._transaction(block, index) if whole else _hex(t.hash)
            for index, t in enumerate(block.transactions)
        ]
        return {
            "number": hex(number),
            "hash": _hex(header.hash),
            "parentHash": _hex(header.parent_hash),
            "baseFeePerGas": hex(header.base_fee_per_gas),
            "gasLimit": hex(header.gas_limit),
            "timestamp": hex(header.timestamp),
            "transactions": listed,
        }

    def eth_blockNumber(self) -> str:
        return hex(self.height)

    def eth_getTransactionCount(self, address: str, which: str) -> str:
        sender = to_canonical_address(address)
        count = int(self.state("latest" if which == "pending" else which).get_nonce(sender))
        while which == "pending" and (sender, count) in self.pool:
            count += 1
        return hex(count)

    def eth_getBalance(self, address: str, which: str) -> str:
        return hex(self.state(which).get_balance(to_canonical_address(address)))

    def eth_call(self, call: dict[str, str], which: str) -> str:
        return _hex(self._tried(call).output)

    def eth_estimateGas(self, call: dict[str, str]) -> str:
        if int(call.get("value", "0x0"), 16) > self.coins(call["from"]):
            raise RpcError(-32000, "insufficient funds for transfer")
        data = call.get("data", "0x")
        # Trying limits one after the other, as nodes do, takes py-evm too long; refunds are left out instead.
        return hex(21_000 + 8 * len(data) + int(self._tried(call).get_gas_used()))

    def eth_sendRawTransaction(self, raw: str) -> str:
        return self.send(raw)

    def eth_getTransactionByHash(self, wanted: str) -> dict[str, Any] | None:
        for waiting in self.pool.values():
            if _hex(waiting.hash) == wanted:
                return {"hash": wanted, "blockNumber": None, "nonce": hex(waiting.nonce)}
        found = self._find(wanted)
        return None if found is None else self._transaction(*found)

    def eth_getTransactionReceipt(self, wanted: str) -> dict[str, Any] | None:
        found = self._find(wanted)
        if found is None:
            return None
        block, index = found
        transaction = block.transactions[index]
        receipt = block.get_receipts(self.backend.chain.chaindb)[index]
        made = None
        if transaction.to == b"":
            made = _hex(generate_contract_address(self.senders[transaction.hash], transaction.nonce))
        return {
            "transactionHash": wanted,
            "transactionIndex": hex(index),
            "from": _hex(self.senders[transaction.hash]),
            "to": _hex(transaction.to) if transaction.to else None,
            "blockNumber": hex(block.number),
            "blockHash": _hex(block.hash),
            "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
            "contractAddress": made,
            "logs": [self._log(block, index, log) for log in receipt.logs],
        }

    def eth_getLogs(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        first, last = self._number(wanted["fromBlock"]), self._number(wanted["toBlock"])
        found = []
        for number in range(first or 0, (last or 0) + 1):
            block = self.backend.chain.get_canonical_block_by_number(number)
            for index, receipt in enumerate(block.get_receipts(self.backend.chain.chaindb)):
                for log in (self._log(block, index, log) for log in receipt.logs):
                    topics = wanted["topics"]
                    same = (
                        log["address"] == wanted["address"].lower() and log["topics"][: len(topics)] == topics
                    )
                    found += [log] if same else []
        return found

    # --- inside

    def state(self, which: str = "latest") -> Any:
        number = self._number(which)
        if number is None:
            raise RpcError(-32000, "header not found")
        header = self.backend.chain.get_canonical_block_by_number(number).header
        return self.backend.chain.get_vm(at_header=header).state

    def send(self, raw: str) -> str:
        builder = self.backend.chain.get_vm().get_transaction_builder()
        transaction = builder.decode(bytes.fromhex(raw[2:]))
        sender = self.senders.setdefault(transaction.hash, transaction.sender)
        place = (sender, transaction.nonce)
        if transaction.chain_id != self.chain_id:
            raise RpcError(-32000, "invalid chain id for signer")
        if transaction.nonce < self.state().get_nonce(sender):
            raise RpcError(-32000, "nonce too low")
        if transaction.gas < transaction.intrinsic_gas:
            raise RpcError(-32000, "intrinsic gas too low")
        known = self.pool.get(place)
        if known is not None and known.hash == transaction.hash:
            raise RpcError(-32000, "already known")
        for field in ("max_fee_per_gas", "max_priority_fee_per_gas"):
            if known is not None and getattr(transaction, field) * 10 < getattr(known, field) * 11:
                raise RpcError(-32000, "replacement transaction underpriced")
        cost = transaction.gas * transaction.max_fee_per_gas + transaction.value
        if cost > self.state().get_balance(sender):
            raise RpcError(-32000, "insufficient funds for gas * price + value")
        self.pool[place] = transaction
        return _hex(transaction.hash)

    def _next_nonce(self, sender: bytes) -> int:
        """With what the block that is being made holds already."""
        return int(self.backend.chain.get_vm().state.get_nonce(sender))

    def _number(self, which: str) -> int | None:
        number = self.height if which == "latest" else int(which, 16)
        return number if 0 <= number <= self.height else None

    def _tried(self, call: dict[str, str]) -> Any:
        chain, state = self.backend.chain, self.state()
        sender = to_canonical_address(call.get("from", STRANGER.address))
        unsigned = chain.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id,
            nonce=state.get_nonce(sender),
            max_priority_fee_per_gas=0,
            max_fee_per_gas=chain.get_block().header.base_fee_per_gas * 2,
            gas=MAX_GAS,
            to=to_canonical_address(call["to"]),
            value=int(call.get("value", "0x0"), 16),
            data=bytes.fromhex(call.get("data", "0x")[2:]),
            access_list=(),
        )
        before = state.snapshot()
        computation = state.apply_transaction(SpoofTransaction(unsigned, from_=sender))
        state.revert(before)
        if computation.is_error:
            raise RpcError(3, "execution reverted")
        return computation

    def _find(self, wanted: str) -> tuple[Any, int] | None:
        known = bytes.fromhex(wanted[2:]) in self.senders
        for number in range(self.height, 0, -1) if known else ():
            block = self.backend.chain.get_canonical_block_by_number(number)
            for index, transaction in enumerate(block.transactions):
                if _hex(transaction.hash) == wanted:
                    return block, index
        return None

    def _transaction(self, block: Any, index: int) -> dict[str, Any]:
        transaction = block.transactions[index]
        return {
            "hash": _hex(transaction.hash),
            "from": _hex(self.senders[transaction.hash]),
            "nonce": hex(transaction.nonce),
            "blockNumber": hex(block.number),
            "blockHash": _hex(block.hash),
        }

    def _log(self, block: Any, index: int, log: Any) -> dict[str, Any]:
        return {
            "address": _hex(log.address),
            "topics": [f"0x{topic:064x}" for topic in log.topics],
            "data": _hex(log.data),
            "blockNumber": hex(block.number),
            "transactionHash": _hex(block.transactions[index].hash),
        }


@contextmanager
def served(chain: LocalChain) -> Iterator[str]:
    """The URL of its JSON-RPC over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(chain.answer(request)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v3/a-providers-key"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _hex(data: bytes) -> str:
    return "0x" + bytes(data).hex()
