"""The EVM rail: one payment, one nonce, for ever.

Invariants, however often and wherever the process dies, and whatever a node says:

- A key is decided once, under the journal's lock, and the decision is on disk before anything is sent: either it is
  refused for ever, or it has a nonce and the bytes of its transaction. What is sent is read from there.
- A nonce belongs to one key. A replacement (more fee) has the same nonce, recipient and amount, and is on disk before
  it is sent. The chain takes one transaction for each nonce, so it pays a key at most once.
- Final answers follow from `evidence.py` alone; sending answers `unknown`, always.
- The chain's id is asked for before each question, and stands in what is signed: no other chain is paid on or believed.

So the journal must live as long as the account is used, and the account must be used by nothing else. When the chain
holds transactions of the account that the journal does not know (a lost or older journal, another program), or the node
knows that such wait for a block, nothing is signed until the operator says from which nonce on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from eth_account.signers.local import LocalAccount

from ledger.rails import Answer, OtherPayment, Outcome, Payment
from ledger.rails.evm import erc20
from ledger.rails.evm.address import AddressError, check_address
from ledger.rails.evm.asset import AmountError, Asset
from ledger.rails.evm.evidence import became_of
from ledger.rails.evm.fees import Fees, replacement, suggest
from ledger.rails.evm.node import Node, NodeError, NodeRefused
from ledger.rails.evm.signed import Signed, call_of, journal_key
from ledger.rails.journal import Journal

log = structlog.get_logger()

USUAL_GAS: Final = {True: 65_000, False: 21_000}  # of a token's transfer, of the coin's to a plain account
MAX_GAS: Final = 500_000  # a transfer that needs more is refused: its cost has a bound


class WrongChain(Exception):
    """The node, the token or the journal is not of the chain and asset that the settings name."""

    exit_code = 2


class InsufficientFunds(Exception):
    """The account cannot pay all of this. Nothing was reserved."""

    exit_code = 1


class UnknownTransactions(Exception):
    """The account has sent transactions that the journal does not know."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would cost; wei, and base units of the asset. Fees are the most they can be."""

    account: str
    coin_balance: int
    asset_balance: int
    asset_needed: int  # with what is signed and not in a block yet
    fee_each: int  # of one usual transfer
    fee_needed: int
    next_nonce: int

    @property
    def shortfall(self) -> str:
        """What is missing, for people; empty when nothing is."""
        missing = []
        if self.asset_balance < self.asset_needed:
            missing.append(f"has {self.asset_balance} of the {self.asset_needed} base units to be paid")
        if self.coin_balance < self.fee_needed:
            missing.append(f"has {self.coin_balance} of the {self.fee_needed} wei that fees may take")
        return f"the account {self.account} " + " and ".join(missing) if missing else ""


