"""`streamrp2p witness`: anyone with a machine that is on can hold a log to its word (c2sp.org/tlog-witness).

Invariant: the witness's key and memory live in one folder; without that memory the key is not used.
"""

import asyncio
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog
import typer
import uvicorn

from hub.keystore import read_or_make_secret
from hub.logs import configure_logging
from hub.settings import load_settings
from ledger.keys import KeyPair
from ledger.note import NoteError, VerifierKey
from ledger.tlog.cosignature import WitnessKey
from ledger.tlog.reader import NotPublished, read_note
from ledger.tlog.source import SourceUnavailable, open_source
from ledger.tlog.witness import MAX_REQUEST_BYTES, Answer, Witness, WitnessError
from relay.node.server import bounded_config

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
log = structlog.get_logger("hub.witness")

_SEED: Final = "witness.seed"
_BODY_S: Final = 10.0
_MAX_CONNECTIONS: Final = 1_000


@app.callback()
def _group() -> None:
    """Watch over somebody's log: it cannot be rewritten without its witnesses noticing."""


@app.command()
def run(
    log_url: str = typer.Option(..., "--log", metavar="URL", help="Where the log is published."),
    vkey: list[str] = typer.Option(..., help="The log's verifier key, as its operator gave it to you."),
    name: str = typer.Option(
        socket.gethostname() + "/witness", help="The witness's name: a URL without https://."
    ),
    host: str = typer.Option("0.0.0.0", help="Address to listen on."),  # noqa: S104
    port: int = typer.Option(8300, min=0, max=65535, help="Port to listen on; 0 takes a free one."),
    data: Path | None = typer.Option(
        None, help="Folder of its key and memory. Not given: beside the hub's data."
    ),
) -> None:
    """Cosign the log's checkpoints. Each only when it continues the one before."""
    settings = load_settings()
    configure_logging(json=settings.log_json, level=settings.log_level)
    folder = data or settings.data_dir / "witness"
    try:
        trusted = [VerifierKey.parse(text.strip()) for text in vkey]
        witness = open_witness(folder, name, trusted)
    except NoteError as error:
        raise typer.BadParameter(str(error)) from error
    with witness.alone():
        look_at(witness, log_url, trusted)
        asyncio.run(_serve(witness, host, port))


@app.command()
def key(
    name: str = typer.Option(
        socket.gethostname() + "/witness", help="The witness's name, as given to `run`."
    ),
    data: Path | None = typer.Option(None, help="Folder of its key and memory."),
) -> None:
    """Print the witness's verifier key. Give it to the log's operator and to auditors."""
    folder = data or load_settings().data_dir / "witness"
    typer.echo(str(open_witness(folder, name, []).vkey))


def open_witness(folder: Path, name: str, trusted: list[VerifierKey]) -> Witness:
    """Raises NoteError for a name that cannot be one, KeyStoreError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = KeyPair(read_or_make_secret(folder / _SEED))
    WitnessKey(name, secret.public_key)
    return Witness(folder, name, secret, trusted)


def look_at(witness: Witness, url: str, trusted: list[VerifierKey]) -> None:
    """Warn when what is published now is older than what was cosigned. Raises WitnessError for another log."""
    try:
        with open_source(url) as source:
            _, published = read_note(source)
    except (NotPublished, SourceUnavailable, NoteError) as error:
        log.warning("witness.log_not_seen", url=url, error=str(error))
        return
    if published.origin not in {key.name for key in trusted}:
        raise WitnessError(f"{url} is the log {published.origin}, not {trusted[0].name}")
    last = witness.latest(published.origin)
    if last is not None and published.size < last.size:
        log.error("witness.log_is_older", url=url, published=published.size, cosigned=last.size)


class WitnessApp:
    """The witness over HTTP: POST /add-checkpoint."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/add-checkpoint":
            answer = Answer(404, "POST /add-checkpoint\n")
        elif scope["method"] != "POST":
            answer = Answer(405, "POST /add-checkpoint\n")
        else:
            answer = await self._add(receive)
        body = answer.body.encode()
        headers = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _add(self, receive: Any) -> Answer:
        try:
            async with asyncio.timeout(_BODY_S):
                body = await _body(receive)
        except TimeoutError:
            return Answer(408, "the request took too long\n")
        if body is None:
            return Answer(413, f"a request is at most {MAX_REQUEST_BYTES} bytes\n")
        now_s = int(time.time())
        try:
            return await asyncio.to_thread(self._witness.add_checkpoint, body, now_s=now_s)
        except (WitnessError, OSError) as error:
            log.exception("witness.cannot_sign", error=str(error))
            return Answer(500, "the witness cannot sign now\n")


async def _body(receive: Any) -> bytes | None:
    """The request's body; None when it is too long."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        body += message.get("body", b"")
        if len(body) > MAX_REQUEST_BYTES:
            return None
        more = message.get("more_body", False)
    return bytes(body)


async def _serve(witness: Witness, host: str, port: int) -> None:
    with socket.create_server((host, port), backlog=64) as listener:
        typer.echo(f"witness {witness.vkey} on port {listener.getsockname()[1]}")
        config = bounded_config(WitnessApp(witness), max_connections=_MAX_CONNECTIONS)
        with suppress(KeyboardInterrupt, asyncio.CancelledError):
            await uvicorn.Server(config).serve([listener])
