"""Measurements side by side: ours against another program, both in the same run (`make bench ONLY=area`).

Invariant: a row's ratio is of two figures of one run on one machine, so that it means something on any machine.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. `reach` is the ratio ours / other to come to: at least, or at most where less is better."""

    name: str
    ours: float
    other: float
    unit: str
    reach: float
    less_is_better: bool = False

    @property
    def ratio(self) -> float:
        return self.ours / self.other

    @property
    def reached(self) -> bool:
        return self.ratio <= self.reach if self.less_is_better else self.ratio >= self.reach

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ours": round(self.ours, 3),
            "other": round(self.other, 3),
            "unit": self.unit,
            "ratio": round(self.ratio, 3),
            "reach": self.reach,
            "reached": self.reached,
        }
