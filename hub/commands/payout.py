"""`streamrp2p payout`: plan, approve, run, reconcile.

Invariant: nothing here decides about money; each command is one call into ledger.services.payouts, which may be killed
and repeated at will. A payout is named by its number (1, 2, ...) or its id. Every command that changes anything takes
`--dry-run`. Exit codes of `run` and `reconcile`: 0 every line confirmed, 1 some failed (their money is available
again), 5 the rail paid twice, 10 some are still open.
"""

import csv
import json
import secrets
import sys
from collections.abc import Iterable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import typer
from rich.console import Console as Terminal
from rich.table import Table

from hub.bootstrap import now_us
from hub.logs import configure_logging
from hub.operator import Console, console, micro_to_text
from hub.rails import (
    NAMES,
    check_destination,
    estimated,
    evm_key_file,
    files_of,
    is_evm,
    make_evm_key,
    open_evm,
    open_rail,
    payouts_folder,
    terms,
)
from hub.settings import Settings, load_settings
from ledger.aggregates.payout import Payout, payout_id
from ledger.application import NotFound
from ledger.money import decimal_text
from ledger.rails import Outcome, Rail
from ledger.rails.bank_account import BankAccount, BankAccountError
from ledger.rails.given import given
from ledger.rails.pain001 import BankAnswerError, Pain001Rail
from ledger.rails.pain002 import MAX_REPORT_BYTES, StatusReportError, read_report
from ledger.services import crew, payouts
from ledger.services.destinations import SALT_BYTES, Destination, load_destinations, set_destination
from ledger.store.database import connect

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Pay friends what is available to them.")

BATCH = typer.Argument(help="The payout's number or id.")
OPERATOR = typer.Option("operator", help="Who does it. Stays in the public log: no real names.")
DRY_RUN = typer.Option(False, "--dry-run", help="Show what would happen; change nothing.")
JSON = typer.Option(False, "--json", help="Print JSON.")
# Why an amount waits, and what ends that. {threshold} and {friend} are filled in.
WAITING = {
    "below_threshold": "less than {threshold}, see payout_threshold_micro in: streamrp2p crew show",
    "no_destination": "say where to pay: streamrp2p payout destination {friend} WHERE",
    "in_open_payout": "in a payout that is not over: streamrp2p payout show",
    "below_smallest": "less than the smallest amount that this rail can pay",
    "day_limit": "more than may be paid in a day, see payout_day_max_micro in: streamrp2p crew show",
    "batch_limit": "more than one payout may be, see payout_batch_max_micro in: streamrp2p crew show",
}


@app.callback()
def _prepare() -> None:
    settings = load_settings()
    configure_logging(json=settings.log_json, level=settings.log_level)


@app.command()
def plan(
    rail: str = typer.Option("csv", help=f"How to pay: {', '.join(NAMES)}."),
    operator: str = OPERATOR,
    dry_run: bool = DRY_RUN,
    as_json: bool = JSON,
) -> None:
    """Put everybody with enough available and a destination into a new payout. Nothing moves yet."""
    if rail not in NAMES:
        raise typer.BadParameter(f"there is no rail {rail!r}; there are: {', '.join(NAMES)}")
    with console() as at:
        wanted = terms(at.settings, rail, crew.crew(at.ledger).unit)
        made = payouts.plan(
            at.ledger,
            rail=wanted.name,
            threshold_micro=crew.settings(at.ledger).payout_threshold_micro,
            destinations=at.directory.destination_commitments(),
            at_us=now_us(),
            operator=operator,
            quantum_micro=wanted.quantum_micro,
            dry_run=dry_run,
        )
        waiting = [{**asdict(w), "friend_id": str(w.friend_id)} for w in made.waiting]
        plans = [_planned(p) for p in (made, *made.further) if p.lines]
        if as_json:
            first = plans[0] if plans else _planned(made)
            _print_json({**first, "dry_run": dry_run, "waiting": waiting, "further": plans[1:]})
            return
        for p in plans:
            _table(at, "To be paid", p["lines"], ("line",))
        _table(at, "Waiting", waiting, ("reason",))
        _explain_waiting(at, made.waiting)
        for number in (_number(UUID(p["batch_id"])) for p in plans if not dry_run):
            typer.echo(f"\npayout {number} is planned; next: streamrp2p payout approve {number}")
        if dry_run or not plans:
            typer.echo("\ndry run: nothing was planned" if plans else "\nnobody to pay")


