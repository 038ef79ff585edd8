"""The command line: works on a friend's plain install, errors are one readable line, exit codes are fixed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HUB_ONLY = [
    "alembic",
    "av",
    "eventsourcing",
    "fastapi",
    "jinja2",
    "psycopg",
    "redis",
    "sqlalchemy",
    "structlog",
]

OURS = {"api", "hub", "ledger", "projections", "relay"}
SLOW = {"cryptography", "httpx2", "msgspec", "nacl", "numpy", "pydantic", "rich", "uvicorn", "uvloop"}


def run(*arguments: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    program = f"{code}\nimport sys\nsys.argv[0] = 'streamrp2p'\nfrom hub.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def without(*packages: str) -> str:
    """Code that makes these packages impossible to import, as on a machine that does not have them."""
    return f"import sys\nfor name in {packages!r}: sys.modules[name] = None"


def test_help_lists_the_commands_and_imports_none_of_the_hubs_packages() -> None:
    done = run("--help", code=without(*HUB_ONLY))
    assert done.returncode == 0, done.stderr
    assert "node" in done.stdout
    assert "payout" in done.stdout


def test_help_imports_the_command_line_and_nothing_else_of_ours() -> None:
    """Why it is quick; how quick is for bench/api_help.py to say."""
    tell = "import atexit, sys\natexit.register(lambda: print(*sys.modules, file=sys.stderr))"
    done = run("--help", code=tell)
    imported = set(done.stderr.split())
    assert {name for name in imported if name.split(".")[0] in OURS} == {"hub", "hub.cli"}
    others = {name.split(".")[0] for name in imported} - sys.stdlib_module_names
    assert {name for name in others if name in HUB_ONLY or name in SLOW} == set()


def test_a_friends_plain_install_runs_the_node_command() -> None:
    done = run("node", "--help", code=without(*[name for name in HUB_ONLY if name != "structlog"]))
    assert done.returncode == 0, done.stderr


def test_a_hub_command_on_a_plain_install_says_what_to_install() -> None:
    done = run("payout", "show", code=without("psycopg", "eventsourcing", "sqlalchemy"))
    assert done.returncode == 1
    assert "streamrp2p[hub]" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_command_is_wrong_usage() -> None:
    done = run("nope")
    assert done.returncode == 2
    assert "nope" in done.stderr


def test_wrong_settings_end_with_2_and_name_the_variable() -> None:
    done = run("up", STREAMRP2P_HTTP_PORT="99999")
    assert done.returncode == 2
    assert "STREAMRP2P_HTTP_PORT=99999" in done.stderr
    assert done.stdout == ""


def test_a_command_that_needs_the_running_hub_ends_with_10_without_it(tmp_path: Path) -> None:
    done = run("payout", "show", STREAMRP2P_DATA_DIR=str(tmp_path))
    assert done.returncode == 10, done.stderr
    assert "streamrp2p up" in done.stderr


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_error_shows_a_traceback_only_when_asked(debug: bool) -> None:
    broken = "import hub.settings\ndef fail(): raise RuntimeError('sp2p_operator_abcdefghijkl')\n"
    broken += "hub.settings.load_settings = fail"
    done = run(*(["--debug"] if debug else []), "up", code=broken)
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) == debug
    if not debug:
        assert "unexpected error: RuntimeError" in done.stderr
        assert "abcdefghijkl" not in done.stderr
