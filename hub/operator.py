"""What the operator's commands stand on: the running hub's database, opened for one command.

Invariant: a command leaves no connection behind, and every error it can expect ends as one readable line.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import typer

from api.directory import Directory
from hub.settings import Settings, load_settings
from ledger.aggregates.base import DomainError
from ledger.aggregates.stream import Stream
from ledger.application import Ledger, NotFound
from ledger.services.streams import load_stream
from ledger.store.database import connect_pool


@dataclass(frozen=True, slots=True)
class Console:
    settings: Settings
    ledger: Ledger
    directory: Directory

    def stream(self, slug: str) -> Stream:
        """Raises NotFound with a readable message."""
        found = load_stream(self.ledger, slug)
        if found is None:
            raise NotFound(f"there is no stream {slug!r}")
        return found


@contextmanager
def console() -> Iterator[Console]:
    """The ledger of the hub that these settings point to. Raises HubNotRunning; a refused command exits with 1."""
    settings = load_settings()
    url = settings.resolved_database_url()
    ledger = Ledger(url)
    try:
        with connect_pool(url) as pool:
            yield Console(settings, ledger, Directory(pool))
    except DomainError as error:
        typer.echo(f"streamrp2p: {error}", err=True)
        raise typer.Exit(1) from error
    finally:
        ledger.close()


def micro_from_text(text: str) -> int:
    """`12.5` as 12,500,000 micro-units, exactly. Raises BadParameter for anything but at most six decimals."""
    whole, _, fraction = text.partition(".")
    if not whole.isdecimal() or not whole.isascii() or len(whole) > 12:
        raise typer.BadParameter("an amount is a number such as 25 or 12.5")
    if fraction and not (fraction.isdecimal() and fraction.isascii()):
        raise typer.BadParameter("an amount is a number such as 25 or 12.5")
    if len(fraction) > 6:
        raise typer.BadParameter("an amount has at most six decimals")
    return int(whole) * 1_000_000 + int(fraction.ljust(6, "0") or "0")


def micro_to_text(amount_micro: int) -> str:
    """Exact decimal text, at least two decimals."""
    sign, magnitude = ("-" if amount_micro < 0 else ""), abs(amount_micro)
    fraction = f"{magnitude % 1_000_000:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{magnitude // 1_000_000}.{fraction}"
