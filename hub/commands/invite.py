"""`streamrp2p invite`: a code with which one friend's node can join."""

import json

import typer

from api.newcomers import INVITE_VALID_S, invite_friend
from hub.clock import now_us
from hub.operator import console


def invite(
    name: str = typer.Argument(help="The friend's name, for you; it never enters the log."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Invite a friend: prints the command to send them."""
    with console() as at:
        new = invite_friend(at.ledger, at.directory, name, at_us=now_us())
        page = f"{at.settings.base_url}/friend#{new.token}"
        command = f"streamrp2p node run {at.settings.base_url} {new.code}"
    if as_json:
        shown = {
            "friend_id": str(new.friend_id),
            "code": new.code,
            "friend_token": new.token,
            "command": command,
        }
        typer.echo(json.dumps(shown))
        return
    typer.echo(
        f"{name} joins with (valid for {INVITE_VALID_S // 86_400} days, for one node):\n  {command}\n"
        f"and reads their balance here (shown once):\n  {page}"
    )
