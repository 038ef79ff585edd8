"""`streamrp2p dispute`: freeze a settlement line, and decide on it.

Invariant: only the disputed line is frozen; what was recorded stays as it is, a decision is a new transfer.
"""

import json

import msgspec
import typer
from rich.console import Console as Terminal
from rich.table import Column, Table

from hub.clock import now_us
from hub.commands.explain import parse_place
from hub.operator import console, micro_to_text
from ledger.aggregates.disputes import Dispute
from ledger.services import crew, disputes

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Freeze settlement lines, decide on them."
)

REASON = typer.Option(..., help="Stays in the public log: no names.")
DRY_RUN = typer.Option(False, "--dry-run", help="Show what would happen; change nothing.")
JSON = typer.Option(False, "--json", help="Print JSON.")


@app.command("open")
def open_(
    place: str = typer.Argument(metavar="POSITION[:LINE]", help="The settlement line, as in a statement."),
    reason: str = REASON,
    dry_run: bool = DRY_RUN,
    as_json: bool = JSON,
) -> None:
    """Freeze one line: its amount is not released with the rest."""
    position, line = parse_place(place)
    with console() as at:
        made = disputes.open_dispute(
            at.ledger, position, line, reason=reason, at_us=now_us(), dry_run=dry_run
        )
        _show(made, as_json, dry_run)


@app.command()
def uphold(number: int, reason: str = REASON, dry_run: bool = DRY_RUN, as_json: bool = JSON) -> None:
    """The line is void: its amount goes back to the stream's budget."""
    _decide(number, reason, as_json, uphold=True, dry_run=dry_run)


@app.command()
def reject(number: int, reason: str = REASON, dry_run: bool = DRY_RUN, as_json: bool = JSON) -> None:
    """The line holds: its amount is released."""
    _decide(number, reason, as_json, uphold=False, dry_run=dry_run)


@app.command("list")
def list_(as_json: bool = JSON) -> None:
    """All disputes, oldest first."""
    with console() as at:
        found = disputes.disputes(at.ledger)
        if as_json:
            typer.echo(json.dumps({"disputes": msgspec.to_builtins(found)}))
            return
        if not found:
            typer.echo("there are none")
            return
        table = Table(  # a narrow terminal shortens words, never an amount
            "number",
            Column("line", no_wrap=True),
            "friend",
            "opened by",
            Column("reason", overflow="fold"),
            Column("state", no_wrap=True),
            Column("decision", overflow="fold"),
            Column(crew.crew(at.ledger).unit, justify="right", no_wrap=True),
        )
        for d in found:
            name = at.directory.person_name(d.friend_id) or str(d.friend_id)
            place = f"{d.position}:{d.line}"
            amount = micro_to_text(d.amount_micro)
            table.add_row(str(d.number), place, name, d.opened_by, d.reason, d.state, d.decision, amount)
        Terminal().print(table)


def _decide(number: int, reason: str, as_json: bool, *, uphold: bool, dry_run: bool) -> None:
    with console() as at:
        made = disputes.decide_dispute(
            at.ledger, number, uphold=uphold, reason=reason, at_us=now_us(), dry_run=dry_run
        )
        _show(made, as_json, dry_run)


def _show(dispute: Dispute, as_json: bool, dry_run: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**msgspec.to_builtins(dispute), "dry_run": dry_run}))
    else:
        amount = micro_to_text(dispute.amount_micro)
        typer.echo(
            f"dispute {dispute.number} on {dispute.position}:{dispute.line}, {amount}: {dispute.state}"
            f"{', dry run: nothing was changed' if dry_run else ''}"
        )
