"""What a signing viewer has received under each ticket, and the cumulative receipts it signs for it. No IO.

Invariant: a receipt claims exactly the segments whose bytes were added under its ticket, with the digest over those
bytes; counters of a ticket grow.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from ledger.keys import KeyPair
from ledger.receipt import Receipt, SignedReceipt, fold_digests, segment_digest, to_bitmap
from ledger.ticket import SignedTicket

MAX_TICKETS: Final = 32


@dataclass(slots=True)
class Tally:
    ticket: SignedTicket
    node_url: str  # where the receipts go first, without a trailing slash
    digests: dict[int, bytes] = field(default_factory=dict)  # by sequence
    counter: int = 0
    unsaid: bool = False  # something was added that nobody has acknowledged

    def receipt(self, key: KeyPair) -> SignedReceipt:
        self.counter += 1
        base, sequences = self.ticket.ticket.first_sequence, sorted(self.digests)
        return Receipt(
            ticket_hash=self.ticket.ticket.hash,
            counter=self.counter,
            base_sequence=base,
            bitmap=to_bitmap(base, sequences),
            digest=fold_digests(self.digests[s] for s in sequences),
        ).sign(key)


class Tallies:
    """By ticket; the oldest is let go when there are more than `MAX_TICKETS`."""

    def __init__(self) -> None:
        self._by_text: OrderedDict[str, Tally] = OrderedDict()

    def add(self, ticket_text: str, node_url: str, sequence: int, segment: bytes) -> None:
        """Raises WireError when the text is no ticket. A segment outside the ticket is not counted."""
        tally = self._by_text.get(ticket_text)
        if tally is None:
            tally = self._by_text[ticket_text] = Tally(SignedTicket.decode_url(ticket_text), node_url)
            if len(self._by_text) > MAX_TICKETS:
                self._by_text.popitem(last=False)
        if tally.ticket.ticket.covers(sequence) and sequence not in tally.digests:
            tally.digests[sequence] = segment_digest(tally.ticket.ticket.nonce, segment)
            tally.unsaid = True

    def all(self) -> list[Tally]:
        return [t for t in self._by_text.values() if t.digests]

    def unsaid(self) -> list[Tally]:
        return [t for t in self._by_text.values() if t.unsaid]
