"""`streamrp2p demo`: the story of the product on this machine, and a table of how it ended.

Invariant: exit code 0 means that everything came true: every viewer played on, no trick was paid, the money adds up and
the audit holds.
"""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from hub.demo.cast import DemoError
from hub.demo.story import Outcome, Story
from hub.operator import micro_to_text


def demo(
    keep: bool = typer.Option(False, "--keep", help="Keep the demo's data and logs."),
) -> None:
    """Show everything on this machine: a creator, friends, viewers, a cheat, a payout, an audit."""
    out = Console()
    folder = Path(tempfile.mkdtemp(prefix="streamrp2p-demo-"))
    folder.chmod(0o711)  # the embedded servers may run under another account
    began = time.monotonic()

    def say(line: str) -> None:
        out.print(f"[dim]{time.monotonic() - began:5.1f} s[/]  {line}", highlight=False, soft_wrap=True)

    failed = True
    try:
        outcome = asyncio.run(Story(folder, say).tell())
        _show(out, outcome)
        problems = _problems(outcome)
        failed = bool(problems)
        for problem in problems:
            out.print(f"[red]{problem}[/]")
        verdict = "Something did not come true." if failed else "Everything came true."
        out.print(f"\n{verdict} {time.monotonic() - began:.0f} s in all.")
    except (DemoError, TimeoutError) as error:
        typer.echo(f"streamrp2p: the demo stopped: {error or 'something took too long'}", err=True)
    finally:
        if keep or failed:
            out.print(f"data and logs: {folder}", highlight=False, soft_wrap=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if failed:
        raise typer.Exit(1)


def _show(out: Console, outcome: Outcome) -> None:
    paid = {line["friend_id"]: line["amount_micro"] for line in outcome.paid}
    friends = Table(title="Who carried the stream", title_justify="left")
    for heading in ("friend", "segments", "MB", "receipts", "refused", f"paid ({outcome.unit})"):
        friends.add_column(heading, justify="left" if heading == "friend" else "right")
    for node in outcome.nodes:
        friends.add_row(
            node["name"],
            str(node["credited_units"]),
            f"{node['credited_bytes'] // 100_000 / 10:.1f}",
            str(node["receipts_accepted"]),
            str(node["receipts_refused"]),
            micro_to_text(paid.get(node["friend_id"], 0)),
        )
    tricks = Table(title="What Mallory tried, and the hub's verdicts", title_justify="left")
    tricks.add_column("trick")
    tricks.add_column("verdict")
    tricks.add_column("times", justify="right")
    for line, count in sorted(outcome.tricks.items()):
        trick, _, verdict = line.rpartition(": ")
        tricks.add_row(trick, verdict, str(count))
    watched = Table(title="Who watched", title_justify="left")
    for heading in ("viewers", "segments", "from friends", "from the hub", "stalls", "longest wait"):
        watched.add_column(heading, justify="left" if heading == "viewers" else "right")
    for kind in dict.fromkeys(k for k, _ in outcome.viewers):
        stats = [v.stats for k, v in outcome.viewers if k == kind]
        watched.add_row(
            f"{len(stats)} {kind}",
            str(sum(s.segments for s in stats)),
            str(sum(s.from_node for s in stats)),
            str(sum(s.from_hub for s in stats)),
            str(sum(s.stalls for s in stats)),
            f"{max(s.stall_s_max for s in stats):.1f} s",
        )
    for table in (watched, friends, tricks):
        out.print()
        out.print(table)
    out.print("Mallory is paid for what her node really delivered, and for none of her tricks.")
    out.print(f"\nPaid out: {micro_to_text(sum(paid.values()))} {outcome.unit} to {len(paid)} friends")
    out.print(
        f"Audit:    {'holds' if outcome.audit.get('ok') else 'FAILED'}: {_audited(outcome)}", soft_wrap=True
    )


def _audited(outcome: Outcome) -> str:
    counts = outcome.audit.get("counts", {})
    names = ("events", "receipts", "signatures", "epochs", "transfers")
    return ", ".join(f"{counts[n]:,} {n}" for n in names if n in counts)


def _problems(outcome: Outcome) -> list[str]:
    """What did not come true."""
    found = []
    accepted = [line for line in outcome.tricks if line.endswith(": accepted")]
    if accepted:
        found.append(f"the hub paid for: {', '.join(accepted)}")
    if not outcome.tricks:
        found.append("Mallory got no ticket to cheat with")
    if not outcome.audit.get("ok"):
        found.append("the audit failed")
    if sum(outcome.balances.values()) != 0:
        found.append("the accounts do not sum to zero")
    if {a: v for a, v in outcome.balances.items() if v} != outcome.audit.get("balances"):
        found.append("the auditor's balances are not the hub's")
    paid = {line["friend_id"]: line["amount_micro"] for line in outcome.paid}
    if not paid or paid != {friend: amount for friend, amount in outcome.earned.items() if amount}:
        found.append("what was paid is not what the friends' statements say they earned")
    return found
