import csv
import multiprocessing
import os
import stat
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.rails import Outcome, Payment, destination_fault
from ledger.rails.csv_file import CsvRail


def payment(n: int, destination: str = "DE02", amount_micro: int = 1_500_000) -> Payment:
    return Payment(
        key=f"batch:{n}",
        friend_id=UUID(int=n),
        amount_micro=amount_micro,
        unit="EUR",
        destination=destination,
    )


def keys(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as f:
        return [row["key"] for row in csv.DictReader(f)]


def test_a_key_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "p.csv"
    assert CsvRail(path).look_up("batch:1").outcome is Outcome.ABSENT
    for _ in range(3):
        assert CsvRail(path).submit(payment(1)).outcome is Outcome.CONFIRMED
    assert CsvRail(path).look_up("batch:1").outcome is Outcome.CONFIRMED
    assert CsvRail(path).look_up("batch:11").outcome is Outcome.ABSENT
    assert keys(path) == ["batch:1"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_a_writer_that_died_left_is_on_disk_before_it_is_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rail, synced = CsvRail(tmp_path / "p.csv"), list[int]()

    def dies(_descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dies)
        with pytest.raises(KeyboardInterrupt):
            rail.submit(payment(1))
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    assert rail.look_up("batch:1").outcome is Outcome.CONFIRMED
    assert synced == [(tmp_path / "p.csv").stat().st_ino, tmp_path.stat().st_ino]


def test_a_line_torn_at_any_byte_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    rail = CsvRail(path)
    rail.submit(payment(1))
    one = path.read_bytes()
    rail.submit(payment(2, 'a "quoted", ü'))
    both = path.read_bytes()
    for cut in range(len(both)):
        path.write_bytes(both[:cut])
        assert rail.look_up("batch:2").outcome is Outcome.ABSENT
        if cut >= len(one):
            assert rail.look_up("batch:1").outcome is Outcome.CONFIRMED
        rail.submit(payment(1))
        rail.submit(payment(2, 'a "quoted", ü'))
        assert path.read_bytes() == both


@settings(max_examples=50)
@given(st.integers(1, 10**15), st.text(max_size=40))
def test_what_is_written_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, amount: int, text: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "p.csv"
    answer = CsvRail(path).submit(payment(1, text, amount))
    if destination_fault(text):
        assert answer.outcome is Outcome.FAILED
        assert not path.exists()
        return
    with path.open(newline="", encoding="utf-8") as f:
        (row,) = csv.DictReader(f)
    whole, micro = row["amount"].split(".")
    assert (row["destination"], int(row["amount_micro"])) == (text, amount)
    assert int(whole) * 10**6 + int(micro) == amount


@pytest.mark.parametrize("text", ["", "=1+1", "@x", "-2", "+1+1", "a\nb", "a\tb", "x" * 257, "\ud800"])
def test_text_that_would_run_or_tear_the_file_is_refused(text: str) -> None:
    assert destination_fault(text)


def test_a_phone_number_is_a_destination() -> None:
    assert destination_fault("+49 170 1234567") == ""


def submit_all(path: Path) -> None:
    for n in range(1, 21):
        CsvRail(path).submit(payment(n))


def test_processes_at_once_write_each_key_once(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=submit_all, args=(path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    submit_all(path)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert sorted(keys(path)) == sorted(f"batch:{n}" for n in range(1, 21))
