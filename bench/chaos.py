"""kill -9 of every process at random while a broadcast runs, over and over; a table of what it did.

    python -m bench.chaos --minutes 5 --seed 1

Each round is tests/e2e/storm.py on a fresh hub with the next seed. Exit code 1 when anything did not hold; the folder
of that round, with the logs of all processes, is kept.
"""

import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

import typer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "e2e"))

from storm import FAULTS, Report, storm

ROUND_S: Final = 60.0


def main(
    minutes: float = typer.Option(5.0, min=0.5, help="For how long."),
    seed: int = typer.Option(1, help="Of the first round; the next has the next one."),
    round_s: float = typer.Option(ROUND_S, min=10.0, help="Seconds of storm in each round."),
    pause_min_s: float = typer.Option(1.0, min=0.0, help="At least so long between two kills."),
    pause_max_s: float = typer.Option(5.0, min=0.1, help="At most so long between two kills."),
    faults: str = typer.Option(",".join(FAULTS), help="Which, by commas."),
) -> None:
    """Kill, wait, compare, again."""
    until_s = time.monotonic() + minutes * 60
    chosen = tuple(faults.split(","))
    bad = 0
    while time.monotonic() < until_s:
        folder = Path(tempfile.mkdtemp(prefix="sp2p-chaos-"))
        folder.chmod(0o711)
        try:
            report = asyncio.run(
                storm(folder, seed, round_s, faults=chosen, pause_s=(pause_min_s, pause_max_s))
            )
        except AssertionError as error:
            report = Report(seed, problems=[str(error)])
        show(report, chosen)
        if report.problems:
            bad += 1
            typer.echo(f"  data and logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        seed += 1
    raise typer.Exit(1 if bad else 0)


def show(report: Report, faults: tuple[str, ...]) -> None:
    told = report.fold
    if told is not None:
        typer.echo(
            f"seed {report.seed}: {told.size} events, {told.segments} segments in {len(told.broadcasts)} broadcasts, "
            f"{told.units} units credited once, {report.acknowledged} receipts acknowledged, "
            f"verdicts {dict(told.verdicts)}, settled {report.settled_s:.1f} s after the end"
        )
    else:
        typer.echo(f"seed {report.seed}:")
    typer.echo(f"  {'killed':<12}{'times':>6}{'next segment s':>16}{'max':>6}{'ready s':>10}{'max':>6}")
    for fault in faults:
        found = [i for i in report.injuries if i.fault == fault]
        listed = [i.listed_s for i in found if i.listed_s is not None]
        ready = [i.ready_s for i in found if i.ready_s is not None]
        if found:
            typer.echo(
                f"  {fault:<12}{len(found):>6}{_mid(listed):>16}{_max(listed):>6}{_mid(ready):>10}{_max(ready):>6}"
            )
    silence = [s.longest_silence_s for s in report.seats]
    if silence:
        typer.echo(
            f"  viewers: {len(silence)}, {sum(s.segments for s in report.seats)} segments, "
            f"longest silence {max(silence):.1f} s, opened {sum(s.openings for s in report.seats)} times"
        )
    for problem in report.problems:
        typer.echo(f"  PROBLEM: {problem}")


def _mid(values: list[float]) -> str:
    return f"{median(values):.1f}" if values else "-"


def _max(values: list[float]) -> str:
    return f"{max(values):.1f}" if values else "-"


if __name__ == "__main__":
    typer.run(main)
