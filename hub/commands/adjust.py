"""`streamrp2p adjust`: correct the books by hand.

Invariant: a correction is a new transfer with a reason and a reference; the same reference is booked once.
"""

import typer

from hub.clock import now_us
from hub.operator import console, micro_from_text
from ledger.money import EXTERNAL
from ledger.services.disputes import adjust as book


def adjust(
    source: str = typer.Argument(help="From: fees, budget:<stream id> or friend:<friend id>:available."),
    target: str = typer.Argument(help="To: likewise, but not from friend to friend."),
    amount: str = typer.Argument(help="In units of account, such as 25 or 12.5."),
    reference: str = typer.Option(..., help="The same reference is booked once."),
    reason: str = typer.Option(..., help="Stays in the public log: no names."),
    rests_on: list[int] = typer.Option(
        [], help="Log positions that it corrects; may be given several times."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would happen; change nothing."),
) -> None:
    """Move money between a budget, the fees and what is available to a friend."""
    if EXTERNAL in (source, target):
        raise typer.BadParameter("money comes in by `stream fund` and leaves by `payout`")
    with console() as at:
        booked = book(
            at.ledger,
            source=source,
            target=target,
            amount_micro=micro_from_text(amount),
            reference=reference,
            reason=reason,
            rests_on=tuple(rests_on),
            at_us=now_us(),
            dry_run=dry_run,
        )
    typer.echo("dry run: nothing was changed" if dry_run else "booked" if booked else "was booked before")
