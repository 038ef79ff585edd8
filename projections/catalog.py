"""Every projection there is. Invariant: names and tables are each one projection's alone."""

from collections.abc import Iterable
from typing import Final

from projections.balances import Balances
from projections.base import Projection
from projections.nodes import Nodes
from projections.payouts import Payouts
from projections.statements import Statements
from projections.streams import Streams

PROJECTIONS: Final[tuple[type[Projection], ...]] = (
    Balances,
    Statements,
    Nodes,
    Streams,
    Payouts,
)


def by_name(names: Iterable[str]) -> list[type[Projection]]:
    """The named projections. Raises KeyError for a name that is none."""
    known = {p.name: p for p in PROJECTIONS}
    return [known[name] for name in names]
