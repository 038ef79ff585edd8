"""`make bench [ONLY=area] [JSON=1]`: run the measurements and print a row for each, as soon as it is known.

Invariants: stdout holds rows and nothing else; a module that fails costs its own rows only, is named on stderr and
makes the exit code 1. A goal that was not reached is a result, not an error.
"""

import argparse
import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from bench import Row
from hub.logs import configure_logging

# Area -> how its modules begin. A module of an area measures when it has `rows()`; the others are its helpers.
AREAS: Final = {
    "ledger": ("ledger", "projections"),
    "money": ("money",),
    "relay": ("relay",),
    "api": ("api",),
}
_FOLDER = Path(__file__).parent
_WIDTH: Final = 62


def modules(area: str) -> list[str]:
    """Names of the area's modules, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem.startswith(AREAS[area]))


def measure(name: str) -> Iterable[Row]:
    # As a module of the package: run as a script, bench/projections.py would hide the package of that name.
    rows: Callable[[], Iterator[Row]] | None = getattr(importlib.import_module(f"bench.{name}"), "rows", None)
    return rows() if rows is not None else ()


def figure(value: float) -> str:
    """Three significant digits, more where they stand before the point: `0.0123`, `4.56`, `123,457`."""
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def line(row: Row) -> str:
    reach = f"{'<=' if row.less_is_better else '>='} {figure(row.reach)}"
    verdict = "reached" if row.reached else "MISSED"
    figures = (
        f"{figure(row.ours):>11} {figure(row.other):>11}  {row.unit:<12} {figure(row.ratio):>7}  {reach:<8}"
    )
    return f"{row.name:<{_WIDTH}} {figures} {verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Ours against others, in one run.")
    parser.add_argument("--only", choices=AREAS, metavar="AREA", help=", ".join(AREAS))
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    configure_logging(json=False, level="warning")
    areas = [arguments.only] if arguments.only else list(AREAS)
    failed = False
    if not arguments.json:
        print(f"{'':<{_WIDTH}} {'ours':>11} {'other':>11}  {'unit':<12} {'ratio':>7}  reach", flush=True)
    for area in areas:
        started = time.monotonic()
        found = modules(area)
        for name in found:
            try:
                for row in measure(name):
                    print(json.dumps(row.as_dict()) if arguments.json else line(row), flush=True)
            except Exception:
                failed = True
                print(f"bench: {name} failed", file=sys.stderr)
                traceback.print_exc()
        took = f"took {time.monotonic() - started:.0f} s" if found else "has no measurements"
        print(f"bench: {area} {took}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
