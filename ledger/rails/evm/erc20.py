"""The three calls and the one log of ERC-20 that paying needs, as bytes (ABI: words of 32 bytes)."""

from typing import Final

from ledger.rails.evm.node import Log

TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
"""keccak256 of `Transfer(address,address,uint256)`, a log's first topic."""

_SELECTORS: Final = {"transfer": "a9059cbb", "balanceOf": "70a08231", "decimals": "313ce567"}


def transfer_data(to: str, amount: int) -> str:
    return f"0x{_SELECTORS['transfer']}{_word(int(to, 16))}{_word(amount)}"


def balance_data(owner: str) -> str:
    return f"0x{_SELECTORS['balanceOf']}{_word(int(owner, 16))}"


def decimals_data() -> str:
    return f"0x{_SELECTORS['decimals']}"


def accepted(returned: bytes) -> bool:
    """What `transfer` returned: true, or nothing at all, as some large tokens do."""
    return returned == b"" or (len(returned) == 32 and int.from_bytes(returned) == 1)


def number(returned: bytes) -> int | None:
    """One word as a number; None for anything else."""
    return int.from_bytes(returned) if len(returned) == 32 else None


def transfer_topics(sender: str, to: str | None = None) -> list[str]:
    """Of a Transfer log from `sender`, and to `to` where given."""
    parties = (sender,) if to is None else (sender, to)
    return [TRANSFER, *(f"0x{_word(int(party, 16))}" for party in parties)]


def is_transfer(log: Log, token: str, sender: str) -> bool:
    return log.address == token.lower() and list(log.topics[:2]) == transfer_topics(sender)


def is_payment(log: Log, token: str, sender: str, to: str, amount: int) -> bool:
    """Exactly this transfer and no other."""
    moved = list(log.topics) == transfer_topics(sender, to) and log.data == f"0x{_word(amount)}"
    return moved and is_transfer(log, token, sender)


def _word(value: int) -> str:
    return f"{value:064x}"
