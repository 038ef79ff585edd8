"""A supervisor over real small children, as a program: `python supervised.py FOLDER`. Each child appends what happens
to it to FOLDER/events and keeps its pid in FOLDER/<name>.pid."""

import sys
from pathlib import Path

from hub import supervisor as supervisor_module
from hub.logs import configure_logging
from hub.supervisor import Program, Supervisor

CHILD = """
import os, signal, sys, time
from pathlib import Path
folder, name, stubborn = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "stubborn"
def note(what):
    with (folder / "events").open("a") as file:
        file.write(f"{name} {what}\\n")
def stop(*_):
    note("stop")
    if not stubborn:
        sys.exit(0)
signal.signal(signal.SIGTERM, stop)
(folder / f"{name}.starting").write_text(str(os.getpid()))
note("start")
while (folder / f"{name}.slow").exists():
    time.sleep(0.02)
if (folder / f"{name}.fails-once").exists():
    (folder / f"{name}.fails-once").unlink()
    sys.exit(7)
if (folder / f"{name}.fails").exists():
    sys.exit(7)
whole = folder / f"{name}.pid.new"  # whoever sees a pid file reads all of it
whole.write_text(str(os.getpid()))
whole.rename(folder / f"{name}.pid")
while True:
    time.sleep(60)
"""


def program(folder: Path, name: str, *, stubborn: bool = False) -> Program:
    pid_file = folder / f"{name}.pid"
    pid_file.unlink(missing_ok=True)
    command = [sys.executable, "-c", CHILD, str(folder), name, "stubborn" if stubborn else "polite"]
    return Program(name, command, pid_file.exists, stop_patience_s=0.5)


def main() -> None:
    configure_logging(json=False, level="info")
    folder = Path(sys.argv[1])
    supervisor_module.TELL_STARTING_S = 0.2
    with Supervisor() as supervisor:
        for name in ("first", "second"):
            if not supervisor.start(program(folder, name, stubborn="--stubborn" in sys.argv)):
                return
        print("up", flush=True)
        supervisor.run()


if __name__ == "__main__":
    main()
