"""`streamrp2p stream`: create streams, rotate keys and creators' tokens, fund budgets, set tariffs.

Invariant: a stream key or a creator's token is shown once, when it is made; the hub keeps only its hash.
"""

import json
from collections.abc import Callable

import typer

from api.directory import Role
from api.newcomers import new_stream_key, register_stream
from hub.clock import now_us
from hub.operator import Console, console, micro_from_text, micro_to_text
from ledger.aggregates.book import Book
from ledger.application import NotFound
from ledger.ids import BOOK_ID
from ledger.services import budgets, crew, streams

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

REFERENCE = typer.Option(..., help="Of the payment; the same reference is booked once.")
DRY_RUN = typer.Option(False, "--dry-run", help="Show what would happen; change nothing.")


@app.command()
def create(slug: str, as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Register a stream; show its key and its creator's page once."""
    with console() as at:
        new = register_stream(at.ledger, at.directory, slug, at_us=now_us())
        watch_url, creator_url = f"{at.settings.base_url}/watch/{slug}", _creator_url(at, new.creator_token)
        server = at.settings.rtmp_server
    if as_json:
        shown = {"stream": slug, "rtmp_server": server, "stream_key": new.stream_key}
        links = {"creator_url": creator_url, "watch_url": watch_url}
        typer.echo(json.dumps(shown | {"creator_token": new.creator_token} | links))
        return
    _show_key(server, slug, new.stream_key, as_json=False)
    typer.echo(f"Watch       {watch_url}\nCreator     {creator_url}   (shown once: keep it)")


@app.command()
def key(slug: str, as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """Make a new stream key; the old one stops working at once."""
    with console() as at:
        new = new_stream_key(slug)
        streams.rotate_key(at.ledger, at.stream(slug).id, stream_key=new, at_us=now_us())
        _show_key(at.settings.rtmp_server, slug, new, as_json)


@app.command()
def token(slug: str) -> None:
    """A new link to the creator's page; the old one stops working."""
    with console() as at:
        owner_id = at.stream(slug).owner_id
        at.directory.revoke_tokens(Role.CREATOR, owner_id, at_us=now_us())
        made = at.directory.create_token(Role.CREATOR, owner_id, slug, at_us=now_us())
        typer.echo(f"{_creator_url(at, made)}   (shown once: keep it)")


@app.command()
def fund(
    slug: str,
    amount: str = typer.Argument(help="In units of account, such as 25 or 12.5."),
    reference: str = REFERENCE,
    dry_run: bool = DRY_RUN,
) -> None:
    """Put money into a stream's reward budget."""
    _move(budgets.deposit, slug, amount, reference, dry_run=dry_run)


@app.command()
def withdraw(
    slug: str,
    amount: str = typer.Argument(help="In units of account, such as 25 or 12.5."),
    reference: str = REFERENCE,
    dry_run: bool = DRY_RUN,
) -> None:
    """Give unspent budget back to the creator. The books have it as gone; you pay it by hand."""
    _move(budgets.withdraw, slug, amount, reference, dry_run=dry_run)


@app.command()
def tariff(
    slug: str,
    rate_per_gb: str | None = typer.Option(
        None, help="What 10^9 delivered bytes cost the budget, in units of account, such as 0.01."
    ),
    fee_bp: int | None = typer.Option(None, help="The platform's part of it, in hundredths of a percent."),
    floor_bp: int | None = typer.Option(
        None, help="Of the rest, the part shared equally among all nodes that carried."
    ),
    plain_bp: int | None = typer.Option(
        None, help="What a byte to a player without receipts counts, compared with a signed one."
    ),
    plain_income_cap_bp: int | None = typer.Option(
        None, help="The most of a node's income that may come from such players."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Set what delivery costs and how it is shared; without options, show it.

    What is not given stays as it is. From the next epoch on; a stream's first tariff at once.
    """
    parts = {
        "fee_bp": fee_bp,
        "floor_bp": floor_bp,
        "plain_bp": plain_bp,
        "plain_income_cap_bp": plain_income_cap_bp,
    }
    rate_micro = None if rate_per_gb is None else micro_from_text(rate_per_gb)
    with console() as at:
        stream_id = at.stream(slug).id
        if rate_micro is not None or any(part is not None for part in parts.values()):
            budgets.set_tariff(at.ledger, stream_id, rate_micro_per_gb=rate_micro, at_us=now_us(), **parts)
        newest = at.ledger.load_or_new(Book, BOOK_ID).newest_tariff(stream_id)
        unit = crew.crew(at.ledger).unit
    if newest is None:
        raise NotFound(
            f"{slug} has no tariff: it gets the crew's with its first deposit, or one by these options"
        )
    numbers = {name: getattr(newest, name) for name in budgets.TARIFF_FIELDS}
    if as_json:
        typer.echo(json.dumps({"stream": slug, "tariff_version": newest.version} | numbers))
        return
    rate = micro_to_text(numbers.pop("rate_micro_per_gb"))
    typer.echo(f"{slug}: tariff version {newest.version}\n  {'rate':<20} {rate} {unit} per GB")
    for name, part_bp in numbers.items():
        typer.echo(f"  {name:<20} {part_bp:>6,}   ({_percent(part_bp)})")


@app.command()
def archive(slug: str, reason: str = typer.Option("closed by the operator")) -> None:
    """Close a stream for good."""
    with console() as at:
        streams.archive_stream(at.ledger, at.stream(slug).id, reason=reason, at_us=now_us())
        typer.echo(f"{slug}: archived")


def _move(command: Callable[..., int], slug: str, amount: str, reference: str, *, dry_run: bool) -> None:
    with console() as at:
        left_micro = command(
            at.ledger,
            at.stream(slug).id,
            amount_micro=micro_from_text(amount),
            reference=reference,
            at_us=now_us(),
            dry_run=dry_run,
        )
        text = f"{micro_to_text(left_micro)} {crew.crew(at.ledger).unit}"
    typer.echo(
        f"dry run: the budget of {slug} would be {text}" if dry_run else f"{slug}: the budget is now {text}"
    )


def _percent(part_bp: int) -> str:
    hundredths = f"{part_bp % 100:02d}".rstrip("0")
    return f"{part_bp // 100}{'.' + hundredths if hundredths else ''} %"


def _creator_url(at: Console, creator_token: str) -> str:
    return f"{at.settings.base_url}/creator#{creator_token}"


def _show_key(server: str, slug: str, stream_key: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"stream": slug, "rtmp_server": server, "stream_key": stream_key}))
        return
    typer.echo(f"Server      {server}\nStream Key  {stream_key}   (shown once: keep it)")
