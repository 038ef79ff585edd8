"""The hub's own ledger as a log to explain from, and the quick explanation for the API.

Invariant: the quick explanation reads only the settlement, its range of the log and the book's own events, and says
the same numbers as the one that reads the whole log; what it cannot know from there it leaves out (`receipts` None).
"""

from collections.abc import Iterator
from typing import Final
from uuid import UUID

from ledger.aggregates.book import Book
from ledger.aggregates.crew import Crew
from ledger.aggregates.session import TicketRecord
from ledger.application import Ledger, NotFound
from ledger.events import (
    DisputeOpened,
    DisputeRejected,
    EpochSettled,
    Event,
    NodeProbed,
    PayoutLineConfirmed,
    PayoutLineReturned,
    SegmentsServed,
    SettingsChanged,
    SettlementLine,
)
from ledger.ids import BOOK_ID, CREW_ID, ticket_record_id
from ledger.receipt import SIGNED_BYTES, SignedReceipt
from ledger.services.credit_index import Source
from ledger.services.explain import (
    Events,
    Explanation,
    Means,
    NothingToExplain,
    explain,
    explain_line,
)
from ledger.settings import Settings
from ledger.settlement import FLOOR_SHARE, OVER_RATE, Credit
from ledger.ticket import Ticket, ViewerClass
from ledger.verdict import Verdict

READ_EVENTS: Final = 2_000
RANGE_EVENTS_MAX: Final = (
    50_000  # of a settlement's range that the quick explanation looks through for receipts
)


class LedgerLog:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def events(self, start: int, end: int | None) -> Iterator[tuple[int, Event]]:
        while end is None or start < end:
            limit = READ_EVENTS if end is None else min(READ_EVENTS, end - start)
            page = self._ledger.read(start, limit)
            if not page:
                return
            for recorded in page:
                yield recorded.position, recorded.event
            start = page[-1].position + 1


def explain_recorded(
    ledger: Ledger, position: int, line: int, *, friend_id: UUID | None = None
) -> Explanation:
    """As `explain`, for a hub that is busy. Raises NothingToExplain, ExplanationFailed, Unavailable.

    With `friend_id`, lines of others are not there: nothing is derived for who may not see it.
    """
    log = LedgerLog(ledger)
    first = next((e for _, e in log.events(position, position + 1)), None)
    if not isinstance(first, EpochSettled):
        made = explain(_BookOnly(ledger, log, first), position, line)
        if friend_id not in (None, made.friend_id):
            raise NothingToExplain(f"position {position} has no line of this friend")
        return made
    if not 0 <= line < len(first.lines):
        raise NothingToExplain(f"position {position} has {len(first.lines)} lines, from 0")
    recorded = first.lines[line]
    if friend_id not in (None, recorded.friend_id):
        raise NothingToExplain(f"position {position} has no line of this friend")
    start = position - first.page + 1
    pages = [e for _, e in log.events(start, start + first.pages) if isinstance(e, EpochSettled)]
    # Then no receipt is paid in full (CreditIndex.sources).
    over_rate = any(
        x.node_id == recorded.node_id and x.reason == OVER_RATE for page in pages for x in page.lines
    )
    receipts, spot_checks = (None, None) if over_rate else _receipts(ledger, log, first, line)
    if recorded.reason == FLOOR_SHARE:
        receipts = ()
    means = Means()
    for event in ledger.history(BOOK_ID, up_to=first.originator_version - first.page):
        means.apply(event)
    setter, _ = means.version(recorded.stream_id, recorded.tariff_version)
    return explain_line(
        [
            (_credit(x), means.version(x.stream_id, x.tariff_version)[1])
            for page in pages
            for x in page.lines
            if x.stream_id == recorded.stream_id and x.reason != FLOOR_SHARE
        ],
        first,
        position,
        line,
        budget_micro=means.budget(recorded.stream_id),
        floor_most_bp=_settings(ledger, first.log_to).floor_most_bp,
        tariff_at=ledger.position_of(BOOK_ID, setter.originator_version) if setter else None,
        receipts=receipts,
        spot_checks=spot_checks if recorded.reason.startswith("plain") else (),
    )


