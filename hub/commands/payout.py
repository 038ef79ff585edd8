"""`streamrp2p payout`: plan, approve, run, reconcile.

Invariant: nothing here decides about money; each command is one call into ledger.services.payouts, which may be killed
and repeated at will. A payout is named by its number (1, 2, ...) or its id. Every command that changes anything takes
`--dry-run`. Exit codes of `run` and `reconcile`: 0 every line confirmed, 1 some failed (their money is available
again), 5 the rail paid twice, 10 some are still open.
"""

import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import typer
from rich.console import Console as Terminal
from rich.table import Table

from hub.bootstrap import now_us
from hub.logs import configure_logging
from hub.operator import Console, console, micro_to_text
from hub.settings import Settings, load_settings
from ledger.aggregates.payout import Payout, payout_id
from ledger.application import NotFound
from ledger.rails import Rail
from ledger.rails.csv_file import CsvRail
from ledger.services import crew, payouts
from ledger.services.destinations import SALT_BYTES, Destination, load_destinations, set_destination
from ledger.store.database import connect

RAILS: Final = ("csv",)

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Pay friends what is available to them.")

BATCH = typer.Argument(help="The payout's number or id.")
DRY_RUN = typer.Option(False, "--dry-run", help="Show what would happen; change nothing.")
JSON = typer.Option(False, "--json", help="Print JSON.")


@app.callback()
def _prepare() -> None:
    settings = load_settings()
    configure_logging(json=settings.log_json, level=settings.log_level)


@app.command()
def plan(
    rail: str = typer.Option("csv", help=f"How to pay: {', '.join(RAILS)}."),
    dry_run: bool = DRY_RUN,
    as_json: bool = JSON,
) -> None:
    """Put everybody with enough available and a destination into a new payout. Nothing moves yet."""
    if rail not in RAILS:
        raise typer.BadParameter(f"there is no rail {rail!r}; there are: {', '.join(RAILS)}")
    with console() as at:
        made = payouts.plan(
            at.ledger,
            rail=rail,
            threshold_micro=crew.settings(at.ledger).payout_threshold_micro,
            destinations=at.directory.destination_commitments(),
            at_us=now_us(),
            dry_run=dry_run,
        )
        lines = [
            {"line": x.line, "friend_id": str(x.friend_id), "amount_micro": x.amount_micro}
            for x in made.lines
        ]
        waiting = [{**asdict(w), "friend_id": str(w.friend_id)} for w in made.waiting]
        batch_id = str(made.batch_id) if made.batch_id else None
        if as_json:
            _print_json({"batch_id": batch_id, "dry_run": dry_run, "lines": lines, "waiting": waiting})
            return
        _table(at, "To be paid", lines, ("line",))
        _table(at, "Waiting", waiting, ("reason",))
        if batch_id is not None:
            typer.echo(f"\npayout {batch_id} is planned; next: streamrp2p payout approve {batch_id}")
        else:
            typer.echo("\ndry run: nothing was planned" if lines else "\nnobody to pay")


@app.command()
def approve(
    batch: str = BATCH,
    operator: str = typer.Option("operator", help="Who approves. Stays in the public log: no real names."),
    dry_run: bool = DRY_RUN,
    as_json: bool = JSON,
) -> None:
    """Allow a planned payout to be run."""
    with console() as at:
        payout = payouts.approve(
            at.ledger, _batch_id(batch), operator=operator, at_us=now_us(), dry_run=dry_run
        )
        _print_state(payout, dry_run=dry_run, as_json=as_json)


@app.command()
def cancel(
    batch: str = BATCH,
    reason: str = typer.Option("cancelled by the operator", help="Stays in the public log."),
    dry_run: bool = DRY_RUN,
    as_json: bool = JSON,
) -> None:
    """Drop a payout that has not begun. Its money is available as before."""
    with console() as at:
        payout = payouts.cancel(at.ledger, _batch_id(batch), reason=reason, at_us=now_us(), dry_run=dry_run)
        _print_state(payout, dry_run=dry_run, as_json=as_json)


@app.command()
def run(batch: str = BATCH, dry_run: bool = DRY_RUN, as_json: bool = JSON) -> None:
    """Pay an approved payout. Run it again after a crash: it goes on where it was, and pays nobody twice."""
    with console() as at:
        payout = at.ledger.load(Payout, _batch_id(batch))
        results = payouts.run(
            at.ledger,
            _rail(at.settings, payout),
            payout.id,
            destinations=_destinations(at.settings),
            at_us=now_us(),
            dry_run=dry_run,
        )
        _print_results(at, payout, results, dry_run=dry_run, as_json=as_json)


@app.command()
def reconcile(batch: str = BATCH, dry_run: bool = DRY_RUN, as_json: bool = JSON) -> None:
    """Ask the rail what became of each line that is not confirmed. Pays nothing."""
    with console() as at:
        payout = at.ledger.load(Payout, _batch_id(batch))
        results = payouts.reconcile(
            at.ledger, _rail(at.settings, payout), payout.id, at_us=now_us(), dry_run=dry_run
        )
        _print_results(at, payout, results, dry_run=dry_run, as_json=as_json)


