"""`streamrp2p explain`: why is this amount what it is?

Invariant: what is shown was derived again from the log and comes to the recorded amount (exit code 5 when it does not,
4 when there is no such line). With `--from` it needs no hub, no database and no account.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import msgspec
import typer

from ledger.money import decimal_text
from ledger.services.explain import Earned, Events, Explanation, Moved, Steps, TariffUsed, statement
from ledger.services.explain import explain as derive

_SHOWN_RECEIPTS = 20


def explain(
    place: str | None = typer.Argument(
        None, metavar="POSITION[:LINE]", help="Of a statement line; line 0 if left out."
    ),
    friend: UUID | None = typer.Option(None, help="List this friend's lines instead."),
    source: str | None = typer.Option(
        None, "--from", metavar="URL|FOLDER", help="A published log, instead of the running hub's database."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON; amounts in micro-units."),
) -> None:
    """Show how an amount in a statement follows from the log, step by step."""
    if (place is None) == (friend is None):
        raise typer.BadParameter("give either a POSITION[:LINE] or --friend ID")
    with open_log(source) as log:
        if friend is not None:
            _show_statement(log, friend, as_json)
            return
        made = derive(log, *parse_place(place or ""))
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(made)))
    else:
        typer.echo("\n".join(_text(made)))


def parse_place(place: str) -> tuple[int, int]:
    position, _, line = place.partition(":")
    if not all(x.isascii() and x.isdecimal() and len(x) < 16 for x in (position, line or "0")):
        raise typer.BadParameter(f"{place!r} is not POSITION or POSITION:LINE")
    return int(position), int(line or "0")


@contextmanager
def open_log(source: str | None) -> Iterator[Events]:
    if source is None:
        from hub.operator import console  # the hub's packages
        from ledger.services.explain_log import LedgerLog

        with console() as at:
            yield LedgerLog(at.ledger)
        return
    from ledger.tlog.published import PublishedLog
    from ledger.tlog.source import open_source

    with open_source(source) as files:
        yield PublishedLog.of(files)


def _show_statement(log: Events, friend_id: UUID, as_json: bool) -> None:
    lines = statement(log, friend_id)
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(lines)))
        return
    for part in lines:
        place = f"{part.position}:{part.line}"
        typer.echo(f"{place:<14}{part.reason:<24}{decimal_text(part.amount_micro):>20}")


def _text(made: Explanation) -> list[str]:
    if isinstance(made, Moved):
        head = f"{made.reason}: {decimal_text(made.amount_micro)} for friend {made.friend_id}"
        said = [f"  {made.note}"] if made.note else []
        if made.payout_line is not None:
            said.append(f"  line {made.payout_line} of payout {made.batch_id}")
        if made.epoch is not None:
            said.append(f"  earned in epoch {made.epoch}:")
        return [
            head,
            *said,
            *(
                f"  {f'{p.position}:{p.line}':<14}{p.reason:<24}{decimal_text(p.amount_micro):>20}"
                for p in made.parts
            ),
        ]
    s, t = made.steps, made.tariff
    return [
        f"{made.reason}: {decimal_text(made.amount_micro)} for friend {made.friend_id}",
        f"  node {made.node_id}, stream {made.stream_id}",
        f"  epoch {made.epoch}, settled at position {made.position} from the log [{made.log_from}, {made.log_to})",
        f"  tariff {t.version}"
        + (f" (position {t.position}): " if t.position is not None else " (none was set): ")
        + f"{decimal_text(t.rate_micro_per_gb)} per 10^9 bytes, fee {_percent(t.fee_bp)}, floor "
        f"{_percent(t.floor_bp)}, plain bytes count {_percent(t.plain_bp)}",
        *_arithmetic(made, s, t),
        *_receipts(made),
    ]


def _arithmetic(made: Earned, s: Steps, t: TariffUsed) -> Iterator[str]:
    rows: list[tuple[str, int, str]] = [
        ("all delivery of the stream", s.priced_micro, f"{s.stream_weight:,} byte-bp x rate / 10^13"),
        ("the budget held", s.budget_micro, ""),
        ("gross", s.gross_micro, "scaled down to the budget" if s.scaled_to_budget else "within the budget"),
        ("platform fee", -s.fee_bp_of_gross_micro, f"{_percent(t.fee_bp)} of the gross"),
        (
            "floor",
            s.floor_pool_micro,
            f"{_percent(t.floor_bp)} of the rest, equally among {s.nodes} node{'' if s.nodes == 1 else 's'}",
        ),
        ("shared by weight", s.rest_micro, ""),
    ]
    if made.reason == "floor_share":
        rows.append(("this node's part of the floor", s.quota_micro, f"1 / {s.nodes}, rounded down"))
    else:
        note = f"{s.weight:,} of {s.stream_weight:,}, rounded down"
        rows.append(
            (f"this line: {made.units:,} segments, {made.credited_bytes:,} bytes", s.quota_micro, note)
        )
    if s.remainder_micro in (0, 1):
        rows.append(("largest remainder", s.remainder_micro, "one micro-unit, or none; ties by node"))
    else:  # of a floor share only
        rows.append(
            ("bounds of floor shares", s.remainder_micro, "nobody more than floor_most_bp of their weight")
        )
    if s.plain_most_micro is not None:
        rows.append(
            ("the node's plain lines together at most", s.plain_most_micro, _percent(t.plain_income_cap_bp))
        )
    rows.append(("amount", made.amount_micro, ""))
    for name, amount, note in rows:
        yield f"  {name:<52}{decimal_text(amount):>18}  {note}".rstrip()


def _receipts(made: Earned) -> Iterator[str]:
    receipts = made.receipts or ()
    if receipts:
        yield f"  {len(receipts):,} receipts (position/number in it, segments, bytes):"
    for r in receipts[:_SHOWN_RECEIPTS]:
        yield f"    {f'{r.position}/{r.receipt}':<16}{r.units:>8,}{r.credited_bytes:>18,}"
    if len(receipts) > _SHOWN_RECEIPTS:
        yield f"    and {len(receipts) - _SHOWN_RECEIPTS:,} more (--json shows all)"
    if made.spot_checks:
        units, size = (
            sum(r.units for r in made.spot_checks),
            sum(r.credited_bytes for r in made.spot_checks),
        )
        yield f"  not in it: {units:,} segments, {size:,} bytes that were the hub's own spot checks"


def _percent(bp: int) -> str:
    whole, part = divmod(bp, 100)
    return f"{whole}.{part:02d} %" if part else f"{whole} %"