def _credit(line: SettlementLine) -> Credit:
    return Credit(
        stream_id=line.stream_id,
        node_id=line.node_id,
        friend_id=line.friend_id,
        plain=line.reason.startswith("plain"),
        late=line.reason.endswith("_late"),
        units=line.units,
        credited_bytes=line.credited_bytes,
        over_rate=line.reason == OVER_RATE,
    )


def _settings(ledger: Ledger, log_to: int) -> Settings:
    """Those in force at the end of the log before `log_to`, as ledger.services.credit_index takes them."""
    found = Settings()
    for event in ledger.history(CREW_ID, up_to=ledger.load(Crew, CREW_ID).version):
        if isinstance(event, SettingsChanged):
            if ledger.position_of(CREW_ID, event.originator_version) >= log_to:
                break
            found = Settings.recorded(event.settings)
    return found


class _BookOnly:
    """A log of which only those events of the book are of interest that explain the one in question."""

    def __init__(self, ledger: Ledger, log: LedgerLog, asked: Event | None) -> None:
        self._ledger, self._log, self._asked = ledger, log, asked

    def _matters(self, event: Event) -> bool:
        """To ask for the position of each event of the book would take a query each."""
        asked = self._asked
        if isinstance(asked, PayoutLineReturned):
            return isinstance(event, PayoutLineConfirmed | PayoutLineReturned) and (
                (event.batch_id, event.line) == (asked.batch_id, asked.line)
            )
        return isinstance(event, EpochSettled | DisputeOpened | DisputeRejected)

    def events(self, start: int, end: int | None) -> Iterator[tuple[int, Event]]:
        if end is not None and end - start == 1:
            yield from self._log.events(start, end)
            return
        book = self._ledger.load_or_new(Book, BOOK_ID)
        for event in self._ledger.history(BOOK_ID, up_to=book.version):
            if self._matters(event):
                position = self._ledger.position_of(BOOK_ID, event.originator_version)
                if end is not None and position >= end:
                    return
                if position >= start:
                    yield position, event


_Receipts = tuple[Source, ...]


def _receipts(
    ledger: Ledger, log: Events, settled: EpochSettled, line: int
) -> tuple[_Receipts | None, _Receipts | None]:
    """Receipts of the range that add up to the line, and those of spot checks. None: only the whole log tells."""
    recorded = settled.lines[line]
    if recorded.reason == FLOOR_SHARE:
        return (), ()
    if settled.log_to - settled.log_from > RANGE_EVENTS_MAX:
        return None, None
    late = recorded.reason.endswith("_late")
    tickets: dict[bytes, Ticket | None] = {}
    found: list[tuple[UUID, Source]] = []
    probes: set[UUID] = set()  # sessions
    for position, event in log.events(settled.log_from, settled.log_to):
        if isinstance(event, NodeProbed) and event.session_id is not None:
            probes.add(event.session_id)
        if not isinstance(event, SegmentsServed) or event.node_id != recorded.node_id:
            continue
        for n, judged in enumerate(event.judged):
            if judged.verdict != Verdict.ACCEPTED:
                continue
            data = event.receipts[n * SIGNED_BYTES : (n + 1) * SIGNED_BYTES]
            ticket_hash = SignedReceipt.decode(data).receipt.ticket_hash
            if ticket_hash not in tickets:
                tickets[ticket_hash] = _ticket(ledger, ticket_hash)
            ticket = tickets[ticket_hash]
            if ticket is None or ticket.stream_id != recorded.stream_id:
                continue
            plain = ticket.viewer_class is ViewerClass.PLAIN
            if plain is recorded.reason.startswith("plain"):
                source = Source(position, n, late, judged.units, judged.credited_bytes)
                found.append((ticket.session_id, source))
    paid = tuple(source for session, source in found if session not in probes)
    adds_up = (sum(s.units for s in paid), sum(s.credited_bytes for s in paid)) == (
        recorded.units,
        recorded.credited_bytes,
    )
    if not adds_up:
        return None, None
    return paid, tuple(source for session, source in found if session in probes)


def _ticket(ledger: Ledger, ticket_hash: bytes) -> Ticket | None:
    try:
        return ledger.load(TicketRecord, ticket_record_id(ticket_hash)).signed.ticket
    except NotFound:
        return None
