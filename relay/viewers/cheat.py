"""A node that tries every way to be paid for nothing, for the demo and the tests. The hub must refuse each.

Invariant: everything here is well-formed and signed by the cheat's own real key, so that what stops it is the rule it
breaks and not a broken message.
"""

import random
import time
from collections.abc import Iterable, Sequence
from typing import Self

from ledger.batch import Batch
from ledger.keys import KeyPair
from ledger.receipt import Receipt, SignedReceipt, fold_digests, segment_digest, to_bitmap
from ledger.ticket import SignedTicket
from relay.node.hub_client import HubClient, VerdictLine


def claim(
    ticket: SignedTicket, segments: dict[int, bytes], signer: KeyPair, *, counter: int = 1
) -> SignedReceipt:
    """An honest receipt for these segments (sequence -> bytes), signed by whoever is given."""
    base, sequences = ticket.ticket.first_sequence, sorted(segments)
    return Receipt(
        ticket_hash=ticket.ticket.hash,
        counter=counter,
        base_sequence=base,
        bitmap=to_bitmap(base, sequences),
        digest=fold_digests(segment_digest(ticket.ticket.nonce, segments[s]) for s in sequences),
    ).sign(signer)


def forged(ticket: SignedTicket, segments: dict[int, bytes], made_up: KeyPair) -> SignedReceipt:
    """A right digest, signed with a viewer key that the ticket does not name: bad_signature."""
    return claim(ticket, segments, made_up)


def out_of_range(ticket: SignedTicket, segment: bytes, signer: KeyPair) -> SignedReceipt:
    """Claims the segment after the ticket's last: out_of_range. Needs a viewer who helps (or a class 2 ticket)."""
    beyond = ticket.ticket.last_sequence + 1
    return Receipt(
        ticket_hash=ticket.ticket.hash,
        counter=1,
        base_sequence=beyond,
        bitmap=to_bitmap(beyond, [beyond]),
        digest=fold_digests([segment_digest(ticket.ticket.nonce, segment)]),
    ).sign(signer)


def flipped(receipt: SignedReceipt, ticket: SignedTicket, signer: KeyPair) -> SignedReceipt:
    """Claims one more segment of the ticket without having its bytes: digest_mismatch (or never published)."""
    old = receipt.receipt
    claimed = set(old.sequences())
    ranged = range(ticket.ticket.first_sequence, ticket.ticket.last_sequence + 1)
    more = next((s for s in ranged if s not in claimed), None)
    if more is None:
        raise ValueError("the receipt claims the whole ticket already")
    return Receipt(
        ticket_hash=old.ticket_hash,
        counter=old.counter + 1,
        base_sequence=old.base_sequence,
        bitmap=to_bitmap(old.base_sequence, [*claimed, more]),
        digest=old.digest,
    ).sign(signer)


class CheatingNode:
    """A joined node that goes bad. `send` answers with the hub's verdict on each receipt.

    To replay, send an accepted receipt again; to move one, send a receipt of another node's ticket.
    """

    def __init__(self, hub_url: str, key: KeyPair) -> None:
        self.key = key
        self._hub = HubClient(hub_url, key)

    async def __aenter__(self) -> Self:
        await self._hub.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._hub.__aexit__(*exc)

    async def send(self, receipts: Iterable[SignedReceipt]) -> list[VerdictLine]:
        now_s = int(time.time())
        return await self._hub.send_batch(Batch.sign(self.key, now_s, now_s, [r.encode() for r in receipts]))

    async def send_shuffled(
        self, receipts: Sequence[SignedReceipt], *, times: int = 10, seed: int = 0
    ) -> list[list[VerdictLine]]:
        """The same receipts again and again, in another order each time; verdicts in the given order."""
        order_of = random.Random(seed)
        answers = []
        for _ in range(times):
            order = list(range(len(receipts)))
            order_of.shuffle(order)
            verdicts = await self.send([receipts[i] for i in order])
            answers.append([verdicts[order.index(i)] for i in range(len(receipts))])
        return answers
