"""`streamrp2p token`: operators' API tokens. Invariant: a token is shown once; the hub keeps only its hash."""

import json
from dataclasses import asdict
from datetime import UTC, datetime

import typer
from rich.console import Console as Terminal
from rich.table import Column, Table

from api.directory import Role, TokenShown, token_name
from hub.clock import now_us
from hub.operator import Console, console
from ledger.application import NotFound

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(label: str = typer.Option("operator", help="What it is for.")) -> None:
    """Make an operator's token and show it once."""
    with console() as at:
        typer.echo(at.directory.create_token(Role.OPERATOR, None, label, at_us=now_us()))


@app.command("list")
def list_(as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """The tokens in force: by what name to revoke them, what they are for, and when they were made."""
    with console() as at:
        found = at.directory.tokens(Role.OPERATOR)
    if as_json:
        typer.echo(json.dumps({"tokens": [asdict(one) for one in found]}))
        return
    if not found:
        typer.echo("there are none")
        return
    table = Table(Column("token", no_wrap=True), "label", "made (UTC)")
    for one in found:
        table.add_row(one.name, one.label, f"{_when(one.created_us):%Y-%m-%d %H:%M}")
    Terminal().print(table)


@app.command()
def revoke(
    token: str = typer.Argument(
        None, help="As `token list` names it, or the token itself, or a label that only one has."
    ),
    everyone: bool = typer.Option(False, "--all", help="Every operator's token."),
) -> None:
    """Revoke one operator's token, or all of them. It may work for ten seconds longer."""
    if (token is None) != everyone:
        raise typer.BadParameter("name one token, as streamrp2p token list does, or say --all")
    with console() as at:
        if everyone:
            count = at.directory.revoke_tokens(Role.OPERATOR, None, at_us=now_us())
            typer.echo(f"{count} revoked; make a new one with: streamrp2p token create")
            return
        name = _name(at, token)
        if not at.directory.revoke_token(Role.OPERATOR, name, at_us=now_us()):
            raise NotFound("there is no such token; all of them: streamrp2p token list")
        typer.echo(f"{name} revoked")


def _name(at: Console, text: str) -> str:
    tokens = at.directory.tokens(Role.OPERATOR)
    found = [one for one in tokens if one.name in (text, token_name(text))]
    found = found or [one for one in tokens if one.label == text]
    if len(found) > 1:
        raise typer.BadParameter(f"{len(found)} tokens have that label: {_listed(found)}")
    if not found:
        raise NotFound("there is no such token; all of them: streamrp2p token list")
    return found[0].name


def _listed(tokens: list[TokenShown]) -> str:
    return ", ".join(f"{one.name} of {_when(one.created_us):%Y-%m-%d %H:%M} UTC" for one in tokens)


def _when(at_us: int) -> datetime:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC)
