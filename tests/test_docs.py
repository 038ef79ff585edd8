"""Documentation is tested: what an operator can set, type or be told stands in the docs, and what stands there runs."""

import re
import subprocess
from pathlib import Path

import pytest
import typer
from pydantic_core import PydanticUndefined

from api.metrics import Metrics
from api.problems import ProblemType
from bench.__main__ import AREAS
from hub.cli import COMMANDS, app
from hub.settings import PREFIX, Settings
from ledger.settings import BOUNDS

ROOT = Path(__file__).resolve().parent.parent
DOCS = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
OPERATORS = DOCS[ROOT / "docs" / "operators.md"]
GROUP = typer.main.get_command(app)


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, check=True
    ).stdout
    return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    assert f"| `{PREFIX}{name.upper()}` |" in OPERATORS


@pytest.mark.parametrize(
    "name",
    [name for name, field in Settings.model_fields.items() if field.default not in (None, PydanticUndefined)],
)
def test_every_default_is_as_documented(name: str) -> None:
    default = str(Settings.model_fields[name].default)
    said = default.lower() if default in ("True", "False") else default
    assert f"| `{PREFIX}{name.upper()}` | `{said}` |" in OPERATORS


@pytest.mark.parametrize("name", BOUNDS)
def test_every_rule_of_a_crew_is_documented(name: str) -> None:
    assert f"`{name}`" in OPERATORS


def test_every_documented_setting_exists() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(rf"{PREFIX}[A-Z_]+[A-Z]", "\n".join(DOCS.values()))) <= known


def test_every_command_module_is_a_listed_command() -> None:
    modules = {path.stem for path in (ROOT / "hub" / "commands").glob("*.py")} - {"__init__"}
    assert modules == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_subcommand_is_documented(name: str) -> None:
    row = re.search(rf"^\| `streamrp2p {name}\b[^|]*\|.*$", OPERATORS, re.MULTILINE)
    assert row is not None, "a row in docs/operators.md"
    for subcommand in getattr(GROUP.get_command(None, name), "commands", {}):  # type: ignore[attr-defined]
        assert f"`{subcommand}`" in row.group(0)


def test_every_command_in_the_docs_exists() -> None:
    for path, text in DOCS.items():
        for name, subcommand in re.findall(
            r"(?:bin/|`|    )streamrp2p (?!--)([a-z]+)(?: ([a-z][a-z-]*))?", text
        ):
            assert name in COMMANDS, f"streamrp2p {name} in {path.name}"
            subcommands = getattr(GROUP.get_command(None, name), "commands", None)  # type: ignore[attr-defined]
            if subcommands and subcommand:
                assert subcommand in subcommands, f"streamrp2p {name} {subcommand} in {path.name}"


def test_every_option_in_the_docs_exists() -> None:
    for path, text in DOCS.items():
        for line in re.findall(r"(?:bin/|`|^ {4}|^)streamrp2p ((?!-)[^`\n#]+)", text, re.MULTILINE):
            command, words = GROUP, iter(line.split())
            options = set(re.findall(r"(?<!\S)--[a-z-]+", line))
            while commands := getattr(command, "commands", None) or (command is GROUP and COMMANDS):
                word = next(words, None)
                if word not in commands:
                    break
                command = command.get_command(None, word)  # type: ignore[attr-defined]
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            assert options <= known, f"streamrp2p {line} in {path.name}"


def test_the_areas_of_the_bench_are_documented() -> None:
    text = DOCS[ROOT / "docs" / "benchmarks.md"]
    assert f"one area: {', '.join(AREAS)}" in text
    assert set(re.findall(r"ONLY=([a-z]+)", "\n".join(DOCS.values()))) <= set(AREAS)


@pytest.mark.parametrize("problem", ProblemType)
def test_every_problem_type_is_documented(problem: ProblemType) -> None:
    assert f"`/problems/{problem.slug}` | {problem.status} |" in DOCS[ROOT / "docs" / "api.md"]


def test_every_metric_is_documented() -> None:
    families = [family.name for family in Metrics().registry.collect()]
    assert families
    for name in families:
        assert re.search(rf"`{name}(_total)?`", DOCS[ROOT / "docs" / "api.md"]), name


def test_the_make_targets_in_the_docs_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    used = set(re.findall(r"(?:^ {4}|`)make ([a-z]+)", "\n".join(DOCS.values()), re.MULTILINE))
    assert used
    assert used <= targets


def test_links_between_the_docs_lead_somewhere() -> None:
    for path, text in DOCS.items():
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (path.parent / target).exists(), f"{target} in {path.name}"


def test_no_registry_is_named() -> None:
    hosts = re.compile(rb"registry\.npmjs\.org|pypi\.org|files\.pythonhosted\.org|--(extra-)?index-url")
    files = tracked(
        "*.lock", "*.toml", "Makefile", "scripts", ".ci", "*.yml", "*.yaml", "*Dockerfile*", "*.md"
    )
    assert [path.name for path in files if hosts.search(path.read_bytes())] == []


def test_one_module_verifies_signatures() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in tracked("hub/*.py", "api/*.py", "relay/*.py", "projections/*.py", "ledger/*.py")
        if re.search(r"^\s*(from|import) (nacl|cryptography|ecdsa)\b", path.read_text(), re.MULTILINE)
    }
    assert users == {"ledger/keys.py"}
