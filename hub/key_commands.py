"""`streamrp2p crew key`: the keys that sign tickets and the log's checkpoints, and putting another in their place.

Invariant: what a key signed stays verifiable: the log names it for ever.
"""

import json
from typing import Final

import typer
from rich.console import Console as Terminal
from rich.table import Column, Table

from hub.clock import now_us
from hub.keystore import SigningKeys
from hub.log_name import log_origin
from hub.operator import Console, console
from hub.rotation import rotate as rotate_key
from ledger.aggregates.crew import PURPOSES, CrewKey
from ledger.note import VerifierKey
from ledger.services import crew

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The crew's signing keys.")

JSON: Final = typer.Option(False, "--json", help="Print JSON.")
SIGNS: Final = "signs"


@app.command("list")
def list_(as_json: bool = JSON) -> None:
    """Every key that the log names, and what it is for."""
    with console() as at:
        rows = [
            {
                "purpose": key.purpose,
                "key_id": key.key_id.hex(),
                "public_key": key.public_key.hex(),
                "state": _state(at, key),
            }
            for purpose in PURPOSES
            for key in crew.crew(at.ledger).public_keys(purpose)
        ]
    if as_json:
        typer.echo(json.dumps({"keys": rows}))
        return
    table = Table("purpose", Column("key", no_wrap=True), "state")
    for row in rows:
        table.add_row(row["purpose"], row["key_id"], row["state"])
    Terminal().print(table)


@app.command()
def rotate(
    purpose: str = typer.Argument(metavar="ticket|log", help="Which key."), as_json: bool = JSON
) -> None:
    """Make a new key and name it in the log. It signs from the hub's next start on."""
    if purpose not in PURPOSES:
        raise typer.BadParameter(f"there is no key {purpose!r}; there are: {', '.join(PURPOSES)}")
    with console() as at:
        made = rotate_key(at.ledger, at.settings.data_dir / "keys", purpose, at_us=now_us())
        vkey = str(VerifierKey(log_origin(at.settings), made.public_key)) if purpose == "log" else None
    if as_json:
        shown = {"purpose": purpose, "key_id": made.key_id.hex(), "public_key": made.public_key.hex()}
        typer.echo(json.dumps(shown | ({"vkey": vkey} if vkey else {})))
        return
    typer.echo(f"The {purpose} key {made.key_id.hex()} signs when the hub is started the next time.")
    if vkey:
        typer.echo(f"Before that, give its verifier key to your witnesses, beside the old one:\n  {vkey}")


def _state(at: Console, key: CrewKey) -> str:
    """As far as the files of this data directory tell; none is made."""
    if key.retired:
        return "retired"
    keys = SigningKeys(at.settings.data_dir / "keys", key.purpose)
    if keys.path.exists() and keys.current().key_id == key.key_id:
        return SIGNS
    waiting, former = keys.next(), keys.former()
    if waiting is not None and waiting.key_id == key.key_id:
        return "signs from the next start on"
    if former is not None and former.key_id == key.key_id:
        return "signs beside the new one, and is retired soon"
    return "in force, and its secret is not here"
