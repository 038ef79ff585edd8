"""`streamrp2p crew`: the crew's numbers. Invariant: each change is an event, so that an audit uses those in force."""

import json

import typer

from hub.bootstrap import now_us
from hub.operator import console
from ledger.services import crew

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """The settings in force."""
    with console() as at:
        numbers = crew.settings(at.ledger).as_dict()
    if as_json:
        typer.echo(json.dumps(numbers))
        return
    for name, value in numbers.items():
        typer.echo(f"{name:<24}{value:>16,}")


@app.command()
def change(settings: list[str] = typer.Argument(help="NAME=NUMBER, such as hold_s=86400.")) -> None:
    """Change settings, from now on."""
    changes: dict[str, int] = {}
    for text in settings:
        name, _, value = text.partition("=")
        try:
            changes[name] = int(value)
        except ValueError as error:
            raise typer.BadParameter(f"{text!r} is not NAME=NUMBER") from error
    with console() as at:
        crew.change_settings(at.ledger, changes, at_us=now_us())
    typer.echo(f"{len(changes)} changed")
