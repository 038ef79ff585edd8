"""`streamrp2p token`: operators' API tokens. Invariant: a token is shown once; the hub keeps only its hash."""

import typer

from api.directory import Role
from hub.bootstrap import now_us
from hub.operator import console

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(label: str = typer.Option("operator", help="What it is for.")) -> None:
    """Make an operator's token and show it once."""
    with console() as at:
        typer.echo(at.directory.create_token(Role.OPERATOR, None, label, at_us=now_us()))


@app.command()
def revoke() -> None:
    """Revoke every operator's token."""
    with console() as at:
        count = at.directory.revoke_tokens(Role.OPERATOR, None, at_us=now_us())
        typer.echo(f"{count} revoked; make a new one with: streamrp2p token create")
