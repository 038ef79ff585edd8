"""`streamrp2p payout`: plan, approve, run, reconcile, return.

Invariant: nothing here decides about money; each command is one call into ledger.services.payouts, which may be killed
and repeated at will. A payout is named by its number (1, 2, ...) or its id. Every command that changes anything takes
`--dry-run`. Exit codes of `run` and `reconcile`: 0 every line confirmed, 1 some failed or came back (their money is
available again) or a bank's report says what cannot be, 5 the rail paid twice or these are not the payment files of
this database, 10 some are still open.
"""

import csv
import secrets
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any
from uuid import UUID

import typer
from rich.console import Console as Terminal
from rich.table import Table

from hub import payout_outcomes
from hub.clock import now_us
from hub.logs import configure_logging
from hub.operator import Console, console, micro_to_text
from hub.payout_shown import (
    BATCH,
    DRY_RUN,
    JSON,
    OPERATOR,
    number_of,
    print_json,
    print_results,
    table,
    the_payout,
)
from hub.rails import (
    NAMES,
    check_destination,
    check_files,
    estimated,
    evm_key_file,
    is_evm,
    make_evm_key,
    open_evm,
    open_rail,
    terms,
    use_files,
)
from hub.settings import Settings, load_settings
from ledger.aggregates.book import Book
from ledger.aggregates.payout import Payout
from ledger.ids import BOOK_ID
from ledger.money import decimal_text
from ledger.rails.bank_account import BankAccount, BankAccountError
from ledger.rails.given import given
from ledger.rails.pain001 import Pain001Rail
from ledger.rails.returned import Returns
from ledger.services import crew, payouts
from ledger.services.destinations import SALT_BYTES, Destination, load_destinations, set_destination
from ledger.store.database import connect

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Pay friends what is available to them.")

# Why an amount waits, and what ends that. {threshold} and {friend} are filled in.
WAITING = {
    "below_threshold": "less than {threshold}, see payout_threshold_micro in: streamrp2p crew show",
    "no_destination": "say where to pay: streamrp2p payout destination {friend} WHERE",
    "came_back": "what was paid there came back, say where to pay now: streamrp2p payout destination {friend} WHERE",
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
            remembered=Returns(check_files(at.settings)).all(),
            dry_run=dry_run,
        )
        waiting = [{**asdict(w), "friend_id": str(w.friend_id)} for w in made.waiting]
        plans = [_planned(p) for p in (made, *made.further) if p.lines]
        if as_json:
            first = plans[0] if plans else _planned(made)
            print_json({**first, "dry_run": dry_run, "waiting": waiting, "further": plans[1:]})
            return
        for p in plans:
            table(at, "To be paid", p["lines"], ("line",))
        table(at, "Waiting", waiting, ("reason",))
        _explain_waiting(at, made.waiting)
        for number in (number_of(UUID(p["batch_id"])) for p in plans if not dry_run):
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
            at.ledger, the_payout(at, batch).id, operator=operator, at_us=now_us(), dry_run=dry_run
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
            the_payout(at, batch).id,
            reason=reason,
            at_us=now_us(),
            given=given(check_files(at.settings)),
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
    accept_files: bool = typer.Option(
        False,
        "--accept-files",
        help="Go on with the payment files that are here (only when those that knew more are lost).",
    ),
    dry_run: bool = DRY_RUN,
    as_json: bool = JSON,
) -> None:
    """Pay an approved payout. Run it again after a crash: it goes on where it was, and pays nobody twice."""
    with console() as at:
        payout = the_payout(at, batch)
        folder = use_files(at.settings, accept=accept_files, dry_run=dry_run)
        destinations = _destinations(at.settings)
        debtor = _bank_account(from_account) if from_account else None
        with open_rail(at.settings, payout, debtor=debtor, from_nonce=from_nonce) as rail:
            results = payouts.run(
                at.ledger,
                rail,
                payout.id,
                destinations=destinations,
                at_us=now_us(),
                given=given(folder),
                dry_run=dry_run,
            )
            if isinstance(rail, Pain001Rail) and not dry_run:
                rail.seal()
            amounts = [line.planned.amount_micro for line in payouts.to_submit(payout, destinations)]
            estimate = estimated(rail, amounts) if is_evm(payout) and dry_run else None
            print_results(
                at,
                payout,
                rail,
                results,
                dry_run=dry_run,
                as_json=as_json,
                more={} if estimate is None else {"estimate": estimate},
                notes=[f"{name}: {value}" for name, value in (estimate or {}).items()],
            )


app.command()(payout_outcomes.reconcile)
app.command("return")(payout_outcomes.return_)


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
        payout = the_payout(at, batch)
        came_back = _returned(at)
        lines = [
            {
                "line": number,
                "friend_id": str(line.planned.friend_id),
                "amount_micro": line.planned.amount_micro,
                "state": line.state.value,
                "attempts": line.attempt,
                "reference": line.reference,
                "returned_micro": came_back(payout, number),
            }
            for number, line in sorted(payout.lines.items())
        ]
        if as_json:
            print_json({**_summary(payout), "lines": lines})
            return
        table(
            at,
            f"Payout {number_of(payout.id)}: {payout.state}",
            lines,
            ("line", "state", "attempts", "reference"),
        )
        for line in lines:
            if line["returned_micro"]:
                back = micro_to_text(int(line["returned_micro"]))
                typer.echo(f"line {line['line']}: {back} of it came back later and is available again")


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
        payout = the_payout(at, batch)
        where = _destinations(at.settings) if destinations else {}
        came_back = _returned(at)
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
                "returned_micro": came_back(payout, number),
            }
            found = where.get(friend_id)
            known = found is not None and found.commitment == line.planned.destination_commitment
            rows.append(
                row | ({"destination": found.text if found and known else ""} if destinations else {})
            )
        if as_json:
            print_json({"batch_id": str(payout.id), "lines": rows})
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
        friend_id = at.friend_id(friend)
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
        print_json(found)
        return
    for name, value in found.items():
        typer.echo(f"{name}: {value}")


def _returned(at: Console) -> Callable[[Payout, int], int]:
    """What came back of a payout's line, in micro-units."""
    book = at.ledger.load_or_new(Book, BOOK_ID)

    def of(payout: Payout, line: int) -> int:
        paid = book.paid.get((payout.id, line))
        return paid.returned_micro if paid else 0

    return of


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


def _bank_account(text: str) -> BankAccount:
    try:
        return BankAccount.parse(text)
    except BankAccountError as error:
        raise typer.BadParameter(str(error)) from error


def _destinations(settings: Settings) -> dict[UUID, Destination]:
    with connect(settings.resolved_database_url()) as connection:
        return load_destinations(connection)


def _print_state(payout: Payout, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({"batch_id": str(payout.id), "state": payout.state, "dry_run": dry_run})
    else:
        number = number_of(payout.id)
        typer.echo(f"payout {number}: {'would be ' if dry_run else ''}{payout.state}")
        if payout.state == "approved" and not dry_run:
            typer.echo(f"next: streamrp2p payout run {number}")


def _show_all(at: Console, found: Iterable[Payout], as_json: bool) -> None:
    summaries = [{"number": n, **_summary(payout)} for n, payout in enumerate(found, 1)]
    if as_json:
        print_json({"payouts": summaries})
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
