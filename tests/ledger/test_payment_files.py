"""One database, one folder of payment files: who holds another folder, or an older copy of it, pays nobody."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from test_pain001 import IBANS
from test_payout_command import Shell, earned, shell

from ledger.application import Ledger
from ledger.services import payment_files
from ledger.store.database import connect

__all__ = ["earned", "shell"]  # fixtures


@pytest.fixture
def machines(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The data directories of two machines on one database; the commands are typed on the first until `move`."""
    return [tmp_path, tmp_path / "other"]


def move(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("STREAMRP2P_DATA_DIR", str(folder))


def with_the_bank(shell: Shell) -> None:
    shell("destination", "Anna", f"{IBANS[2]};Anna")
    shell("plan", "--rail", "pain.001")
    shell("approve", "1")
    shell("run", "1", "--from-account", f"{IBANS[0]};Crew", code=10)


def files_for_the_bank(folder: Path) -> int:
    return len(list(folder.rglob("payouts/*.xml")))


def test_another_machine_does_not_give_the_bank_a_second_file(
    earned: Ledger, shell: Shell, machines: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_the_bank(shell)
    move(monkeypatch, machines[1])
    size = earned.size()
    for command in (
        ("reconcile", "1", "--dry-run"), ("reconcile", "1"), ("run", "1", "--dry-run"), ("run", "1"),
        ("return", "1", "1", "--reference", "r", "--reason", "x"), ("plan", "--rail", "csv"),
    ):  # fmt: skip
        assert "not those that this database was last paid with" in shell(*command, code=5)
    assert earned.size() == size
    assert files_for_the_bank(machines[0]) == 1


def test_an_older_copy_of_the_files_is_refused_and_a_newer_one_is_not(
    earned: Ledger, shell: Shell, machines: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database was moved to another machine, with the files as they were before the run, and then with all."""
    shell("destination", "Anna", f"{IBANS[2]};Anna")
    shell("plan", "--rail", "pain.001")
    shell("approve", "1")
    shell("reconcile", "1", code=10)  # any use makes it the database's folder
    shutil.copytree(machines[0] / "payouts", machines[1] / "payouts")
    shell("run", "1", "--from-account", f"{IBANS[0]};Crew", code=10)
    move(monkeypatch, machines[1])
    for command in ("run", "reconcile"):
        assert "or older" in shell(command, "1", code=5)
    shutil.rmtree(machines[1] / "payouts")
    shutil.copytree(machines[0] / "payouts", machines[1] / "payouts")
    shell("reconcile", "1", "--paid", "1")
    move(monkeypatch, machines[0])  # which is the older one now
    assert "or older" in shell("run", "1", code=5)


def test_files_that_are_lost_are_lost_only_when_somebody_says_so(
    earned: Ledger, shell: Shell, machines: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_the_bank(shell)
    shutil.rmtree(machines[0] / "payouts")
    assert "docs/operators.md, Backup" in shell("run", "1", code=5)
    shell("run", "1", "--accept-files", "--dry-run")
    assert "or older" in shell("reconcile", "1", code=5)
    shell("run", "1", "--accept-files", code=10)
    shell("reconcile", "1", code=10)
    shell("run", "1", "--from-account", f"{IBANS[0]};Crew", code=10)
    shell("reconcile", "1", "--paid", "1")  # the account showed it; the new file goes to no bank


class Elsewhere:
    """A run that is stopped between what it reads and what it writes, for another to come between."""

    def __init__(self, connection: psycopg.Connection[Any], meanwhile: Callable[[], None]) -> None:
        self.connection, self.meanwhile = connection, [meanwhile]

    def execute(self, query: Any, *arguments: Any) -> Any:
        if not query.startswith("SELECT") and self.meanwhile:
            self.meanwhile.pop()()
        return self.connection.execute(query, *arguments)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("same", [False, True])
def test_of_two_folders_used_at_once_one_is_refused(
    ledger: Ledger, database_url: str, tmp_path: Path, same: bool, begun: bool
) -> None:
    folders = [tmp_path / "a", tmp_path / ("a" if same else "b")]
    with connect(database_url, autocommit=True) as one, connect(database_url, autocommit=True) as two:
        if begun:
            payment_files.use(one, folders[0], use_id=UUID(int=1))
            if not same:
                shutil.copytree(*folders)
        slow: Any = Elsewhere(one, lambda: payment_files.use(two, folders[1], use_id=UUID(int=2)))
        if same:
            payment_files.use(slow, folders[0], use_id=UUID(int=3))
            payment_files.check(two, folders[1])
        else:
            with pytest.raises(payment_files.OtherFilesError):
                payment_files.use(slow, folders[0], use_id=UUID(int=3))
            with pytest.raises(payment_files.OtherFilesError):
                payment_files.check(one, folders[0])
            payment_files.check(one, folders[1])


def test_a_database_from_before_the_newest_files_is_theirs(
    ledger: Ledger, database_url: str, tmp_path: Path
) -> None:
    with connect(database_url, autocommit=True) as connection:
        payment_files.check(connection, tmp_path)  # nothing was paid yet
        for n in (1, 2, 3):
            payment_files.use(connection, tmp_path, use_id=UUID(int=n))
        for restored in (f"UPDATE payment_files SET last_use = '{UUID(int=1)}'", "DELETE FROM payment_files"):
            connection.execute(restored)
            payment_files.check(connection, tmp_path)
        payment_files.use(connection, tmp_path, use_id=UUID(int=4))
        with pytest.raises(payment_files.OtherFilesError):
            payment_files.check(connection, tmp_path / "new")
        payment_files.use(connection, tmp_path / "new", use_id=UUID(int=5), accept=True)
        payment_files.check(connection, tmp_path / "new")
        with pytest.raises(payment_files.OtherFilesError):
            payment_files.use(connection, tmp_path, use_id=UUID(int=6))
