"""`streamrp2p doctor`: what keeps this node or this hub from working, and what to do about it.

Invariant: exit code 0 exactly when no check failed; every check that could be made is made. Runs on a friend's plain
install.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from hub import doctor as checks
from hub.doctor import Finding, State
from hub.doctor import hub as hub_checks
from hub.doctor import node as node_checks
from hub.settings import Settings, load_settings
from relay.node.identity import PROFILE_FILE

_MARKS: Final = {State.OK: " ok ", State.WARN: "warn", State.FAIL: "FAIL", State.SKIP: " -- "}

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def doctor(
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="As given to node or hub (default: STREAMRP2P_DATA_DIR)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at everything that this computer's node or hub needs."""
    settings = load_settings()
    if data_dir is not None:
        settings = settings.model_copy(update={"data_dir": data_dir})
    found: list[Finding] = []
    for finding in _examine(settings.data_dir / "node", hub_checks.is_here(settings), settings):
        found.append(finding)
        if not as_json:
            typer.echo(f"{_MARKS[finding.state]}  {finding.check:<18} {finding.said}")
            if finding.advice and finding.state is not State.OK:
                typer.echo(f"{'':<25}-> {finding.advice}")
    failed = sum(f.state is State.FAIL for f in found)
    if as_json:
        typer.echo(msgspec.json.encode({"ok": not failed, "findings": [asdict(f) for f in found]}).decode())
    elif failed:
        typer.echo(f"{failed} of {len(found)} checks failed.")
    if failed:
        raise typer.Exit(1)


def _examine(node_folder: Path, hub_is_here: bool, settings: Settings) -> Iterator[Finding]:
    node_is_here = checks.readable(node_folder / PROFILE_FILE)
    if hub_is_here:
        yield from hub_checks.examine(settings)
    if node_is_here:
        yield from node_checks.examine(node_folder)
    if not hub_is_here and not node_is_here:
        yield Finding(
            "installation",
            State.WARN,
            f"neither a node nor a hub was started in {settings.data_dir} yet",
            "streamrp2p node run HUB_URL CODE, or streamrp2p up; or say --data-dir",
        )
