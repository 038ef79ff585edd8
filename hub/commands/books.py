"""`streamrp2p books`: the books for other programs.

Invariant: everything comes from the log; with `--from` it needs no hub, no database and no account.
"""

import typer

from hub.commands.explain import open_log
from ledger.bookkeeping import FORMATS, plain_text

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """The books for other programs."""


@app.command()
def export(
    format_name: str = typer.Option("beancount", "--format", help=f"One of: {', '.join(FORMATS)}."),
    source: str | None = typer.Option(
        None, "--from", metavar="URL|FOLDER", help="A published log, instead of the running hub's database."
    ),
) -> None:
    """Print every transfer for beancount or hledger. All balances are asserted at the end."""
    if format_name not in FORMATS:
        raise typer.BadParameter(f"there is no format {format_name!r}; there are: {', '.join(FORMATS)}")
    with open_log(source) as log:
        for line in plain_text(log.events(0, None), format_name):
            typer.echo(line)
