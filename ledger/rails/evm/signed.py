"""A signed transaction as it is kept: all that is needed to send it again, and to find it on the chain.

Invariant: a payment's versions have one nonce, one recipient and one amount; they differ in their fees alone, so the
chain takes one of them at most.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from ledger.rails.evm.erc20 import transfer_data
from ledger.rails.evm.fees import Fees


@dataclass(frozen=True, slots=True)
class Signed:
    key: str  # the payment's
    version: int  # 1, and one more for each replacement
    chain_id: int
    token: str | None
    sender: str  # lower case, like `to`
    to: str  # who is paid
    amount: int  # base units
    nonce: int
    gas: int
    max_fee: int
    tip: int
    head: int  # the newest block when its first version was signed: it is in none before
    hash: str = ""
    raw: str = ""

    @property
    def fees(self) -> Fees:
        return Fees(self.max_fee, self.tip)

    @property
    def journal_key(self) -> str:
        return journal_key(self.key, self.version)

    def signed_by(self, account: LocalAccount) -> Self:
        made = account.sign_transaction(
            call_of(self.token, self.to, self.amount)
            | {
                "type": 2,  # EIP-1559
                "chainId": self.chain_id,
                "nonce": self.nonce,
                "gas": self.gas,
                "maxFeePerGas": self.max_fee,
                "maxPriorityFeePerGas": self.tip,
            }
        )
        return replace(self, hash=f"0x{bytes(made.hash).hex()}", raw=f"0x{bytes(made.raw_transaction).hex()}")

    def replaced(self, fees: Fees, account: LocalAccount) -> Self:
        return replace(self, version=self.version + 1, max_fee=fees.max_fee, tip=fees.tip).signed_by(account)

    def record(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("key", "version")}

    @classmethod
    def from_record(cls, key: str, version: int, record: dict[str, Any]) -> Self:
        return cls(key=key, version=version, **record)


def journal_key(key: str, version: int) -> str:
    return key if version == 1 else f"{key}#{version}"


def call_of(token: str | None, to: str, amount: int) -> dict[str, Any]:
    """The part of the transaction that says what it does."""
    if token is None:
        return {"to": to_checksum_address(to), "value": amount, "data": "0x"}
    return {"to": token, "value": 0, "data": transfer_data(to, amount)}
