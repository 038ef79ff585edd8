"""`streamrp2p`: the one command of everybody, friend and operator alike.

Invariants: a command's module is imported only when that command runs, so a friend's plain install works without the
hub's packages and help is instant; every error ends as one readable message and a fixed exit code (0 ok, 1 error,
2 usage, 3 auth, 4 not found, 5 verification failed, 10 try again); data goes to stdout, everything else to stderr.
"""

import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import typer
from typer.core import TyperGroup

# In the order of the help page; a command is hub/commands/<name>.py.
COMMANDS: Final = {
    "up": "Run the hub: database, RTMP, HLS, API and pages.",
    "demo": "Show everything on this machine: a creator, friends, viewers, a payout.",
    "node": "Join a crew and carry its stream (for friends).",
    "doctor": "What keeps this node or this hub from working?",
    "stream": "Register streams, rotate keys, fund budgets, set tariffs.",
    "invite": "Invite a friend: the line to send them.",
    "friend": "List friends, give one a new link to their page.",
    "crew": "The crew's rules and nodes: show and change them.",
    "token": "Operators' API tokens.",
    "payout": "Plan, approve and run payouts.",
    "dispute": "Freeze settlement lines, decide on them.",
    "adjust": "Correct the books by hand.",
    "books": "The books, for beancount and hledger.",
    "explain": "Why is this amount what it is?",
    "audit": "Replay a published log and check every figure.",
    "proof": "Show and check the proof of one event.",
    "log": "Events of a published log; is the database still the log?",
    "witness": "Witness somebody's log: cosign it as long as it only grows.",
    "projections": "Rebuild and check the read models.",
}
_ALIASES: Final = {"relay": "node"}  # what a node does; typed as often
_OURS = frozenset({"api", "hub", "ledger", "projections", "relay"})
_COMPLETION = frozenset({"install_completion", "show_completion"})  # of the whole program, not of a command
_FOLDER = Path(__file__).parent / "commands"


def _available() -> list[str]:
    return [name for name in COMMANDS if (_FOLDER / f"{name}.py").is_file()]


class LazyGroup(TyperGroup):
    """Knows the names of the commands, loads one when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the library's signature
        return _available()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        cmd_name = _ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in _available():
            return None
        module = importlib.import_module(f"hub.commands.{cmd_name}")
        app = getattr(module, "app", None)
        if app is None:
            app = typer.Typer(rich_markup_mode=None, add_completion=False)
            app.command(cmd_name)(getattr(module, cmd_name))
        command = typer.main.get_command(app)
        command.name = cmd_name
        command.help = command.help or COMMANDS[cmd_name]
        command.params = [one for one in command.params if one.name not in _COMPLETION]
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, COMMANDS[name]) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(version("streamrp2p"))
        except PackageNotFoundError:
            typer.echo("unknown (not installed)")
        raise typer.Exit


@app.callback()
def _root(
    _version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the whole traceback of an error."),
) -> None:
    """Restreaming as support: friends carry a creator's live stream and are paid for what they delivered."""
    if debug:
        os.environ["STREAMRP2P_LOG_LEVEL"] = "debug"


def main() -> None:
    """Entry point. Exits; never returns, never shows a traceback unless `--debug` was given."""
    debug = "--debug" in sys.argv[1:]
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit is silent
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        message, code = _describe(error)
        typer.echo(f"streamrp2p: {message}", err=True)
        sys.exit(code)


def _describe(error: Exception) -> tuple[str, int]:
    """What to tell, and the exit code."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in _OURS:
        extras = "hub,evm" if str(error.name).startswith("eth_") else "hub"
        return f"this command needs the hub's packages ({error.name}): pip install 'streamrp2p[{extras}]'", 1
    from hub.logs import mask_text  # only on the way out: structlog is slow to import

    code = getattr(error, "exit_code", None)
    if code is not None:
        return mask_text(str(error) or type(error).__name__), int(code)
    detail = mask_text(f"{type(error).__name__}: {error}")
    return f"unexpected error: {detail} (run again with 'streamrp2p --debug ...' for the details)", 1


if __name__ == "__main__":
    main()
