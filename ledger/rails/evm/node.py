"""Talking to a node of the chain: JSON-RPC 2.0 over HTTP, and its answers read strictly.

Invariant: an answer that is not exactly what was asked for is a NodeError, never a guess, and so is one that is late or
large. No message holds the node's URL: with many providers it is the password.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx2

TIMEOUT_S: Final = 20.0
MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024  # a full block with its transactions is a few MB
_MAX_MESSAGE_CHARS: Final = 200
_QUANTITY: Final = re.compile(r"0x[0-9a-f]{1,64}")
_HASH: Final = re.compile(r"0x[0-9a-f]{64}")
_ADDRESS: Final = re.compile(r"0x[0-9a-f]{40}")
_REVERTED: Final = 3  # the code of go-ethereum and those after it for a call that was reverted

Transport = Callable[[str, Sequence[object]], object]
"""(method, params) -> the result. Raises NodeError."""


class NodeError(Exception):
    """The node did not answer, or not what was asked for. Nothing follows from it."""

    exit_code = 10


class NodeRefused(NodeError):
    """The node understood and said no."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        self.message = "".join(c for c in message if c.isprintable())[:_MAX_MESSAGE_CHARS]
        super().__init__(f"the node refused: {self.message} ({code})")

    @property
    def reverted(self) -> bool:
        return self.code == _REVERTED or "revert" in self.message.lower()


class HttpTransport:
    def __init__(self, url: str) -> None:
        self._url = url
        self._client = httpx2.Client(timeout=TIMEOUT_S)
        self._next_id = 0

    def __call__(self, method: str, params: Sequence[object]) -> object:
        self._next_id += 1
        request = {"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": list(params)}
        try:
            with self._client.stream("POST", self._url, json=request) as response:
                data = bytearray()
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > MAX_ANSWER_BYTES:
                        raise NodeError(f"{method}: the answer is too large")
                status = response.status_code
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise NodeError(f"{method}: the node cannot be reached ({type(error).__name__})") from None
        try:
            answer = json.loads(data)
        except ValueError:
            raise NodeError(f"{method}: the node answered {status}, not in JSON") from None
        return read_answer(method, self._next_id, answer)

    def close(self) -> None:
        self._client.close()


def read_answer(method: str, request_id: int, answer: object) -> object:
    """The result in a JSON-RPC answer. Raises NodeRefused, NodeError."""
    if not isinstance(answer, dict):
        raise NodeError(f"{method}: the answer is no object")
    error = answer.get("error")
    if isinstance(error, dict):
        code, message = error.get("code"), error.get("message")
        raise NodeRefused(code if isinstance(code, int) else 0, message if isinstance(message, str) else "")
    if error is not None or "result" not in answer or answer.get("id") != request_id:
        raise NodeError(f"{method}: the answer is to something else")
    return answer["result"]


@dataclass(frozen=True, slots=True)
class Block:
    number: int
    hash: str
    base_fee: int
    transactions: tuple[Mapping[str, Any] | str, ...]  # whole where they were asked for, else hashes


@dataclass(frozen=True, slots=True)
class Log:
    """What a contract said (yellow paper, section 4.3.1)."""

    address: str
    topics: tuple[str, ...]
    data: str
    transaction: str


@dataclass(frozen=True, slots=True)
class Receipt:
    transaction: str
    sender: str
    block_number: int
    block_hash: str
    succeeded: bool
    logs: tuple[Log, ...]


