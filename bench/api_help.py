"""What the command line costs before it does anything: `streamrp2p --help` against a typer program's with one
command that does nothing, its help as plain as ours.

CPU of the whole child, user and system; the two take turns, and the least of each counts: nothing makes a process
cheaper than it is.
"""

import subprocess
import sys
from collections.abc import Iterator
from resource import RUSAGE_CHILDREN, getrusage
from typing import Final

from bench import Row

REACH: Final = 1.5
ROUNDS: Final = 15
OURS: Final = "import sys; sys.argv[0] = 'streamrp2p'; from hub.cli import main; main()"
BARE: Final = "import typer; app = typer.Typer(rich_markup_mode=None); app.command()(lambda: None); app()"


def rows() -> Iterator[Row]:
    least = {OURS: float("inf"), BARE: float("inf")}
    for _ in range(ROUNDS):
        for program in least:
            least[program] = min(least[program], cpu_ms(program))
    yield Row(
        "help of the command line / of a bare typer program", least[OURS], least[BARE], "ms CPU", REACH, True
    )


def cpu_ms(program: str) -> float:
    """Of one child with `--help`. Raises CalledProcessError."""
    before_s = _children_s()
    subprocess.run([sys.executable, "-c", program, "--help"], check=True, stdout=subprocess.DEVNULL)
    return 1_000 * (_children_s() - before_s)


def _children_s() -> float:
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
