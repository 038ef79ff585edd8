"""`streamrp2p payout reconcile` and `return`: what became of payments, as banks, chains and people say.

Invariant: nothing here pays anybody. A dry run shows, line by line, what the same command would change, and changes
nothing, in the books or in the payment files.
"""

import shlex
from dataclasses import asdict, replace
from pathlib import Path

import typer

from hub.bank_report import hear
from hub.clock import now_us
from hub.operator import Console, console, micro_from_text, micro_to_text
from hub.payout_shown import (
    BATCH,
    DRY_RUN,
    JSON,
    print_json,
    print_results,
    the_payout,
)
from hub.rails import open_rail, use_files
from ledger.aggregates.payout import Payout
from ledger.rails import Rail
from ledger.rails.pain001 import Pain001Rail, Said
from ledger.rails.pain001_file import end_to_end_id
from ledger.rails.pain002 import why_returned
from ledger.rails.returned import Returns
from ledger.services import crew, payouts, returns


def reconcile(
    batch: str = BATCH,
    status: Path | None = typer.Option(None, help="The bank's status report, pain.002 (for pain.001)."),
    paid: list[int] = typer.Option([], help="A line that the bank has paid, as you saw in the account."),
    refused: list[int] = typer.Option([], help="A line that the bank will never pay."),
    dry_run: bool = DRY_RUN,
    as_json: bool = JSON,
) -> None:
    """Ask the rail what became of each line that is not confirmed. Pays nothing."""
    with console() as at:
        payout = the_payout(at, batch)
        folder = use_files(at.settings, dry_run=dry_run)
        with open_rail(at.settings, payout) as rail:
            heard = hear(at, rail, payout, status, paid, refused, dry_run=dry_run)
            heard.tell()
            if isinstance(rail, Pain001Rail) and (lines := rail.unsealed()):
                more = f"{lines} of its payments are in no file for the bank yet: run the payout again"
                typer.echo(f"streamrp2p: {more}", err=True)
            results = payouts.reconcile(
                at.ledger, rail, payout.id, at_us=now_us(), told=heard.told, dry_run=dry_run
            )
            booked = _book_returns(
                at, payout, rail, Returns(folder), results, heard.came_back, dry_run=dry_run
            )
            results = [
                replace(r, state=payouts.RETURNED, action="return") if r.line in booked else r
                for r in results
            ]
            remarks = [{"line": line, **asdict(remark)} for line, remark in sorted(heard.remarks.items())]
            print_results(
                at,
                payout,
                rail,
                results,
                dry_run=dry_run,
                as_json=as_json,
                more={
                    "returned": [_out(one) for ones in booked.values() for one in ones],
                    "remarks": remarks,
                    "others": heard.others,
                },
                notes=[_text(at, one, dry_run=dry_run) for ones in booked.values() for one in ones],
                exit_code=heard.exit_code,
            )


def return_(
    batch: str = BATCH,
    line: int = typer.Argument(help="The payout's line, as `payout show` has it."),
    amount: str = typer.Argument(
        None, help="What came back, such as 9.50; all that is left of the line when left out."
    ),
    reference: str = typer.Option(
        ..., help="The bank's, or any name for it. The same is booked once; stays in the public log."
    ),
    reason: str = typer.Option(
        ..., help="Such as 'account closed'. The friend reads it; stays in the public log: no names."
    ),
    dry_run: bool = DRY_RUN,
    as_json: bool = JSON,
) -> None:
    """Money that was paid came back: it is available to the friend again."""
    with console() as at:
        payout = the_payout(at, batch)
        if line not in payout.lines:
            raise typer.BadParameter(f"this payout has no line {line}")
        made = returns.return_line(
            at.ledger,
            payout.id,
            line,
            amount_micro=micro_from_text(amount) if amount is not None else None,
            reference=reference,
            reason=reason,
            at_us=now_us(),
            memory=Returns(use_files(at.settings, dry_run=dry_run)),
            dry_run=dry_run,
        )
        if as_json:
            print_json({"batch_id": str(payout.id), "dry_run": dry_run} | _out(made))
            return
        typer.echo(_text(at, made, dry_run=dry_run))
        if dry_run:
            typer.echo("dry run: nothing was changed")
        elif made.booked:
            name = at.directory.person_name(made.friend_id) or made.friend_id
            told = f"streamrp2p payout destination {shlex.quote(str(name))} WHERE"
            typer.echo(f"next: ask where to pay {name} now: {told}")


def _book_returns(
    at: Console,
    payout: Payout,
    rail: Rail,
    memory: Returns,
    results: list[payouts.LineResult],
    came_back: dict[int, Said],
    *,
    dry_run: bool,
) -> dict[int, list[returns.Returned]]:
    """What the files remember and the ledger does not, then what the bank has said now. By line, if it is new."""
    booked: dict[int, list[returns.Returned]] = {}
    for one in returns.book_forgotten(at.ledger, payout.id, memory.all(), at_us=now_us(), dry_run=dry_run):
        booked.setdefault(one.line, []).append(one)
    for r in results:
        if r.line not in came_back or r.state != "confirmed" or (dry_run and r.line in booked):
            continue
        reference = f"pain.002 {end_to_end_id(payout.key(r.line))}"
        reason = why_returned(came_back[r.line].reference)
        told: returns.Returned | None
        if dry_run and r.was != r.state:  # it would be paid, and come back at once
            told = returns.Returned(r.line, r.friend_id, r.amount_micro, 0, reference, reason, booked=True)
        else:
            told = returns.return_all_told(
                at.ledger,
                payout.id,
                r.line,
                reference=reference,
                reason=reason,
                at_us=now_us(),
                memory=memory,
                dry_run=dry_run,
            )
            if isinstance(rail, Pain001Rail) and not dry_run:
                rail.came_back(payout.key(r.line), came_back[r.line])
        if told is not None and told.booked:
            booked.setdefault(r.line, []).append(told)
    return booked


def _out(made: returns.Returned) -> dict[str, object]:
    return {**asdict(made), "friend_id": str(made.friend_id)}


def _text(at: Console, made: returns.Returned, *, dry_run: bool) -> str:
    unit, name = crew.crew(at.ledger).unit, at.directory.person_name(made.friend_id) or str(made.friend_id)
    would = "would be " if dry_run else ""
    said = f"line {made.line}: {micro_to_text(made.amount_micro)} {unit} came back ({made.reason})"
    if not made.booked:
        return f"{said}: was booked before"
    kept = f"; {micro_to_text(made.left_micro)} stay paid" if made.left_micro else ""
    return f"{said}: {would}available to {name} again{kept}"
