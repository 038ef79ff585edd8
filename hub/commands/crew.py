"""`streamrp2p crew`: the crew's numbers and nodes.

Invariant: each change is an event, so that an audit uses what was in force; a node that is stopped here gets no ticket
from then on, and no viewer from the moment that the hub's other processes hear of it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

import typer
from rich.box import SIMPLE
from rich.console import Console as Terminal
from rich.table import Column, Table

from api.liveness import Liveness
from api.valkey import connect
from hub.clock import now_us
from hub.key_commands import app as key_app
from hub.operator import Console, checked_reason, console
from hub.settings import HubNotRunning
from ledger.aggregates.node import Node
from ledger.services import crew
from ledger.services import nodes as commands
from ledger.verdict import Verdict
from projections.views import NodeView

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(key_app, name="key")

JSON = typer.Option(False, "--json", help="Print JSON.")
NODE = typer.Argument(metavar="NODE", help="Its id, or a name that only one node has.")
REASON = typer.Option(..., help="Stays in the public log, and the friend reads it: a word, no names.")


@app.command()
def show(as_json: bool = JSON) -> None:
    """The settings in force."""
    with console() as at:
        numbers = crew.settings(at.ledger).as_dict()
    if as_json:
        typer.echo(json.dumps(numbers))
        return
    for name, value in numbers.items():
        typer.echo(f"{name:<26}{value:>16,}")


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
        before = crew.settings(at.ledger).as_dict()
        crew.change_settings(at.ledger, changes, at_us=now_us())
        after = crew.settings(at.ledger).as_dict()
    for name in changes:
        same = before[name] == after[name]
        typer.echo(f"{name}: {after[name]:,}" + (" (as before)" if same else f" (was {before[name]:,})"))


@app.command()
def nodes(as_json: bool = JSON) -> None:
    """All nodes: whose they are, how they do, which receipts were refused, and why one is suspended or retired."""
    with console() as at:
        views = at.reads.nodes()
        names, friends = at.directory.node_names(v.node_id for v in views), at.directory.friends()
    if as_json:
        rows = [
            {
                **asdict(v),
                "name": names.get(v.node_id, ""),
                "friend": friends.get(v.friend_id, ""),
                "verdicts": dict(v.verdicts),
                "caps": dict(v.caps),
            }
            for v in views
        ]
        typer.echo(json.dumps({"nodes": rows}, default=str))
        return
    if not views:
        typer.echo("there are none")
        return
    table = Table(
        Column("node", no_wrap=True),
        Column("name", overflow="fold"),
        Column("friend", overflow="fold"),
        Column("state", overflow="fold", min_width=7),
        Column("health", no_wrap=True),
        Column("refused", overflow="fold"),
        box=SIMPLE,  # ids are long, terminals narrow
    )
    for v in views:
        state = f"{v.state}: {v.state_reason}" if v.state_reason else v.state
        friend = friends.get(v.friend_id, str(v.friend_id))
        table.add_row(
            str(v.node_id), names.get(v.node_id, ""), friend, state, f"{v.health // 10} %", _refused(v)
        )
    Terminal().print(table)


def _refused(view: NodeView) -> str:
    """`3 capped, 1 late (2 same_network, 1 own_account)`: the most frequent first, in brackets the caps."""

    def said(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])))

    refused = said({name: n for name, n in view.verdicts.items() if name != Verdict.ACCEPTED})
    return f"{refused} ({said(view.caps)})" if view.caps else refused


@app.command()
def suspend(node: str = NODE, reason: str = REASON, as_json: bool = JSON) -> None:
    """No more viewers for a node, until it is reinstated."""
    _change(commands.suspend, node, reason, as_json, stops=True)


@app.command()
def reinstate(node: str = NODE, reason: str = REASON, as_json: bool = JSON) -> None:
    """Viewers again for a suspended node, from its next heartbeat on."""
    _change(commands.reinstate, node, reason, as_json, stops=False)


@app.command()
def retire(node: str = NODE, reason: str = REASON, as_json: bool = JSON) -> None:
    """A node is gone for good: its key never comes back. What it earned stays its friend's."""
    _change(commands.retire, node, reason, as_json, stops=True)


def _change(change: Callable[..., Node], text: str, reason: str, as_json: bool, *, stops: bool) -> None:
    checked_reason(reason)
    with console() as at:
        node = change(at.ledger, at.node(text).id, reason=reason, at_us=now_us())
        if stops:
            _tell_routing(at, node)
    if as_json:
        shown = {"node_id": str(node.id), "status": node.status.value, "reason": node.status_reason}
        typer.echo(json.dumps(shown))
        return
    why = f": {node.status_reason}" if node.status_reason else ""
    typer.echo(f"{text}: {node.status.value}{why}")


def _tell_routing(at: Console, node: Node) -> None:
    """The next heartbeat would tell it as well, up to five seconds later."""
    try:
        valkey = connect(at.settings.resolved_redis_url())
    except HubNotRunning:
        return  # nobody is sent anywhere
    Liveness(valkey).forget(node.id)
    valkey.close()
