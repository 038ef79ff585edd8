"""Claims for players that cannot sign (class 2): what this node delivered completely, in receipts of its own.

Invariant: a claim names only segments whose every byte was handed to a client that was still connected at the end,
and its digest is over exactly those bytes. What that is worth is the hub's to decide (it saw the player's polls).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ledger.keys import KeyPair
from ledger.receipt import BITMAP_BITS, Receipt, SignedReceipt, fold_digests, segment_digest, to_bitmap
from relay.node.tickets import Admitted

MAX_TICKETS: Final = 8_192
_MAX_COUNTER: Final = (1 << 32) - 1


@dataclass(slots=True)
class _Delivered:
    admitted: Admitted
    digests: dict[int, bytes] = field(default_factory=dict)  # by sequence
    counter: int = 0
    new: bool = False


class PlainClaims:
    """`now_s` only starts the counters, so that a restarted node does not use one twice."""

    def __init__(self, node: KeyPair, *, now_s: Callable[[], float]) -> None:
        self._node = node
        self._now_s = now_s
        self._delivered: OrderedDict[bytes, _Delivered] = OrderedDict()

    def delivered(self, admitted: Admitted, sequence: int, segment: bytes | memoryview) -> None:
        """A player got all of this segment under this ticket."""
        entry = self._delivered.get(admitted.hash)
        if entry is None:
            entry = self._delivered[admitted.hash] = _Delivered(admitted, counter=int(self._now_s()))
            if len(self._delivered) > MAX_TICKETS:
                self._delivered.popitem(last=False)
        self._delivered.move_to_end(admitted.hash)
        if sequence not in entry.digests:
            entry.digests[sequence] = segment_digest(admitted.ticket.nonce, segment)
            entry.new = True

    def sign_new(self) -> list[SignedReceipt]:
        """A cumulative receipt for each ticket with something new since the last call."""
        return [self._sign(e) for e in self._delivered.values() if e.new]

    def sign_again(self, ticket_hash: bytes) -> None:
        """The claim could not be kept on disk: it comes again with the next `sign_new`."""
        if ticket_hash in self._delivered:
            self._delivered[ticket_hash].new = True

    def _sign(self, entry: _Delivered) -> SignedReceipt:
        entry.new = False
        entry.counter = min(entry.counter + 1, _MAX_COUNTER)
        base = entry.admitted.ticket.first_sequence
        assert entry.admitted.ticket.last_sequence - base < BITMAP_BITS
        sequences = sorted(entry.digests)
        return Receipt(
            ticket_hash=entry.admitted.hash,
            counter=entry.counter,
            base_sequence=base,
            bitmap=to_bitmap(base, sequences),
            digest=fold_digests(entry.digests[s] for s in sequences),
        ).sign(self._node)
