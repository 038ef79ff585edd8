"""What rails were given, as their files in one folder tell: what a database from an older backup has forgotten.

Invariant: whatever a rail may have paid is in here, of every payout and whichever rail it was; reading changes nothing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from uuid import UUID

from ledger.rails.csv_file import CsvRail
from ledger.rails.journal import Journal
from ledger.rails.pain001 import COLLECTED

EVM_JOURNAL: Final = "evm.journal"

# Payout -> kind of rail (its name up to a colon) -> lines.
Given = Mapping[UUID, Mapping[str, frozenset[int]]]
NOTHING: Final[Given] = {}


def given(folder: Path) -> Given:
    """Raises OSError, FileChangedError."""
    found: dict[UUID, dict[str, frozenset[int]]] = {}

    def add(kind: str, keys: Iterable[str]) -> None:
        for key in keys:
            payout, _, line = key.partition(":")
            kinds = found.setdefault(UUID(payout), {})
            kinds[kind] = kinds.get(kind, frozenset()) | {int(line)}

    for path in sorted(folder.glob("*.csv")):
        if _is_payout(path):
            add("csv", CsvRail(path).keys())
    for path in sorted(folder.glob(f"*{COLLECTED}")):
        if _is_payout(path):
            add("pain.001", Journal(path).all())
    signed = Journal(folder / EVM_JOURNAL).all().items()
    add("eip155", {name.partition("#")[0] for name, record in signed if "refused" not in record})
    return found


def kind_of(rail: str) -> str:
    """`rail` as recorded in a payout: csv, pain.001, eip155:1/erc20:0x..."""
    return rail.partition(":")[0]


def _is_payout(path: Path) -> bool:
    try:
        return str(UUID(path.stem)) == path.stem
    except ValueError:
        return False
