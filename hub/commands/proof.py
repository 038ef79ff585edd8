"""`streamrp2p proof`: the proof of one event, made from the published log and verified offline.

Invariant: `verify` reads nothing but the file and the key it is given.
"""

import json
from pathlib import Path

import typer

from hub.commands.log import readable
from ledger.event_codec import decode
from ledger.note import NoteError, VerifierKey
from ledger.tlog.files import write_atomic
from ledger.tlog.proof import MAX_BYTES, ProofError, TlogProof
from ledger.tlog.proof import make_proof as make_from
from ledger.tlog.source import open_source

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

EXIT_FAILED = 5


@app.command()
def make(
    position: int = typer.Argument(min=0, help="Position of the event in the log."),
    place: str = typer.Argument(metavar="URL|FOLDER", help="Where the log is published."),
    out: Path | None = typer.Option(None, help="Where to write it. Not given: POSITION.tlog-proof."),
) -> None:
    """Write the proof of one event to a file. It can be verified for ever."""
    path = out or Path(f"{position}.tlog-proof")
    with open_source(place) as source:
        write_atomic(path.absolute(), make_from(source, position).encode())
    typer.echo(str(path))


@app.command()
def verify(
    file: Path = typer.Argument(help="A .tlog-proof file."),
    vkey: str = typer.Option(..., help="The log's verifier key, as its operator gave it to you."),
) -> None:
    """Verify a proof offline and show the event. Exit code 5 when it does not hold."""
    try:
        key = VerifierKey.parse(vkey.strip())
    except NoteError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        with open(file, "rb") as f:
            data = f.read(MAX_BYTES + 1)
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}") from error
    try:
        proof = TlogProof.parse(data)
        checkpoint = proof.verify(key)
    except (ProofError, NoteError) as error:
        typer.echo(f"streamrp2p: the proof does not hold: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error
    shown = {"position": proof.index, "log": checkpoint.origin, "size": checkpoint.size}
    typer.echo(json.dumps(shown | {"event": readable(decode(proof.entry))}))
