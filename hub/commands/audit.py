"""`streamrp2p audit`: replay a published log and check every figure (docs/auditors.md).

Invariant: exit code 0 only when every check was made and held; 5 names the first thing that does not hold. Needs no
hub, no database and no account. Interrupted at any moment, the same command goes on from what it had saved.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ledger.audit import Open, Report
from ledger.audit import audit as run_audit
from ledger.money import decimal_text
from ledger.note import NoteError
from ledger.tlog.files import write_atomic
from ledger.tlog.source import printable

EXIT_FAILED = 5


def audit(
    place: str = typer.Argument(metavar="URL|FOLDER", help="Where the log is published."),
    since: Path | None = typer.Option(None, help="File with the checkpoint you kept last time."),
    keep: Path | None = typer.Option(None, help="Write the new checkpoint here when the audit passes."),
    vkey: str | None = typer.Option(None, help="The log's verifier key, as its operator gave it to you."),
    witness: list[str] = typer.Option([], help="Verifier key of a witness that must have cosigned."),
    jobs: int = typer.Option(os.cpu_count() or 1, min=1, max=256, help="Processes that help."),
    state: Path | None = typer.Option(
        None, help="File to save in what was replayed, and to go on from; in your cache folder if not given."
    ),
    fresh: bool = typer.Option(False, "--fresh", help="Begin at the first event, whatever was saved."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Replay a published log and check every figure. Exit code 5 when something does not hold."""
    kept = _read_kept(since) if since is not None else None
    saved = state or _default_state(place)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,} of {task.total:,} events"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        tasks: list[TaskID] = []

        def show(done: int, total: int) -> None:
            if not tasks:  # the time left is told by the pace from here on, not by what was done before
                tasks.append(bar.add_task("audit", total=total, completed=done))
            bar.update(tasks[0], completed=done)

        try:
            report = run_audit(
                place,
                since=kept,
                vkey=vkey,
                witnesses=witness,
                jobs=jobs,
                state=saved,
                fresh=fresh,
                progress=show,
            )
        except NoteError as error:
            raise typer.BadParameter(str(error)) from error
        except KeyboardInterrupt:
            typer.echo("interrupted: the same command goes on from what was saved", err=True)
            raise
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report)
    if report.problem is not None:
        raise typer.Exit(EXIT_FAILED)
    if keep is not None:
        write_atomic(keep, report.checkpoint.encode())


def _default_state(place: str) -> Path | None:
    """A file in the user's cache folder, one for each place; none where there can be no such folder."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    name = place.rstrip("/") if "://" in place else str(Path(place).resolve())
    folder = base / "streamrp2p" / "audit"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return folder / hashlib.sha256(name.encode()).hexdigest()[:16]
    return None


def _read_kept(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError as error:
        raise typer.BadParameter(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error


def _open(found: Open) -> Iterator[str]:
    if found.unsettled_bytes:
        yield f"{found.unsettled_bytes:,} bytes not settled"
    if found.overdue_micro:
        yield f"{decimal_text(found.overdue_micro)} held for longer than said"
    if found.in_flight_micro:
        yield f"{decimal_text(found.in_flight_micro)} on its way"
    if found.disputes:
        yield f"{found.disputes} dispute{'s' if found.disputes > 1 else ''} not decided"


def _dates(found: Open) -> str:
    if found.dated_back_at is None:
        return ""
    back = timedelta(seconds=found.dated_back_s)
    return f"position {found.dated_back_at:,} is dated {back} (h:mm:ss) before what stands before it"


def _show(report: Report) -> None:
    console = Console()
    counts = report.counts
    rows = {
        "log": report.origin,
        "checkpoint": f"{report.size:,} events, root {report.root}",
        "key": report.vkey,
        "key given by": "you" if report.pinned else "the log itself: pin it with --vkey",
        "cosigned by": ", ".join(report.cosigned_s),
        "consistent with": ""
        if report.consistent_with is None
        else f"{report.consistent_with:,} events, as you kept",
        "events": f"{counts.events:,}"
        + (
            f", the first {report.resumed_from:,} in an earlier audit of yours" if report.resumed_from else ""
        ),
        "signatures": f"{counts.signatures:,}",
        "tickets": f"{counts.tickets:,}",
        "receipts": f"{counts.receipts:,} in {counts.batches:,} batches, {counts.accepted:,} accepted",
        "delivered": f"{counts.credited_bytes:,} bytes",
        "settlements": f"{counts.epochs:,} epochs, {counts.transfers:,} transfers",
        "state leaves": f"{counts.state_leaves:,}",
        "left open": ", ".join(_open(report.open)),
        "dates": _dates(report.open),
        "paid out": f"{decimal_text(report.paid_micro)} in {counts.payout_lines:,} "
        f"payment{'' if counts.payout_lines == 1 else 's'}",
    }
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        if value:  # in one line, however long: a key in pieces cannot be copied or compared
            typer.echo(f"{name:<{width}}{printable(value)}")
    problem = report.problem
    if problem is None:
        console.print("[bold green]Everything holds.[/]")
        return
    where = [f"position {problem.position}"] if problem.position is not None else []
    where += [f"file {problem.file}"] if problem.file is not None else []
    console.print(f"[bold red]Does not hold[/] ({', '.join(where) or 'the whole log'}): ", end="")
    console.print(problem.reason, markup=False, highlight=False, soft_wrap=True)