@app.command()
def approve(
    batch: str = BATCH,
    operator: str = OPERATOR,
    dry_run: bool = DRY_RUN,
    as_json: bool = JSON,
) -> None:
    """Allow a planned payout to be run."""
    with console() as at:
        payout = payouts.approve(
            at.ledger, _payout(at, batch).id, operator=operator, at_us=now_us(), dry_run=dry_run
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
        payout = payouts.cancel(
            at.ledger,
            _payout(at, batch).id,
            reason=reason,
            at_us=now_us(),
            given=given(payouts_folder(at.settings)),
            dry_run=dry_run,
        )
        _print_state(payout, dry_run=dry_run, as_json=as_json)


@app.command()
def run(
    batch: str = BATCH,
    from_account: str | None = typer.Option(
        None, help="The account that pays, IBAN;NAME or IBAN;BIC;NAME (pain.001; at the first run)."
    ),
    from_nonce: int | None = typer.Option(
        None, min=0, help="Accept what the paying account sent before this number (evm; only when asked to)."
    ),
    dry_run: bool = DRY_RUN,
    as_json: bool = JSON,
) -> None:
    """Pay an approved payout. Run it again after a crash: it goes on where it was, and pays nobody twice."""
    with console() as at:
        payout = _payout(at, batch)
        destinations = _destinations(at.settings)
        debtor = _bank_account(from_account) if from_account else None
        with open_rail(at.settings, payout, debtor=debtor, from_nonce=from_nonce) as rail:
            results = payouts.run(
                at.ledger,
                rail,
                payout.id,
                destinations=destinations,
                at_us=now_us(),
                given=given(payouts_folder(at.settings)),
                dry_run=dry_run,
            )
            if isinstance(rail, Pain001Rail) and not dry_run:
                rail.seal()
            amounts = [line.planned.amount_micro for line in payouts.to_submit(payout, destinations)]
            estimate = estimated(rail, amounts) if is_evm(payout) and dry_run else None
            _print_results(at, payout, rail, results, dry_run=dry_run, as_json=as_json, estimate=estimate)


@app.command()
def reconcile(
    batch: str = BATCH,
    status: Path | None = typer.Option(None, help="The bank's status report, pain.002 (for pain.001)."),
    paid: list[int] = typer.Option([], help="A line that the bank has paid, as you saw in the account."),
    refused: list[int] = typer.Option([], help="A line that the bank will never pay."),
    dry_run: bool = DRY_RUN,
    as_json: bool = JSON,
) -> None:
    """Ask the rail what became of each line that is not confirmed. Pays nothing."""
    refuted = False
    with console() as at:
        payout = _payout(at, batch)
        with open_rail(at.settings, payout) as rail:
            if status is not None or paid or refused:
                if not isinstance(rail, Pain001Rail):
                    raise typer.BadParameter(f"{payout.rail} knows by itself what it paid")
                told = _told(rail, payout, status, paid, refused)
                for key, (outcome, reference) in told.items() if not dry_run else ():
                    try:
                        rail.record(key, outcome, reference)
                    except BankAnswerError as error:  # the others are taken all the same
                        refuted = True
                        typer.echo(f"streamrp2p: {error}", err=True)
            if isinstance(rail, Pain001Rail) and (lines := rail.unsealed()):
                more = f"{lines} of its payments are in no file for the bank yet: run the payout again"
                typer.echo(f"streamrp2p: {more}", err=True)
            results = payouts.reconcile(at.ledger, rail, payout.id, at_us=now_us(), dry_run=dry_run)
            _print_results(at, payout, rail, results, dry_run=dry_run, as_json=as_json)
    if refuted:
        raise typer.Exit(1)


@app.command()
def show(
    batch: str = typer.Argument(None, help="Its number or id; all payouts when left out."),
    as_json: bool = JSON,
) -> None:
    """One payout with its lines, or the list of all."""
    with console() as at:
        if batch is None:
            _show_all(at, payouts.batches(at.ledger), as_json)
            return
        payout = _payout(at, batch)
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
        _table(
            at,
            f"Payout {_number(payout.id)}: {payout.state}",
            lines,
            ("line", "state", "attempts", "reference"),
        )


@app.command()
def export(
    batch: str = BATCH,
    destinations: bool = typer.Option(
        False, "--destinations", help="With where each is paid: keep it to yourself."
    ),
    as_json: bool = JSON,
) -> None:
    """Print a payout's lines as CSV, for a spreadsheet."""
    with console() as at:
        payout = _payout(at, batch)
        where = _destinations(at.settings) if destinations else {}
        rows = []
        for number, line in sorted(payout.lines.items()):
            friend_id = line.planned.friend_id
            row = {
                "key": payout.key(number),
                "friend_id": str(friend_id),
                "amount_micro": line.planned.amount_micro,
                "amount": decimal_text(line.planned.amount_micro),
                "unit": crew.crew(at.ledger).unit,
                "state": line.state.value,
                "reference": line.reference,
            }
            found = where.get(friend_id)
            known = found is not None and found.commitment == line.planned.destination_commitment
            rows.append(
                row | ({"destination": found.text if found and known else ""} if destinations else {})
            )
        if as_json:
            _print_json({"batch_id": str(payout.id), "lines": rows})
            return
        out = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


@app.command()
def destination(
    friend: str = typer.Argument(metavar="FRIEND", help="The name you invited them by, or their id."),
    text: str = typer.Argument(
        metavar="WHERE", help="Where to pay, as the rail understands it: an account number, an address."
    ),
) -> None:
    """Set where a friend is paid. The log will know only a salted hash of it."""
    check_destination(text)
    with console() as at:
        friend_id = _friend_id(at, friend)
        with connect(at.settings.resolved_database_url()) as connection:
            set_destination(connection, friend_id, text, salt=secrets.token_bytes(SALT_BYTES))
        typer.echo(f"{at.directory.person_name(friend_id)}: destination set")


@app.command()
def account(
    make: bool = typer.Option(False, "--make", help="Make a new key first, where there is none."),
    as_json: bool = JSON,
) -> None:
    """The account that pays on a chain: its address, what is in it, and what a payment costs now (evm)."""
    settings = load_settings()
    if make:
        typer.echo(
            f"made {evm_key_file(settings)}, the key of {make_evm_key(settings)}: back it up", err=True
        )
    with open_evm(settings) as rail:
        found = estimated(rail, []) or {}
    if as_json:
        _print_json(found)
        return
    for name, value in found.items():
        typer.echo(f"{name}: {value}")


def _batch_id(text: str) -> UUID:
    if text.isascii() and text.isdecimal():
        return payout_id(int(text))
    try:
        return UUID(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a payout's number nor its id") from None


def _payout(at: Console, text: str) -> Payout:
    try:
        return payouts.load(at.ledger, _batch_id(text))
    except NotFound:
        raise NotFound(f"there is no payout {text}; all of them: streamrp2p payout show") from None


def _number(batch_id: UUID) -> int:
    """Of a payout that exists."""
    return next(number for number in count(1) if payout_id(number) == batch_id)


def _friend_id(at: Console, text: str) -> UUID:
    """By id, or by a name that only one friend has."""
    try:
        found = [UUID(text)]
    except ValueError:
        found = at.directory.people_named(text)
    if len(found) > 1:
        raise typer.BadParameter(f"{len(found)} friends have that name: {', '.join(map(str, found))}")
    if not found or at.directory.person_name(found[0]) is None:
        raise NotFound(f"there is no friend {text!r}")
    return found[0]


def _explain_waiting(at: Console, waiting: Iterable[payouts.Waiting]) -> None:
    reasons = {w.reason: w.friend_id for w in waiting}
    for reason, friend_id in reasons.items():
        threshold = micro_to_text(crew.settings(at.ledger).payout_threshold_micro)
        told = WAITING[reason].format(threshold=threshold, friend=friend_id)
        typer.echo(f"{reason}: {told}")


def _planned(plan: payouts.Plan) -> dict[str, Any]:
    lines = [
        {"line": x.line, "friend_id": str(x.friend_id), "amount_micro": x.amount_micro} for x in plan.lines
    ]
    return {"batch_id": str(plan.batch_id) if plan.batch_id else None, "lines": lines}


def _told(
    rail: Pain001Rail, payout: Payout, status: Path | None, paid: list[int], refused: list[int]
) -> dict[str, tuple[Outcome, str]]:
    """What the bank's report and the operator say, by key. A report may speak of other payouts too."""
    told: dict[str, tuple[Outcome, str]] = {}
    if status is not None:
        with status.open("rb") as file:
            told |= rail.told(read_report(file.read(MAX_REPORT_BYTES + 1)))
        if not told:
            raise StatusReportError(f"{status} has no final status of a payment of this payout")
    for numbers, outcome in ((paid, Outcome.CONFIRMED), (refused, Outcome.FAILED)):
        for number in numbers:
            if number not in payout.lines:
                raise typer.BadParameter(f"this payout has no line {number}")
            if told.setdefault(payout.key(number), (outcome, "operator"))[0] is not outcome:
                raise typer.BadParameter(f"line {number} is given two outcomes")
    return told


def _bank_account(text: str) -> BankAccount:
    try:
        return BankAccount.parse(text)
    except BankAccountError as error:
        raise typer.BadParameter(str(error)) from error


def _destinations(settings: Settings) -> dict[UUID, Destination]:
    with connect(settings.resolved_database_url()) as connection:
        return load_destinations(connection)


def _print_results(
    at: Console,
    payout: Payout,
    rail: Rail,
    results: list[payouts.LineResult],
    *,
    dry_run: bool,
    as_json: bool,
    estimate: dict[str, Any] | None = None,
) -> None:
    lines = [{**asdict(r), "friend_id": str(r.friend_id)} for r in results]
    file = ", ".join(str(path) for path in files_of(at.settings, payout, rail)) or "none yet"
    if as_json:
        more = {} if estimate is None else {"estimate": estimate}
        _print_json({"batch_id": str(payout.id), "dry_run": dry_run, "file": file, "lines": lines} | more)
    else:
        _table(at, f"Payout {_number(payout.id)}", lines, ("line", "state", "action", "reference"))
        for name, value in (estimate or {}).items():
            typer.echo(f"{name}: {value}")
        typer.echo(f"\n{'dry run: nothing was changed' if dry_run else f'file: {file}'}")
        if payout.rail == "csv" and not dry_run:
            typer.echo("Now pay its lines by hand: the books have them as paid.")
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
        number = _number(payout.id)
        typer.echo(f"payout {number}: {'would be ' if dry_run else ''}{payout.state}")
        if payout.state == "approved" and not dry_run:
            typer.echo(f"next: streamrp2p payout run {number}")


def _show_all(at: Console, found: Iterable[Payout], as_json: bool) -> None:
    summaries = [{"number": n, **_summary(payout)} for n, payout in enumerate(found, 1)]
    if as_json:
        _print_json({"payouts": summaries})
        return
    if not summaries:
        typer.echo("none was planned yet: streamrp2p payout plan")
        return
    table = Table("number", "rail", "state", "lines")
    table.add_column(crew.crew(at.ledger).unit, justify="right")
    table.add_column("id", overflow="fold")
    for s in summaries:
        amount = micro_to_text(int(s["total_micro"]))
        table.add_row(str(s["number"]), s["rail"], s["state"], str(s["line_count"]), amount, s["batch_id"])
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
        table.add_column(heading, overflow="fold")  # half a reference finds nothing
    table.add_column(crew.crew(at.ledger).unit, justify="right")
    for row in rows:
        name = at.directory.person_name(UUID(row["friend_id"])) or row["friend_id"]
        table.add_row(name, *(str(row[c]) for c in columns), micro_to_text(row["amount_micro"]))
    Terminal().print(table)


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data))
