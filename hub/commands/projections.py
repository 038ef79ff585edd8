"""`streamrp2p projections`: how far the read models are, and building them again.

Invariant: neither command can lose anything: the read models hold nothing that is not in the log.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy import Engine

from hub.clock import now_us
from hub.settings import load_settings
from ledger.application import Ledger, Unavailable
from ledger.store.database import create_sql_engine
from projections.catalog import PROJECTIONS, by_name
from projections.queries import Queries, ReadModelUnavailable
from projections.rebuild import rebuild as rebuild_projections
from projections.runner import TRANSIENT, Runner
from projections.views import Lag

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The read models.")


@app.command()
def status(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """How far each read model is behind the log."""
    with _opened() as (ledger, engine):
        lags = Queries(engine).lag(ledger, now_us=now_us())
        size = ledger.size()
    if as_json:
        typer.echo(json.dumps({"log_size": size, "projections": [_shown(lag) for lag in lags]}))
        return
    table = Table("projection", "version", "position", "behind", "seconds")
    for lag in lags:
        table.add_row(
            lag.name, str(lag.version), f"{lag.position:,}", f"{lag.events:,}", _seconds(lag.behind_us)
        )
    Console().print(table)
    for lag in lags:
        if lag.stopped:
            typer.echo(f"{lag.name} stopped at position {lag.position:,}: {lag.stopped}")


@app.command()
def rebuild(
    names: list[str] = typer.Argument(None, help="Which; all when none is named."),
) -> None:
    """Build read models again from the first event on. Readers and the running hub go on meanwhile."""
    try:
        wanted = by_name(names) if names else list(PROJECTIONS)
    except KeyError as error:
        known = ", ".join(p.name for p in PROJECTIONS)
        raise typer.BadParameter(f"there is no projection {error.args[0]!r}; there are: {known}") from error
    with _opened() as (ledger, engine):
        Runner(ledger, engine).prepare()
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as progress:
            task = progress.add_task("events", total=None)
            position = rebuild_projections(
                ledger,
                engine,
                wanted,
                progress=lambda done, size: progress.update(task, completed=done, total=size),
            )
    typer.echo(f"rebuilt {', '.join(p.name for p in wanted)} from {position:,} events")


@contextmanager
def _opened() -> Iterator[tuple[Ledger, Engine]]:
    """Raises HubNotRunning, Unavailable."""
    url = load_settings().resolved_database_url()
    ledger, engine = Ledger(url), create_sql_engine(url)
    try:
        yield ledger, engine
    except ReadModelUnavailable as error:
        raise Unavailable(str(error)) from error
    except TRANSIENT as error:
        if getattr(error, "exit_code", None) is not None:
            raise
        raise Unavailable(f"the database is not available: {error}") from error
    finally:
        ledger.close()
        engine.dispose()


def _shown(lag: Lag) -> dict[str, str | int]:
    return {
        "name": lag.name,
        "version": lag.version,
        "position": lag.position,
        "behind_events": lag.events,
        "behind_us": lag.behind_us,
        "stopped": lag.stopped,
    }


def _seconds(us: int) -> str:
    return f"{us // 1_000_000:,}.{us // 100_000 % 10}"
