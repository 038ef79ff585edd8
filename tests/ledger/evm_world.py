"""A chain of one's own, an asset on it, and the operator's journal: what every test of paying on a chain stands on."""

from pathlib import Path
from typing import Any
from uuid import UUID

from eth_account import Account
from evm_chain import GWEI, OPERATOR, LocalChain
from test_payout import FRIENDS

from ledger.rails import Payment
from ledger.rails.evm.asset import Asset
from ledger.rails.evm.node import Node, Transport
from ledger.rails.evm.rail import EvmRail
from ledger.services.destinations import Destination

CONFIRMATIONS = 3
ADDRESSES = {f: Account.from_key(f.int.to_bytes(32)).address for f in FRIENDS}
DESTINATIONS = {f: Destination(address, f.bytes) for f, address in ADDRESSES.items()}
COMMITMENTS = {f: d.commitment for f, d in DESTINATIONS.items()}


class World:
    """A chain, an asset on it, and the operator's journal."""

    def __init__(
        self, folder: Path, kind: str | None = "standard", *, decimals: int = 18, supply: int = 10**30
    ) -> None:
        self.chain = LocalChain()
        token = self.chain.deploy(kind, decimals=decimals, supply=supply) if kind else None
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


def payment(n: int, amount_micro: int = 1_500_000, **changes: Any) -> Payment:
    friend = FRIENDS[n % 3]
    fields = {"friend_id": friend, "unit": "EUR", "destination": ADDRESSES[friend]} | changes
    return Payment(key=f"batch:{n}", amount_micro=amount_micro, **fields)


def asked(rail: EvmRail, n: int) -> str:
    return rail.look_up(f"batch:{n}").outcome.value
