"""What the commands of `streamrp2p payout` have in common: options, the payout that is meant, how it is shown."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from typing import Any
from uuid import UUID

import typer
from rich.console import Console as Terminal
from rich.table import Table

from hub.operator import Console, micro_to_text
from hub.rails import files_of
from ledger.aggregates.payout import Payout, payout_id
from ledger.application import NotFound
from ledger.rails import Rail
from ledger.services import crew, payouts

BATCH = typer.Argument(help="The payout's number or id.")
OPERATOR = typer.Option("operator", help="Who does it. Stays in the public log: no real names.")
DRY_RUN = typer.Option(False, "--dry-run", help="Show what would happen; change nothing.")
JSON = typer.Option(False, "--json", help="Print JSON.")


def _batch_id(text: str) -> UUID:
    if text.isascii() and text.isdecimal():
        return payout_id(int(text))
    try:
        return UUID(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a payout's number nor its id") from None


def the_payout(at: Console, text: str) -> Payout:
    try:
        return payouts.load(at.ledger, _batch_id(text))
    except NotFound:
        raise NotFound(f"there is no payout {text}; all of them: streamrp2p payout show") from None


def number_of(batch_id: UUID) -> int:
    """Of a payout that exists."""
    return next(number for number in count(1) if payout_id(number) == batch_id)


def print_results(
    at: Console,
    payout: Payout,
    rail: Rail,
    results: list[payouts.LineResult],
    *,
    dry_run: bool,
    as_json: bool,
    more: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
    exit_code: int = 0,
) -> None:
    """`more` goes into the JSON, `notes` under the table. Exits as the lines' states say, unless it is a dry run;
    `exit_code` is what else was found calls for: 5, 1 or 0."""
    lines = [{**asdict(r), "friend_id": str(r.friend_id)} for r in results]
    file = ", ".join(str(path) for path in files_of(at.settings, payout, rail)) or "none yet"
    if as_json:
        print_json(
            {"batch_id": str(payout.id), "dry_run": dry_run, "file": file, "lines": lines, **(more or {})}
        )
    else:
        columns = ("line", "was", "would be" if dry_run else "state", "action", "reference")
        rows = [{**line, "would be": _foretold(line)} for line in lines]
        table(at, f"Payout {number_of(payout.id)}", rows, columns)
        for note in notes:
            typer.echo(note)
        typer.echo(f"\n{'dry run: nothing was changed' if dry_run else f'file: {file}'}")
        if payout.rail == "csv" and not dry_run:
            new = any(line["action"] != "none" for line in lines)
            typer.echo(
                "Now pay its lines by hand: the books have them as paid."
                if new
                else "Nothing is new in it: pay each line once."
            )
    states = set() if dry_run else {r.state for r in results}
    if payouts.OVERPAID in states or exit_code == 5:
        raise typer.Exit(5)
    if exit_code:
        raise typer.Exit(exit_code)
    if states & {"planned", "attempted", "unknown"}:
        raise typer.Exit(10)
    if states & {"failed", payouts.RETURNED}:
        raise typer.Exit(1)


def _foretold(line: dict[str, Any]) -> str:
    """The state after it; what a rail will answer when it is asked for the first time, nobody knows."""
    return "?" if line["action"] == "submit" else str(line["state"])


def table(at: Console, title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    if not rows:
        return
    made = Table(title=title, title_justify="left")
    for heading in ("friend", *columns):
        made.add_column(heading, overflow="fold")  # half a reference finds nothing
    made.add_column(crew.crew(at.ledger).unit, justify="right")
    for row in rows:
        name = at.directory.person_name(UUID(row["friend_id"])) or row["friend_id"]
        made.add_row(name, *(str(row[c]) for c in columns), micro_to_text(row["amount_micro"]))
    Terminal().print(made)


def print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data))
