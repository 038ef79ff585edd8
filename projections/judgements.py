"""What many batches of receipts came to, added up in columns: a receipt costs nanoseconds, whatever it is.

Invariant: the totals are those of adding up receipt by receipt; integers all the way.
"""

from collections.abc import Iterator
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from ledger.verdict import CAPS, VERDICTS
from projections.fold import ProjectionError

G = TypeVar("G")

_KINDS: Final = len(VERDICTS) * len(CAPS)
_BIGINT_MAX: Final = 2**63 - 1


class Judged(Protocol):
    """Columns that fit together: of `ledger.events.SegmentsServed`, or an excerpt of it."""

    @property
    def verdicts(self) -> bytes: ...
    @property
    def caps(self) -> bytes: ...
    @property
    def units(self) -> bytes: ...
    @property
    def credited_bytes(self) -> bytes: ...


class Total(NamedTuple, Generic[G]):
    group: G
    verdict: str
    cap: str
    receipts: int
    units: int
    credited_bytes: int
    last_position: int


class Judgements(Generic[G]):
    """Receipts by group (whatever the caller counts by), verdict and cap."""

    def __init__(self) -> None:
        self._numbers: dict[G, int] = {}
        self._of: list[int] = []  # for each event the number of its group
        self._positions: list[int] = []
        self._verdicts: list[bytes] = []
        self._caps: list[bytes] = []
        self._units: list[bytes] = []
        self._credited_bytes: list[bytes] = []

    def add(self, group: G, event: Judged, position: int) -> None:
        numbers = self._numbers
        number = numbers.get(group)
        if number is None:
            number = numbers[group] = len(numbers)
        self._of.append(number)
        self._positions.append(position)
        # Not the event: it may hold its receipts, and a batch of those is large.
        self._verdicts.append(event.verdicts)
        self._caps.append(event.caps)
        self._units.append(event.units)
        self._credited_bytes.append(event.credited_bytes)

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def totals(self) -> Iterator[Total[G]]:
        """Only what there is. Raises ProjectionError when the bytes are more than a table can hold."""
        if not self._of:
            return
        receipts_of = np.fromiter(map(len, self._verdicts), np.int64, len(self._verdicts))
        kinds = _column(self._verdicts, "u1") * len(CAPS) + _column(self._caps, "u1")
        keys = np.repeat(np.array(self._of), receipts_of) * _KINDS + kinds
        size = len(self._numbers) * _KINDS
        last = np.zeros(size, np.int64)
        np.maximum.at(last, keys, np.repeat(np.array(self._positions), receipts_of))
        receipts = np.bincount(keys, minlength=size)
        units = _sums(keys, size, _column(self._units, ">u2"))
        credited = _sums(keys, size, _column(self._credited_bytes, ">u8"))
        groups = list(self._numbers)
        for key in np.flatnonzero(receipts).tolist():
            group, kind = divmod(key, _KINDS)
            verdict, cap = divmod(kind, len(CAPS))
            counts = (receipts.item(key), units.item(key), credited.item(key), last.item(key))
            yield Total(groups[group], VERDICTS[verdict].value, CAPS[cap].value, *counts)


def _column(parts: list[bytes], kind: str) -> Any:
    values = np.frombuffer(b"".join(parts), kind)
    if len(values) * int(values.max(initial=0)) > _BIGINT_MAX:
        raise ProjectionError("a batch of receipts claims more than can be added up")
    return values.astype(np.int64)


def _sums(keys: Any, size: int, values: Any) -> Any:
    sums = np.zeros(size, np.int64)
    np.add.at(sums, keys, values)
    return sums
