"""Payment files while processes are killed (SIGKILL) and run side by side: banks see whole files, each payment once."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from test_pain001 import DEBTOR, DESTINATIONS, IBANS, make, payment, payments_in, planned
from test_payout import AT, FRIENDS, balances, earn

from ledger.application import Ledger
from ledger.rails.csv_file import CsvRail
from ledger.rails.given import given
from ledger.rails.pain001 import Pain001Rail
from ledger.rails.pain001_file import end_to_end_id
from ledger.rails.returned import Return, Returns
from ledger.services import crew, payouts

CALLS = ("open", "fsync", "link", "unlink", "write")


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """`work` in a process that is killed at its number-th call that changes a file. False when it lives to the end."""
    child = os.fork()
    if child == 0:
        left = [number]

        def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                for before in (True, False):
                    left[0] -= 1
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    if before:
                        done = call(*arguments, **options)
                return done

            return wrapped

        try:
            for name in CALLS:
                setattr(os, name, deadly(getattr(os, name)))
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def everywhere(work: Callable[[], object], check: Callable[[], None]) -> int:
    number = 1
    while killed_at(number, work):
        check()
        number += 1
    check()
    return number


def test_a_file_for_the_bank_is_whole_or_not_there(tmp_path: Path) -> None:
    folders = iter(range(1_000))
    folder = tmp_path

    def work() -> None:
        rail = make(folder)
        for n in (1, 2):
            rail.submit(payment(n))
        rail.seal()

    def check() -> None:
        nonlocal folder
        for path in folder.glob("*.xml"):
            assert len(payments_in(path)) == 2
        work()  # whoever comes next goes on
        (path,) = folder.glob("*.xml")
        assert payments_in(path).keys() == {end_to_end_id(payment(n).key) for n in (1, 2)}
        assert {p.name for p in folder.iterdir()} == {
            path.name,
            f"{UUID(int=7)}.pain001",
        }  # nothing half is left
        folder = tmp_path / str(next(folders))

    assert everywhere(work, check) > 20


def test_a_list_and_what_came_back_are_whole_lines(tmp_path: Path) -> None:
    folder, folders = tmp_path, iter(range(1_000))
    back = Return(UUID(int=7), 1, 5, "bank 7", "account closed")

    def work() -> None:
        for n in (1, 2):
            CsvRail(folder / f"{UUID(int=7)}.csv").submit(payment(n))
        Returns(folder).remember(back)

    def check() -> None:
        nonlocal folder
        given(folder)
        assert Returns(folder).all() in ([], [back])
        work()
        assert given(folder) == {UUID(int=7): {"csv": {1, 2}}}
        assert Returns(folder).all() == [back]
        folder = tmp_path / str(next(folders))

    assert everywhere(work, check) > 20


def test_runs_of_one_bank_payout_at_once_put_each_line_into_one_file(
    ledger: Ledger, database_url: str, tmp_path: Path
) -> None:
    """Two operators, who also write the file as soon as they are through."""
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=AT)
    earn(ledger)
    payout = planned(ledger)

    def operator(mine: Ledger) -> None:
        rail = Pain001Rail(tmp_path, str(payout.id), debtor=DEBTOR, created_us=AT)
        payouts.run(mine, rail, payout.id, destinations=DESTINATIONS, at_us=AT, given=given(tmp_path))
        rail.seal()
        payouts.reconcile(mine, rail, payout.id, at_us=AT)

    ledgers = [Ledger(database_url) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(operator, ledgers))
    finally:
        for one in ledgers:
            one.close()
    found = [name for path in tmp_path.glob("*.xml") for name in payments_in(path)]
    assert sorted(found) == sorted(end_to_end_id(payout.key(n)) for n in payout.lines)
    assert all(balances(ledger, "in_flight"))
    assert len(FRIENDS) == len(IBANS) == len(found)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("Ünal & Söhne <x>\x00", "Unal + Sohne .x.."),
        ("//ПРИВЕТ", "......"),
        ("\u202eevil]]>", ".evil..."),
        ("a" * 200, "a" * 70),
        ("  ", "NOTPROVIDED"),
        ("😀", "."),
        ("O'Neill--<!--", "O'Neill--..--"),
    ],
)
def test_a_name_that_no_schema_allows_is_spelled_so_that_it_does(
    tmp_path: Path, name: str, written: str
) -> None:
    rail = make(tmp_path)
    rail.submit(payment(1, destination=f"{IBANS[1]};{name}"))
    path = rail.seal()
    assert path is not None
    assert payments_in(path)  # against the schema
    assert f"<Nm>{written}</Nm>" in path.read_text().replace("\n", "")
