"""The books as plain text accounting: beancount or hledger, from the log alone.

Invariant: every transfer of the log is one transaction that balances, with all six decimals, its date (UTC), its reason
and its position in the log; the balances asserted at the end are the sums of the postings. Signs are those of
accounting: money that came in is an asset (positive), what is owed a liability (negative); each amount is ours negated.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final, Protocol

from ledger.events import AdjustmentBooked, CrewFounded, Event, PayoutLineReturned, transfers_of
from ledger.money import decimal_text

STATES: Final = {"pending": "Pending", "available": "Available", "in_flight": "InFlight"}
_DAY: Final = timedelta(days=1)


class Format(Protocol):
    def transaction(
        self, on: date, reason: str, note: str, position: int, rows: list[tuple[str, int]]
    ) -> Iterator[str]:
        """`rows` are (account, amount in micro-units)."""
        ...

    def close(self, first: date, last: date, balances: dict[str, int]) -> Iterator[str]: ...


def account_name(account: str) -> str:
    """The account's name in the export; one to one. Raises ValueError for an account that is none of ours."""
    kind, _, rest = account.partition(":")
    owner, _, state = rest.partition(":")
    if account == "external":
        return "Assets:External"
    if account == "fees":
        return "Liabilities:Fees"
    if kind == "budget" and owner and not state:
        return f"Liabilities:Budget:{owner.upper()}"
    if kind == "friend" and state in STATES:
        return f"Liabilities:Friend:{owner.upper()}:{STATES[state]}"
    if kind == "friend" and state == "paid":
        return f"Assets:Paid:{owner.upper()}"
    raise ValueError(f"{account!r} is no account of these books")


def plain_text(events: Iterable[tuple[int, Event]], format_name: str) -> Iterator[str]:
    """The lines of the file. Raises ValueError for an unknown format or a log that founds no crew."""
    made: Format | None = None
    balances: dict[str, int] = {}
    first = last = None
    for position, event in events:
        if isinstance(event, CrewFounded):
            made = FORMATS[format_name](event.unit)
            yield f"; {event.name.splitlines()[0] if event.name else 'crew'}: the books, from the log"
        transfers = transfers_of(event)
        if not transfers:
            continue
        if made is None:
            raise ValueError("money moves before the crew is founded")
        on = datetime.fromtimestamp(event.at_us // 1_000_000, UTC).date()
        first, last = min(first or on, on), max(last or on, on)
        note = event.reason if isinstance(event, AdjustmentBooked | PayoutLineReturned) else ""
        for transfer in transfers:
            rows = [(account_name(p.account), -p.amount_micro) for p in transfer.postings]
            for name, amount in rows:
                balances[name] = balances.get(name, 0) + amount
            yield from made.transaction(on, transfer.reason, note, position, rows)
    if made is not None and first is not None and last is not None:
        yield from made.close(first, last, dict(sorted(balances.items())))


class Beancount:
    def __init__(self, unit: str) -> None:
        self._unit = unit if unit[:1].isalpha() else f"U{unit}"

    def transaction(
        self, on: date, reason: str, note: str, position: int, rows: list[tuple[str, int]]
    ) -> Iterator[str]:
        text = f"{reason}: {note}" if note else reason
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        yield f'{on} * "{quoted}" #{reason.replace("_", "-")} ^log-{position}'
        yield f"  position: {position}"
        for name, amount in rows:
            yield f"  {name}  {decimal_text(amount)} {self._unit}"
        yield ""

    def close(self, first: date, last: date, balances: dict[str, int]) -> Iterator[str]:
        for name in balances:
            yield f"{first} open {name} {self._unit}"
        yield ""
        for name, amount in balances.items():
            yield f"{last + _DAY} balance {name}  {decimal_text(amount)} {self._unit}"


class Hledger:
    def __init__(self, unit: str) -> None:
        self._unit = f'"{unit}"'

    def transaction(
        self, on: date, reason: str, note: str, position: int, rows: list[tuple[str, int]]
    ) -> Iterator[str]:
        text = f"{reason}: {note}" if note else reason
        yield f"{on} * {text.replace(';', ',')}  ; position:{position}, reason:{reason}"
        for name, amount in rows:
            yield f"    {name.lower()}  {decimal_text(amount)} {self._unit}"
        yield ""

    def close(self, first: date, last: date, balances: dict[str, int]) -> Iterator[str]:  # noqa: ARG002
        yield f"commodity 1.000000 {self._unit}"
        for name in balances:
            yield f"account {name.lower()}"
        yield ""
        yield f"{last + _DAY} * balances after the last transfer"
        for name, amount in balances.items():
            yield f"    {name.lower()}  0 {self._unit} = {decimal_text(amount)} {self._unit}"


FORMATS: Final[dict[str, type[Beancount] | type[Hledger]]] = {"beancount": Beancount, "hledger": Hledger}
