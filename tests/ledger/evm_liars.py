"""A node that gives one wrong answer."""

from collections.abc import Callable, Mapping, Sequence

from ledger.rails.evm.node import NodeError, NodeRefused, Transport

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
