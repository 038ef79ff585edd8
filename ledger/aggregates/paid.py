"""What was paid, line by line, for as long as something of it may come back: which is for ever.

Invariant: a line is in here once, from its confirmation on; of none has more come back than was paid.

A book is kept every few hundred events and read at each start, and its lines only become more. So a line is 28 bytes in
a row of its payout, and no objects.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from ledger.aggregates.base import DomainError
from ledger.money import decimal_text

_LINE: Final = struct.Struct(">I16sq")  # its number, the friend, micro-units


@dataclass(frozen=True, slots=True)
class Paid:
    """A payout line that was paid, and what came back of it."""

    friend_id: UUID
    amount_micro: int
    returned_micro: int = 0

    @property
    def left_micro(self) -> int:
        return self.amount_micro - self.returned_micro


@dataclass(slots=True, eq=False)
class PaidLines(Mapping[tuple[UUID, int], Paid]):
    """By (payout, line). Looking one up reads the lines of its payout, which are 500 at most."""

    _payouts: dict[UUID, bytearray] = field(default_factory=dict)
    _returned: dict[tuple[UUID, int], int] = field(default_factory=dict)

    def __getitem__(self, key: tuple[UUID, int]) -> Paid:
        batch_id, line = key
        for number, friend, amount_micro in _LINE.iter_unpack(self._payouts.get(batch_id, b"")):
            if number == line:
                return Paid(UUID(bytes=friend), amount_micro, self._returned.get(key, 0))
        raise KeyError(key)

    def __iter__(self) -> Iterator[tuple[UUID, int]]:
        for batch_id, lines in self._payouts.items():
            for number, _, _ in _LINE.iter_unpack(lines):
                yield batch_id, number

    def __len__(self) -> int:
        return sum(map(len, self._payouts.values())) // _LINE.size

    @property
    def returned(self) -> Mapping[tuple[UUID, int], int]:
        """What came back, of the lines of which something did."""
        return self._returned

    def left(self) -> dict[UUID, int]:
        """What was paid to each friend and has not come back, in micro-units."""
        totals: Counter[bytes] = Counter()
        for lines in self._payouts.values():
            for _, friend, amount_micro in _LINE.iter_unpack(lines):
                totals[friend] += amount_micro
        for key, amount_micro in self._returned.items():
            totals[self[key].friend_id.bytes] -= amount_micro
        return {UUID(bytes=friend): amount_micro for friend, amount_micro in totals.items()}

    def add(self, batch_id: UUID, line: int, friend_id: UUID, amount_micro: int) -> None:
        """The line was confirmed."""
        self._payouts.setdefault(batch_id, bytearray()).extend(
            _LINE.pack(line, friend_id.bytes, amount_micro)
        )

    def came_back(self, batch_id: UUID, line: int, amount_micro: int) -> None:
        """Raises DomainError when it is more than is left, KeyError for a line that was not paid."""
        left_micro = self[batch_id, line].left_micro
        if amount_micro > left_micro:
            raise DomainError(
                f"more came back of this payout line than was paid: {decimal_text(left_micro)} is left"
            )
        self._returned[batch_id, line] = self._returned.get((batch_id, line), 0) + amount_micro