class EvmRail:
    def __init__(
        self,
        journal: Path,
        node: Node,
        account: LocalAccount,
        asset: Asset,
        *,
        fee_cap: int,
        confirmations: int,
        from_nonce: int | None = None,
    ) -> None:
        """`fee_cap` is wei per gas. `confirmations`: blocks up to and with the newest, the payment's own included."""
        if confirmations < 1 or fee_cap < 1:
            raise ValueError("at least one confirmation, and a fee")
        self._journal = Journal(journal)
        self._node, self._account, self.asset = node, account, asset
        self._sender = account.address.lower()
        self._fee_cap, self._confirmations, self._from_nonce = fee_cap, confirmations, from_nonce

    @property
    def name(self) -> str:
        return self.asset.name

    # --- the questions of a rail

    def prepare(self, amounts_micro: Sequence[int]) -> None:
        """Send again what is in no block, with more fee where it needs it; then see that so much can be paid.

        Raises NodeError, WrongChain, FeeTooHigh, UnknownTransactions, InsufficientFunds.
        """
        self._check_chain()
        self._check_token()
        base_fee, fees = self._fees()
        for signed in self._unmined():
            self._push(signed, base_fee, fees)
        if amounts_micro and (shortfall := self.estimate(amounts_micro).shortfall):
            raise InsufficientFunds(f"{shortfall}; nothing new was begun")

    def submit(self, payment: Payment) -> Answer:
        """Sign, once for each key, and send. Raises what leaves the key undecided, OSError among it."""
        self._check_chain()
        self._journal.add(payment.key, lambda known: self._decide(payment, known))
        known = self._journal.all()
        versions = self._versions(payment.key, known)
        if not versions:
            return _refused(payment.key, known)
        newest = versions[-1]
        if (newest.to, newest.amount) != (payment.destination.lower(), self._amount(payment)):
            raise OtherPayment(payment.key)
        self._send(newest)
        return Answer(Outcome.UNKNOWN, newest.hash)

    def look_up(self, key: str) -> Answer:
        """Raises WrongChain, OSError. What the node does not answer is unknown."""
        known = self._journal.all()  # looked at once: somebody may be signing this very key
        versions = self._versions(key, known)
        if not versions:
            return _refused(key, known)
        try:
            self._check_chain()
            return became_of(self._node, versions, self._confirmations)
        except NodeError as error:
            log.warning("the node gave no answer about a payment", key=key, error=str(error))
            return Answer(Outcome.UNKNOWN, versions[-1].hash)

    def estimate(self, amounts_micro: Sequence[int]) -> Estimate:
        """Of paying these amounts now. Raises NodeError, WrongChain, FeeTooHigh, UnknownTransactions, AmountError."""
        self._check_chain()
        self._check_token()
        (_, fees), waiting = self._fees(), list(self._unmined())
        mine = [signed for signed in waiting if signed.sender == self._sender]
        fee_each = USUAL_GAS[self.asset.token is not None] * fees.max_fee
        fee = len(amounts_micro) * fee_each + sum(signed.gas * signed.max_fee for signed in mine)
        asset = sum(self.asset.base_units(amount) for amount in amounts_micro)
        asset += sum(signed.amount for signed in mine if signed.token == self.asset.token)
        coin = self._node.balance(self._sender)
        if self.asset.token is None:
            available = max(0, coin - fee)
        else:
            call = {"to": self.asset.token, "data": erc20.balance_data(self._sender)}
            found = erc20.number(self._node.call(call))
            if found is None:
                raise WrongChain(f"the token {self.asset.token} tells no balance: it is no ERC-20 token")
            available = found
        next_nonce = self._next_nonce(self._journal.all())
        return Estimate(self._account.address, coin, available, asset, fee_each, fee, next_nonce)

    # --- deciding about a key, under the lock

    def _decide(self, payment: Payment, known: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        fault = self._fault(payment)
        if fault:
            return {"refused": fault}
        to, amount = payment.destination.lower(), self._amount(payment)
        head = self._node.latest()  # before the nonce is asked for: it is unused up to here
        fees = suggest(head.base_fee, self._node.tip(), self._fee_cap)
        gas = self._gas(to, amount)
        if gas is None:
            return {"refused": "the chain refuses this transfer"}
        signed = Signed(
            key=payment.key,
            version=1,
            chain_id=self.asset.chain_id,
            token=self.asset.token,
            sender=self._sender,
            to=to,
            amount=amount,
            nonce=self._next_nonce(known),
            gas=gas,
            max_fee=fees.max_fee,
            tip=fees.tip,
            head=head.number,
        )
        return signed.signed_by(self._account).record()

    def _fault(self, payment: Payment) -> str:
        """Why this payment can never be made; empty when it can. Never holds the destination."""
        try:
            to = check_address(payment.destination)
            self.asset.base_units(payment.amount_micro)
        except (AddressError, AmountError) as error:
            return str(error)
        if payment.unit != self.asset.unit:
            return f"the settings pay {self.asset.unit}, not {payment.unit}"
        if to.lower() == self._sender or to == self.asset.token:
            return "the recipient is the paying account or the token itself"
        return ""

    def _amount(self, payment: Payment) -> int:
        return self.asset.base_units(payment.amount_micro)

    def _gas(self, to: str, amount: int) -> int | None:
        """A limit for the transfer, a quarter above the estimate; None when the chain refuses it. Raises NodeError.

        Never below the usual: no block takes a transaction with too little, and all later nonces would wait for it.
        """
        call = call_of(self.asset.token, to, amount)
        request = {"from": self._sender, "to": call["to"], "value": hex(call["value"]), "data": call["data"]}
        try:
            if self.asset.token is not None and not erc20.accepted(self._node.call(request)):
                return None
            gas = self._node.estimate_gas(request)
        except NodeRefused as error:
            if error.reverted:
                return None
            raise
        return max(gas + gas // 4, USUAL_GAS[self.asset.token is not None]) if gas <= MAX_GAS else None

    def _next_nonce(self, known: Mapping[str, dict[str, Any]]) -> int:
        """After all that the journal knows, and all that the node does. Raises UnknownTransactions, NodeError."""
        nonces = [
            record["nonce"]
            for record in known.values()
            if record.get("sender") == self._sender and record["chain_id"] == self.asset.chain_id
        ]
        expected = max(nonces, default=-1) + 1
        # Also what waits: it may be mined after its line was signed again.
        sent = max(self._node.nonce(self._sender), self._node.nonce_with_waiting(self._sender))
        if sent > expected and self._from_nonce != sent:
            raise UnknownTransactions(
                f"the account {self._account.address} has sent {sent} transactions, and the journal knows of "
                f"{expected}. Was the journal lost, or restored from a backup? Then find out first what those paid. "
                f"If they paid none of these friends: --from-nonce {sent}"
            )
        return max(expected, sent)

    # --- what is signed

    def _versions(self, key: str, known: Mapping[str, dict[str, Any]]) -> list[Signed]:
        """Oldest first; none for a key that is unknown or refused. Raises WrongChain."""
        found: list[Signed] = []
        while (record := known.get(journal_key(key, len(found) + 1))) and "refused" not in record:
            found.append(Signed.from_record(key, len(found) + 1, record))
        if found and (found[0].chain_id, found[0].token) != (self.asset.chain_id, self.asset.token):
            raise WrongChain(f"this payment was signed for another asset than {self.asset.name}")
        return found

    def _unmined(self) -> Iterator[Signed]:
        """The newest version of all that is signed for this chain and in no block, by nonce. Raises NodeError."""
        newest: dict[tuple[str, int], Signed] = {}
        for name, record in self._journal.all().items():
            if "refused" not in record and record["chain_id"] == self.asset.chain_id:
                key, _, version = name.partition("#")
                newest[record["sender"], record["nonce"]] = Signed.from_record(key, int(version or 1), record)
        counts = {sender: self._node.nonce(sender) for sender in {sender for sender, _ in newest}}
        for (sender, nonce), signed in sorted(newest.items()):
            if nonce >= counts[sender]:
                yield signed

    def _push(self, signed: Signed, base_fee: int, fees: Fees) -> None:
        """See that a node has it, with as much fee as blocks ask for now. Raises NodeError, OSError."""
        better = None
        if signed.max_fee < base_fee and signed.sender == self._sender:
            better = replacement(signed.fees, fees, self._fee_cap)
        if better is not None:
            replaced = signed.replaced(better, self._account)
            self._journal.add(replaced.journal_key, lambda _: replaced.record())
            signed = self._on_disk(replaced)
        elif self._node.knows(signed.hash):
            return
        self._send(signed)

    def _on_disk(self, signed: Signed) -> Signed:
        """What stands on disk as that version: another run may have been first."""
        record = self._journal.get(signed.journal_key)
        return signed if record is None else Signed.from_record(signed.key, signed.version, record)

    def _send(self, signed: Signed) -> None:
        try:
            self._node.send(signed.raw)
        except NodeError as error:  # known already, too cheap, not reached: looking it up will tell
            log.info("the node did not confirm that it took a payment", key=signed.key, error=str(error))

    # --- the chain

    def _fees(self) -> tuple[int, Fees]:
        """What a unit of gas costs now, and what to offer for it. Raises NodeError, FeeTooHigh."""
        base_fee = self._node.latest().base_fee
        return base_fee, suggest(base_fee, self._node.tip(), self._fee_cap)

    def _check_chain(self) -> None:
        chain_id = self._node.chain_id()
        if chain_id != self.asset.chain_id:
            raise WrongChain(f"the node is on chain {chain_id}, not on {self.asset.chain_id}")

    def _check_token(self) -> None:
        """A wrong number of decimals would pay a million times too much: what the token says must be what is set."""
        if self.asset.token is None:
            return
        try:
            said = erc20.number(self._node.call({"to": self.asset.token, "data": erc20.decimals_data()}))
        except NodeRefused:  # the standard does not ask for it
            said = None
        if said not in (None, self.asset.decimals):
            raise WrongChain(f"the token has {said} decimals, and the settings say {self.asset.decimals}")


def _refused(key: str, known: Mapping[str, dict[str, Any]]) -> Answer:
    """The answer about a key for which nothing is signed."""
    record = known.get(key)
    return Answer(Outcome.ABSENT) if record is None else Answer(Outcome.FAILED, record["refused"])
