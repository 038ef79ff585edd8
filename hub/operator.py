"""What the operator's commands stand on: the running hub's database, opened for one command.

Invariant: a command leaves no connection behind, and every error it can expect ends as one readable line.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import typer

from api.directory import Directory
from hub.settings import Settings, load_settings
from ledger.aggregates.base import DomainError
from ledger.aggregates.node import Node
from ledger.aggregates.stream import Stream
from ledger.application import Ledger, NotFound
from ledger.services.streams import load_stream
from ledger.store.database import connect_pool, create_sql_engine
from projections.queries import Queries

_REASON: Final = re.compile(r"[\x20-\x7e]{1,100}")


@dataclass(frozen=True, slots=True)
class Console:
    settings: Settings
    ledger: Ledger
    directory: Directory
    reads: Queries

    def stream(self, slug: str) -> Stream:
        """Raises NotFound with a readable message."""
        found = load_stream(self.ledger, slug)
        if found is None:
            raise NotFound(f"there is no stream {slug!r}")
        return found

    def friend_id(self, text: str) -> UUID:
        """By id, or by a name that only one friend has. Raises BadParameter, NotFound."""
        found = _as_id(text)
        if found is None:
            named, friends = self.directory.people_named(text), self.directory.friends()
            found = _only([one for one in named if one in friends] or named, "friends")
        if found is None or self.directory.person_name(found) is None:
            raise NotFound(f"there is no friend {text!r}; all of them: streamrp2p friend list")
        return found

    def node(self, text: str) -> Node:
        """By id, or by a name that only one node has. Raises BadParameter, NotFound."""
        found = _as_id(text) or _only(self.directory.nodes_named(text), "nodes")
        try:
            if found is not None:
                return self.ledger.load(Node, found)
        except NotFound:
            pass
        raise NotFound(f"there is no node {text!r}; all of them: streamrp2p crew nodes")


@contextmanager
def console() -> Iterator[Console]:
    """The ledger of the hub that these settings point to. Raises HubNotRunning; a refused command exits with 1."""
    settings = load_settings()
    url = settings.resolved_database_url()
    ledger, engine = Ledger(url), create_sql_engine(url)
    try:
        with connect_pool(url) as pool:
            yield Console(settings, ledger, Directory(pool), Queries(engine))
    except DomainError as error:
        typer.echo(f"streamrp2p: {error}", err=True)
        raise typer.Exit(1) from error
    finally:
        ledger.close()
        engine.dispose()


def _as_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _only(found: list[UUID], what: str) -> UUID | None:
    if len(found) > 1:
        raise typer.BadParameter(f"{len(found)} {what} have that name: {', '.join(map(str, found))}")
    return found[0] if found else None


def checked_reason(text: str) -> str:
    """What may be said in the public log for ever. Raises BadParameter."""
    if not _REASON.fullmatch(text):
        raise typer.BadParameter("a reason is 1 to 100 plain characters: a word, not a story")
    return text


def micro_from_text(text: str) -> int:
    """`12.5` as 12,500,000 micro-units, exactly. Raises BadParameter for what has more than six decimals, is
    10^12 units or more, or is no such number."""
    whole, _, fraction = text.partition(".")
    if whole.isdecimal() and whole.isascii() and len(whole.lstrip("0")) > 12:
        raise typer.BadParameter("an amount is below 1000000000000")
    if not whole.isdecimal() or not whole.isascii():
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
