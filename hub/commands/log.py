"""`streamrp2p log`: the published log, readable.

Invariant: what is shown is exactly what stands in the published entries; bytes are shown as hex. Nothing is verified
here: that is what `streamrp2p audit` and `streamrp2p proof` are for.
"""

import json
from typing import Any, Final
from uuid import UUID

import msgspec
import typer

from hub.settings import load_settings
from ledger.event_codec import decode_stored, tag_of
from ledger.events import Event, SegmentsServed
from ledger.tlog.reader import LogReader, NotPublished, read_note
from ledger.tlog.source import open_source

ROWS_PER_PAGE: Final = 1_000

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """The transparency log: what it says, event by event."""


@app.command()
def show(
    position: int | None = typer.Argument(None, min=0, help="One event. Not given: all of them."),
    kind: str | None = typer.Option(None, "--type", help="Only events whose type begins so, such as book."),
    place: str | None = typer.Option(
        None, "--from", metavar="URL|FOLDER", help="Where the log is published. Not given: this hub's folder."
    ),
) -> None:
    """Print events as JSON lines."""
    with open_source(place or load_settings().data_dir / "log") as source:
        _, checkpoint = read_note(source)
        if position is not None and position >= checkpoint.size:
            raise NotPublished(f"the published log ends before position {position}")
        start, end = (0, checkpoint.size) if position is None else (position, position + 1)
        for at, data in LogReader(source, checkpoint.size).entries(start, end):
            event = decode_stored(data)
            if kind is None or tag_of(event).startswith(kind):
                typer.echo(_line({"position": at, **readable(event)}))


@app.command()
def check() -> None:
    """Hold this hub's database against its published log. Mends files that were lost; the hub may run meanwhile."""
    from hub.keystore import KeyStore  # the hub's packages: not in a friend's plain install
    from hub.log_name import log_origin
    from ledger.application import Ledger
    from ledger.tlog.publisher import Publisher

    settings = load_settings()
    ledger = Ledger(settings.resolved_database_url())
    try:
        rows = 0
        while page := ledger.check_rows(rows, ROWS_PER_PAGE):
            rows += page
        key = KeyStore.open(settings.data_dir / "keys").log
        checked = Publisher(ledger, settings.data_dir / "log", key, log_origin(settings)).check()
    finally:
        ledger.close()
    if checked is None:
        raise NotPublished("nothing is published yet")
    typer.echo(f"The first {checked.size} events of the database are those of the published log.")


def _line(fields: dict[str, Any]) -> str:
    """JSON in people's own letters; what a terminal would obey is spelled out, also where JSON need not."""
    text = json.dumps(fields, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def readable(event: Event) -> dict[str, Any]:
    """An event with field names throughout, bytes as hex and ids as text, for JSON."""
    fields = {name: _readable(value) for name, value in msgspec.structs.asdict(event).items()}
    if isinstance(event, SegmentsServed):
        fields["judged"] = _readable(event.judged)  # what its columns say
    return {"type": tag_of(event)} | fields


def _readable(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case UUID():
            return str(value)
        case tuple() | list():
            return [_readable(v) for v in value]
        case dict():
            return {k: _readable(v) for k, v in value.items()}
        case msgspec.Struct():
            return _readable(msgspec.structs.asdict(value))
        case _:
            return value
