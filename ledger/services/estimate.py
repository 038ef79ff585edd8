"""What the credits that no settlement has read yet would come to, if they were settled now.

Invariant: an estimate is a settlement that is drafted and thrown away. It is what the next settlement pays, to the
micro-unit, when nothing more comes in before the epoch ends; it is recorded nowhere, and nothing rests on it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from ledger.aggregates.book import Book
from ledger.application import Ledger
from ledger.ids import BOOK_ID
from ledger.money import budget_account
from ledger.services.credit_index import CreditIndex
from ledger.services.settle import catch_up, draft


@dataclass(slots=True)
class Portion:
    """Of one friend: what was delivered and earns. Of one stream: what was delivered and leaves the budget, fee and
    all. Amounts in micro-units.
    """

    credited_bytes: int = 0
    amount_micro: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    position: int  # the log before it was read
    ends_us: int  # end of the running epoch; settled soon after
    friends: Mapping[UUID, Portion]
    streams: Mapping[UUID, Portion]


def estimate(
    ledger: Ledger, index: CreditIndex, *, at_us: int, alive: Callable[[], None] = lambda: None
) -> Estimate | None:
    """All that is not settled, as if it belonged to the epoch of `at_us`. Folds what is new into `index`.

    None while there is no crew, or when a settlement comes in between: ask again.
    Raises Unavailable (try again) and BrokenLogError.
    """
    book = ledger.load_or_new(Book, BOOK_ID)
    catch_up(ledger, index, alive=alive)
    if not index.position or (index.next_epoch, index.settled_to) != (book.next_epoch, book.settled_to):
        return None
    epoch = index.epoch_of(at_us)
    friends: dict[UUID, Portion] = {}
    streams: dict[UUID, Portion] = {}
    left: Counter[str] = Counter()  # what leaves each account
    for page in draft(index, book, epoch=epoch, log_to=index.position):
        for line in page.lines:
            for portion in (
                friends.setdefault(line.friend_id, Portion()),
                streams.setdefault(line.stream_id, Portion()),
            ):
                portion.credited_bytes += line.credited_bytes
            friends[line.friend_id].amount_micro += line.amount_micro
        for transfer in page.transfers:
            for posting in transfer.postings:
                left[posting.account] -= posting.amount_micro
    for stream_id, portion in streams.items():
        portion.amount_micro = left[budget_account(stream_id)]
    return Estimate(index.position, index.ends_us(epoch), friends, streams)