class Node:
    """All addresses and hashes given and returned are in lower case."""

    def __init__(self, transport: Transport) -> None:
        self._ask = transport

    def chain_id(self) -> int:
        return quantity(self._ask("eth_chainId", []))

    def latest(self) -> Block:
        found = self._block("latest", whole=False)
        if found is None:
            raise NodeError("the node has no block")
        return found

    def block(self, number: int, *, whole: bool = False) -> Block | None:
        """None when the chain is not that long."""
        found = self._block(hex(number), whole=whole)
        if found is not None and found.number != number:
            raise NodeError("the node gave another block than asked for")
        return found

    def tip(self) -> int:
        """The tip that gets a transaction into one of the next blocks, in wei per gas."""
        return quantity(self._ask("eth_maxPriorityFeePerGas", []))

    def nonce(self, address: str, at: int | None = None) -> int:
        """How many transactions of `address` the chain holds, up to and with block `at`."""
        return quantity(self._ask("eth_getTransactionCount", [address, _at(at)]))

    def nonce_with_waiting(self, address: str) -> int:
        """How many it will hold with those that this node knows to wait for a block."""
        return quantity(self._ask("eth_getTransactionCount", [address, "pending"]))

    def balance(self, address: str, at: int | None = None) -> int:
        return quantity(self._ask("eth_getBalance", [address, _at(at)]))

    def call(self, transaction: Mapping[str, str]) -> bytes:
        """What a call would return. Raises NodeRefused (`reverted`)."""
        return octets(self._ask("eth_call", [dict(transaction), "latest"]))

    def estimate_gas(self, transaction: Mapping[str, str]) -> int:
        """Raises NodeRefused (`reverted`)."""
        return quantity(self._ask("eth_estimateGas", [dict(transaction)]))

    def send(self, raw: str) -> None:
        """Hand in a signed transaction. Raises NodeRefused; it may be taken all the same."""
        self._ask("eth_sendRawTransaction", [raw])

    def knows(self, transaction_hash: str) -> bool:
        """In a block or waiting for one."""
        return self._ask("eth_getTransactionByHash", [transaction_hash]) is not None

    def receipt(self, transaction_hash: str) -> Receipt | None:
        """None while it is in no block."""
        found = self._ask("eth_getTransactionReceipt", [transaction_hash])
        if found is None:
            return None
        fields, status = _object(found), quantity(_field(found, "status"))
        if status > 1:
            raise NodeError("a receipt has the status 0 or 1")
        return Receipt(
            transaction=hash32(_field(found, "transactionHash")),
            sender=address20(_field(found, "from")),
            block_number=quantity(_field(found, "blockNumber")),
            block_hash=hash32(_field(found, "blockHash")),
            succeeded=status == 1,
            logs=_logs(fields.get("logs")),
        )

    def logs(self, number: int, contract: str, topics: Sequence[str]) -> tuple[Log, ...]:
        """What `contract` said in one block."""
        wanted = {
            "fromBlock": hex(number),
            "toBlock": hex(number),
            "address": contract,
            "topics": list(topics),
        }
        return _logs(self._ask("eth_getLogs", [wanted]))

    def _block(self, which: str, *, whole: bool) -> Block | None:
        found = self._ask("eth_getBlockByNumber", [which, whole])
        if found is None:
            return None
        transactions = _field(found, "transactions")
        kind = dict if whole else str
        if not isinstance(transactions, list) or not all(isinstance(t, kind) for t in transactions):
            raise NodeError("a block has a list of transactions")
        return Block(
            number=quantity(_field(found, "number")),
            hash=hash32(_field(found, "hash")),
            base_fee=quantity(_field(found, "baseFeePerGas")),
            transactions=tuple(t if isinstance(t, dict) else hash32(t) for t in transactions),
        )


def _at(block: int | None) -> str:
    return "latest" if block is None else hex(block)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NodeError("the node's answer is no object")
    return value


def _field(value: object, name: str) -> object:
    fields = _object(value)
    if name not in fields:
        raise NodeError(f"the node's answer has no {name}")
    return fields[name]


def _logs(value: object) -> tuple[Log, ...]:
    if not isinstance(value, list):
        raise NodeError("logs are a list")
    found = []
    for entry in value:
        topics = _field(entry, "topics")
        if not isinstance(topics, list):
            raise NodeError("the topics of a log are a list")
        found.append(
            Log(
                address=address20(_field(entry, "address")),
                topics=tuple(hash32(t) for t in topics),
                data="0x" + octets(_field(entry, "data")).hex(),
                transaction=hash32(_field(entry, "transactionHash")),
            )
        )
    return tuple(found)


def quantity(value: object) -> int:
    """A number as JSON-RPC writes it: 0x and hexadecimal digits, at most 256 bits."""
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value.lower()):
        raise NodeError("the node's answer is no number")
    return int(value, 16)


def hash32(value: object) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value.lower()):
        raise NodeError("the node's answer is no hash")
    return value.lower()


def address20(value: object) -> str:
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value.lower()):
        raise NodeError("the node's answer is no address")
    return value.lower()


def octets(value: object) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise NodeError("the node's answer is no bytes")
    try:
        return bytes.fromhex(value[2:])
    except ValueError:
        raise NodeError("the node's answer is no bytes") from None
