"""`streamrp2p friend`: who the friends are, and a new link for one who lost theirs.

Invariant: a token is shown once, when it is made; the hub keeps only its hash, and nothing here makes a friend.
"""

import json
from uuid import UUID

import typer
from rich.console import Console as Terminal
from rich.table import Column, Table

from api.newcomers import new_friend_token
from hub.clock import now_us
from hub.operator import console

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List friends, give one a new link.")

JSON = typer.Option(False, "--json", help="Print JSON.")


@app.command("list")
def list_(as_json: bool = JSON) -> None:
    """All friends, with their nodes."""
    with console() as at:
        friends, views = at.directory.friends(), at.reads.nodes()
        names = at.directory.node_names(v.node_id for v in views)
    nodes: dict[UUID, list[dict[str, str]]] = {}
    for v in views:
        shown = {"node_id": str(v.node_id), "name": names.get(v.node_id, ""), "state": v.state}
        nodes.setdefault(v.friend_id, []).append(shown)
    if as_json:
        rows = [
            {"friend_id": str(one), "name": name, "nodes": nodes.get(one, [])}
            for one, name in friends.items()
        ]
        typer.echo(json.dumps({"friends": rows}))
        return
    if not friends:
        typer.echo("there are none")
        return
    table = Table("name", Column("friend", no_wrap=True), "nodes")
    for friend_id, name in friends.items():
        carried = nodes.get(friend_id, [])
        told = (f"{node['name'] or node['node_id']} ({node['state']})" for node in carried)
        table.add_row(name, str(friend_id), ", ".join(told))
    Terminal().print(table)


@app.command()
def token(
    friend: str = typer.Argument(help="Their id, or a name that only one friend has."),
    as_json: bool = JSON,
) -> None:
    """A new link to a friend's page; the old ones stop working. Balances and nodes stay as they are."""
    with console() as at:
        friend_id = at.friend_id(friend)
        if friend_id not in at.directory.friends():
            raise typer.BadParameter(f"{friend!r} is a creator: streamrp2p stream token makes their link")
        name = at.directory.person_name(friend_id) or "friend"
        made = new_friend_token(at.directory, friend_id, at_us=now_us())
        page = f"{at.settings.base_url}/friend#{made}"
    if as_json:
        typer.echo(json.dumps({"friend_id": str(friend_id), "friend_token": made, "friend_url": page}))
        return
    typer.echo(f"{page}   (shown once: send it to {name})")
