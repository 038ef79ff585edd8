"""`streamrp2p invite`: a code with which one friend's node can join."""

import json

import typer

from api.directory import Role
from hub.bootstrap import INVITE_VALID_S, new_invite, now_us
from hub.operator import console


def invite(
    name: str = typer.Argument(help="The friend's name, for you; it never enters the log."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Invite a friend: prints the command to send them."""
    with console() as at:
        friend_id, code = new_invite(at.ledger, at.directory, name, at_us=now_us())
        token = at.directory.create_token(Role.FRIEND, friend_id, name, at_us=now_us())
        page = f"{at.settings.base_url}/friend#{token}"
        command = f"streamrp2p node run {at.settings.base_url} {code}"
    if as_json:
        shown = {"friend_id": str(friend_id), "code": code, "friend_token": token, "command": command}
        typer.echo(json.dumps(shown))
        return
    typer.echo(
        f"{name} joins with (valid for {INVITE_VALID_S // 86_400} days, for one node):\n  {command}\n"
        f"and reads their balance here (shown once):\n  {page}"
    )
