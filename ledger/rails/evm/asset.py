"""What is paid with: the coin of one chain or one ERC-20 token, and how many of its base units a micro-unit is.

Invariant: amounts are converted by integers alone and exactly; what cannot be expressed is refused, never rounded. A
plan takes whole multiples of `quantum_micro`, so that the rest stays available.
"""

from dataclasses import dataclass
from typing import Final

MICRO_DECIMALS: Final = 6
MAX_DECIMALS: Final = 30
COIN_DECIMALS: Final = 18  # wei in one coin


class AmountError(ValueError):
    """An amount that the asset has no base units for."""


@dataclass(frozen=True, slots=True)
class Asset:
    chain_id: int  # EIP-155
    token: str | None  # the ERC-20 contract, with checksum; None: the chain's own coin
    decimals: int  # base units in one whole: 10 ** decimals
    unit: str  # the unit of account that one whole of it is worth

    def __post_init__(self) -> None:
        if self.chain_id < 1 or not 0 <= self.decimals <= MAX_DECIMALS:
            raise ValueError(f"a chain id is positive, decimals are 0 to {MAX_DECIMALS}")

    @property
    def name(self) -> str:
        """As recorded in the payout: CAIP-2 for the coin (`eip155:1`), CAIP-19 for a token."""
        chain = f"eip155:{self.chain_id}"
        return chain if self.token is None else f"{chain}/erc20:{self.token}"

    @property
    def quantum_micro(self) -> int:
        """The smallest amount that has base units: more than 1 where the token has fewer than six decimals."""
        return int(10 ** max(0, MICRO_DECIMALS - self.decimals))

    def base_units(self, amount_micro: int) -> int:
        """Raises AmountError for what is not a whole, positive number of base units."""
        whole, rest = divmod(amount_micro * 10**self.decimals, 10**MICRO_DECIMALS)
        if rest or whole <= 0:
            raise AmountError(f"an amount is a positive multiple of {self.quantum_micro} micro-units here")
        return int(whole)


def decimal(base_units: int, decimals: int) -> str:
    """Exact decimal text, for people."""
    whole, rest = divmod(base_units, 10**decimals)
    fraction = f"{rest:0{decimals}d}".rstrip("0") if decimals else ""
    return f"{whole}.{fraction}" if fraction else str(whole)
