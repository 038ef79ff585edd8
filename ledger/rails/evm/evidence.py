"""What became of a payment, from what a node says about the chain.

Invariant: a final answer rests on two things that agree. Paid: a receipt in a block that the chain has at that height,
with enough blocks after it, and for a token exactly that transfer in its logs. Never to be paid: such a receipt of a
failure, and the recipient got nothing there; or another transaction used the nonce, in such a block. Whatever else a
node says, or does not, is `unknown`.
"""

from collections.abc import Sequence

from ledger.rails import Answer, Outcome
from ledger.rails.evm.erc20 import is_payment, is_transfer, transfer_topics
from ledger.rails.evm.node import Block, Node, NodeError, Receipt, address20, hash32, quantity
from ledger.rails.evm.signed import Signed


def became_of(node: Node, versions: Sequence[Signed], confirmations: int) -> Answer:
    """`versions` of one payment, oldest first. Raises NodeError."""
    for signed in reversed(versions):
        receipt = node.receipt(signed.hash)
        if receipt is not None:
            return _by_receipt(node, signed, receipt, confirmations)
    newest = versions[-1]
    unknown = Answer(Outcome.UNKNOWN, newest.hash)
    first = max(0, newest.head - confirmations)  # a reorganisation may have put it before the head of then
    final = node.latest().number - confirmations + 1
    if final <= first or node.nonce(newest.sender, final) <= newest.nonce:
        return unknown
    user = _user_of_nonce(node, newest, first, final)
    if user in {signed.hash for signed in versions}:  # it knows the block, and not yet the receipt
        return unknown
    return Answer(Outcome.FAILED, f"nonce used by {user}")


def _by_receipt(node: Node, signed: Signed, receipt: Receipt, confirmations: int) -> Answer:
    unknown = Answer(Outcome.UNKNOWN, signed.hash)
    if (receipt.transaction, receipt.sender) != (signed.hash, signed.sender):
        return unknown
    block = node.block(receipt.block_number)
    if block is None or block.hash != receipt.block_hash or signed.hash not in block.transactions:
        return unknown
    # The block that makes it final must be there, not only be counted to.
    if confirmations > 1 and node.block(receipt.block_number + confirmations - 1) is None:
        return unknown
    if receipt.succeeded and _paid(signed, receipt):
        return Answer(Outcome.CONFIRMED, signed.hash)
    if _got_nothing(node, signed, receipt):
        return Answer(Outcome.FAILED, f"{'moved nothing' if receipt.succeeded else 'reverted'} {signed.hash}")
    return unknown


def _paid(signed: Signed, receipt: Receipt) -> bool:
    if signed.token is None:
        return True  # a transaction that succeeds moves its value
    made = [log for log in receipt.logs if is_transfer(log, signed.token, signed.sender)]
    return len(made) == 1 and is_payment(made[0], signed.token, signed.sender, signed.to, signed.amount)


def _got_nothing(node: Node, signed: Signed, receipt: Receipt) -> bool:
    """By another index of the node than its receipts. Raises NodeError, as a node does that has not kept so much."""
    number = receipt.block_number
    if signed.token is None:
        gained = node.balance(signed.to, number) - node.balance(signed.to, number - 1)
        return not receipt.succeeded and gained < signed.amount
    if any(is_transfer(log, signed.token, signed.sender) for log in receipt.logs):
        return False
    made = node.logs(number, signed.token, transfer_topics(signed.sender))
    return not any(log.transaction == signed.hash for log in made)


def _user_of_nonce(node: Node, signed: Signed, before: int, at: int) -> str:
    """The hash of the sender's transaction with that nonce, unused after block `before`, used after block `at`.

    Raises NodeError.
    """
    while at - before > 1:
        middle = (before + at) // 2
        if node.nonce(signed.sender, middle) > signed.nonce:
            at = middle
        else:
            before = middle
    block = node.block(at, whole=True)
    user = None if block is None else _find(block, signed.sender, signed.nonce)
    if user is None:
        raise NodeError("the node's blocks and its nonces differ")
    receipt = node.receipt(user)
    if block is None or receipt is None:
        raise NodeError("the node has a transaction and no receipt of it")
    if (receipt.transaction, receipt.sender, receipt.block_hash) != (user, signed.sender, block.hash):
        raise NodeError("the node's blocks and its receipts differ")
    return user


def _find(block: Block, sender: str, nonce: int) -> str | None:
    for transaction in block.transactions:
        if not isinstance(transaction, str):
            fields = transaction.get("from"), transaction.get("nonce"), transaction.get("hash")
            if address20(fields[0]) == sender and quantity(fields[1]) == nonce:
                return hash32(fields[2])
    return None
