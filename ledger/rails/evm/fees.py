"""What a transaction may cost (EIP-1559): base fee and tip per unit of gas, in wei, under a cap.

Invariant: no fee passes the cap, whatever a node suggests; a replacement offers at least an eighth more than what it
replaces, in both numbers, as nodes ask for (go-ethereum: 10 %).
"""

from dataclasses import dataclass

GWEI = 10**9


class FeeTooHigh(Exception):
    """The chain asks for more than the cap allows, for now."""

    exit_code = 10


@dataclass(frozen=True, slots=True)
class Fees:
    max_fee: int  # wei per gas, all in all
    tip: int  # wei per gas of it, to whoever makes the block


def suggest(base_fee: int, tip: int, cap: int) -> Fees:
    """Room for the base fee to double (six full blocks), within the cap. Raises FeeTooHigh."""
    if base_fee >= cap:
        raise FeeTooHigh(
            f"a unit of gas costs {base_fee} wei now, and the cap is {cap} wei: try again later, or raise the cap"
        )
    tip = min(tip, cap - base_fee)
    return Fees(min(2 * base_fee + tip, cap), tip)


def replacement(old: Fees, now: Fees, cap: int) -> Fees | None:
    """Fees with which nodes take a transaction in place of one with `old`; None when the cap forbids it."""
    tip = max(now.tip, _eighth_more(old.tip))
    max_fee = max(now.max_fee, _eighth_more(old.max_fee), tip)
    return Fees(max_fee, tip) if max_fee <= cap else None


def _eighth_more(wei: int) -> int:
    return wei + -(-wei // 8)