@app.command()
def show(
    batch: str = typer.Argument(None, help="Its number or id; all payouts when left out."),
    as_json: bool = JSON,
) -> None:
    """One payout with its lines, or the list of all."""
    with console() as at:
        if batch is None:
            _show_all(payouts.batches(at.ledger), as_json)
            return
        payout = at.ledger.load(Payout, _batch_id(batch))
        lines = [
            {
                "line": number,
                "friend_id": str(line.planned.friend_id),
                "amount_micro": line.planned.amount_micro,
                "state": line.state.value,
                "attempts": line.attempt,
                "reference": line.reference,
            }
            for number, line in sorted(payout.lines.items())
        ]
        if as_json:
            _print_json({**_summary(payout), "lines": lines})
            return
        _table(at, f"Payout {payout.id}: {payout.state}", lines, ("line", "state", "attempts", "reference"))


@app.command()
def destination(
    friend_id: UUID,
    text: str = typer.Argument(
        help="Where to pay, as the rail understands it: an account number, an address."
    ),
) -> None:
    """Set where a friend is paid. The log will know only a salted hash of it."""
    with console() as at:
        if at.directory.person_name(friend_id) is None:
            raise NotFound(f"there is no friend {friend_id}")
        with connect(at.settings.resolved_database_url()) as connection:
            set_destination(connection, friend_id, text, salt=secrets.token_bytes(SALT_BYTES))
        typer.echo(f"{at.directory.person_name(friend_id)}: destination set")


def _batch_id(text: str) -> UUID:
    if text.isascii() and text.isdecimal():
        return payout_id(int(text))
    try:
        return UUID(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a payout's number nor its id") from None


def _rail(settings: Settings, payout: Payout) -> Rail:
    """One file a payout, so that it can be handed over as a whole."""
    if payout.rail not in RAILS:
        raise typer.BadParameter(f"payout {payout.id} is planned for {payout.rail!r}, which is not installed")
    return CsvRail(_csv_path(settings, payout))


def _csv_path(settings: Settings, payout: Payout) -> Path:
    return settings.data_dir / "payouts" / f"{payout.id}.csv"


def _destinations(settings: Settings) -> dict[UUID, Destination]:
    with connect(settings.resolved_database_url()) as connection:
        return load_destinations(connection)


def _print_results(
    at: Console, payout: Payout, results: list[payouts.LineResult], *, dry_run: bool, as_json: bool
) -> None:
    lines = [{**asdict(r), "friend_id": str(r.friend_id)} for r in results]
    file = _csv_path(at.settings, payout)
    if as_json:
        _print_json({"batch_id": str(payout.id), "dry_run": dry_run, "file": str(file), "lines": lines})
    else:
        _table(at, f"Payout {payout.id}", lines, ("line", "state", "action", "reference"))
        typer.echo(f"\n{'dry run: nothing was changed' if dry_run else f'file: {file}'}")
    states = {r.state for r in results}
    if dry_run:
        return
    if payouts.OVERPAID in states:
        raise typer.Exit(5)
    if states & {"planned", "attempted", "unknown"}:
        raise typer.Exit(10)
    if "failed" in states:
        raise typer.Exit(1)


def _print_state(payout: Payout, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        _print_json({"batch_id": str(payout.id), "state": payout.state, "dry_run": dry_run})
    else:
        typer.echo(f"payout {payout.id}: {'would be ' if dry_run else ''}{payout.state}")


def _show_all(found: Iterable[Payout], as_json: bool) -> None:
    summaries = [{"number": n, **_summary(payout)} for n, payout in enumerate(found, 1)]
    if as_json:
        _print_json({"payouts": summaries})
        return
    table = Table("number", "id", "rail", "state", "lines", "amount")
    for s in summaries:
        amount = micro_to_text(int(s["total_micro"]))
        table.add_row(str(s["number"]), s["batch_id"], s["rail"], s["state"], str(s["line_count"]), amount)
    Terminal().print(table)


def _summary(payout: Payout) -> dict[str, Any]:
    return {
        "batch_id": str(payout.id),
        "rail": payout.rail,
        "state": payout.state,
        "approved_by": payout.approved_by,
        "line_count": len(payout.lines),
        "total_micro": sum(line.planned.amount_micro for line in payout.lines.values()),
    }


def _table(at: Console, title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for heading in ("friend", *columns):
        table.add_column(heading)
    table.add_column(crew.crew(at.ledger).unit, justify="right")
    for row in rows:
        name = at.directory.person_name(UUID(row["friend_id"])) or row["friend_id"]
        table.add_row(name, *(str(row[c]) for c in columns), micro_to_text(row["amount_micro"]))
    Terminal().print(table)


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data))
