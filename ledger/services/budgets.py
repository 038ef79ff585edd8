"""Commands on budgets and tariffs.

Invariant: a deposit is booked once per reference, and no price changes for work of the running epoch: a new tariff
takes effect from the next epoch on, only a stream's first one at once.
"""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from ledger.aggregates.book import Book
from ledger.aggregates.crew import Crew
from ledger.application import Ledger
from ledger.ids import BOOK_ID, CREW_ID
from ledger.services.retry import until_saved
from ledger.settings import Settings
from ledger.settlement import Tariff

TARIFF_FIELDS: Final = ("rate_micro_per_gb", "fee_bp", "floor_bp", "plain_bp", "plain_income_cap_bp")


def deposit(
    ledger: Ledger, stream_id: UUID, *, amount_micro: int, reference: str, at_us: int, dry_run: bool = False
) -> int:
    """Fund a stream; returns its budget. The same reference, stream and amount again change nothing.

    A stream without a tariff gets the crew's default one with its first deposit. Raises DomainError when the
    reference stands for something else or the amount is out of range.
    """

    def attempt() -> int:
        book = ledger.load_or_new(Book, BOOK_ID)
        if book.deposit(stream_id, amount_micro=amount_micro, reference=reference, at_us=at_us):
            if not book.tariff_version(stream_id):
                _set_tariff(book, ledger.load(Crew, CREW_ID), stream_id, {}, at_us)
            if not dry_run:
                ledger.save(book)
        return book.budget(stream_id)

    return until_saved(attempt)


def withdraw(
    ledger: Ledger, stream_id: UUID, *, amount_micro: int, reference: str, at_us: int, dry_run: bool = False
) -> int:
    """Give unspent budget back to the creator; returns what is left. Idempotent by reference."""

    def attempt() -> int:
        book = ledger.load_or_new(Book, BOOK_ID)
        booked = book.withdraw(stream_id, amount_micro=amount_micro, reference=reference, at_us=at_us)
        if booked and not dry_run:
            ledger.save(book)
        return book.budget(stream_id)

    return until_saved(attempt)


def set_tariff(
    ledger: Ledger,
    stream_id: UUID,
    *,
    at_us: int,
    rate_micro_per_gb: int | None = None,
    fee_bp: int | None = None,
    floor_bp: int | None = None,
    plain_bp: int | None = None,
    plain_income_cap_bp: int | None = None,
) -> int:
    """A new tariff; what is not given stays as it is (at first: the crew's defaults). Returns its version.

    The same numbers again make no new version. Raises DomainError for a value out of range.
    """
    given = {
        "rate_micro_per_gb": rate_micro_per_gb,
        "fee_bp": fee_bp,
        "floor_bp": floor_bp,
        "plain_bp": plain_bp,
        "plain_income_cap_bp": plain_income_cap_bp,
    }
    changes = {name: value for name, value in given.items() if value is not None}

    def attempt() -> int:
        book = ledger.load_or_new(Book, BOOK_ID)
        if _set_tariff(book, ledger.load(Crew, CREW_ID), stream_id, changes, at_us):
            ledger.save(book)
        return book.tariff_version(stream_id)

    return until_saved(attempt)


def _set_tariff(book: Book, crew: Crew, stream_id: UUID, changes: Mapping[str, int], at_us: int) -> bool:
    running = max((at_us - crew.genesis_us) // (crew.epoch_length_s * 1_000_000), book.next_epoch)
    newest = book.newest_tariff(stream_id)
    before = crew.settings if newest is None else newest
    # The bounds of the crew's settings hold for every tariff.
    wanted = Settings().changed({f: getattr(before, f) for f in TARIFF_FIELDS} | dict(changes))
    fields = {f: getattr(wanted, f) for f in TARIFF_FIELDS}
    if newest == Tariff(version=book.tariff_version(stream_id), **fields):
        return False
    first = newest is None
    book.set_tariff(stream_id, effective_epoch=running if first else running + 1, **fields, at_us=at_us)
    return True
