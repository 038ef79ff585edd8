"""`python -m bench.adversaries [--seed N] [--json] [--small] [--set NAME=NUMBER]`: a row as soon as it is known.

Exit code 1 when an honest friend lost anything, or when a fault that is nobody's cost somebody something.
"""

import argparse
import itertools
import json
import sys
from dataclasses import asdict
from urllib.parse import urlsplit, urlunsplit

import psycopg

from bench.adversaries.lab import Result, run
from bench.adversaries.world import Size
from bench.library import postgres
from hub.logs import configure_logging
from ledger.store.migrate import migrate

SMALL = Size(segments=20, honest=2, signing=2, plain=1, fakes=10)


def line(result: Result) -> str:
    most = sorted(result.verdicts.items(), key=lambda item: -item[1])[:3]
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in most)
    return (
        f"{result.name:<34} {result.before_bp / 10_000:>8.2f} {result.after_bp / 10_000:>8.2f} "
        f"{result.honest_delivery_lost_micro:>9} {result.honest_floor_lost_bp / 100:>8.2f} % "
        f"{'holds' if result.holds else 'BROKEN':<7} {verdicts}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.adversaries", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--small", action="store_true", help="few viewers and segments, as in the tests")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="try another cap")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ATTACK", help="by its name in the table"
    )
    arguments = parser.parse_args()
    caps = {name: int(number) for name, _, number in (text.partition("=") for text in arguments.set)}
    configure_logging(json=False, level="warning")
    if not arguments.json:
        print("Income of the attacker, in incomes of one honest friend, without caps and with them;")
        print(
            "what honest friends lost with the caps: micro-units for delivery, part that moved with the floor share"
        )
        print(f"{'':<34} {'before':>8} {'after':>8} {'lost':>9} {'floor':>10}")
    broken = False
    with postgres() as url:
        migrate(url)
        numbers = itertools.count(1)

        def fresh() -> str:
            name, parts = f"evening_{next(numbers)}", urlsplit(url)
            template = parts.path.lstrip("/")
            with psycopg.connect(urlunsplit(parts._replace(path="/postgres")), autocommit=True) as connection:
                connection.execute(f'CREATE DATABASE {name} TEMPLATE "{template}"')
            return urlunsplit(parts._replace(path=f"/{name}"))

        size = SMALL if arguments.small else Size()
        for result in run(fresh, size, arguments.seed, caps, arguments.only):
            broken |= not result.holds
            print(json.dumps(asdict(result)) if arguments.json else line(result), flush=True)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
