"""The publisher, started again: it takes up where it was, and a crash at any write changes nothing in the end."""

import itertools
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_ledger import Crash, MemoryLedger, Row, files_in, open_publisher

from ledger import merkle
from ledger.aggregates.tree import balances_digest
from ledger.events import (
    BudgetDeposited,
    Posting,
    StateRecorded,
    Transfer,
)
from ledger.ids import BOOK_ID, TREE_ID
from ledger.tlog import publisher as module
from ledger.tlog import resume
from ledger.tlog.files import write_all
from ledger.tlog.publisher import Publisher, PublishRefused
from ledger.tlog.resume import MEMORY, Memory
from ledger.tlog.tiles import WIDTH

# --- restarts


@pytest.fixture
def short_tail(monkeypatch: pytest.MonkeyPatch) -> int:
    """A restart reads the last 300 events in place of 4,096."""
    monkeypatch.setattr(module, "TAIL", 300)
    return 300


def test_a_check_holds_up_no_publication(tmp_path: Path, short_tail: int) -> None:
    """Others publish between any two pages that it reads."""
    ledger = MemoryLedger()
    ledger.grow(2_000)
    publisher = open_publisher(ledger, tmp_path)
    publisher.publish(at_us=1)
    before = files_in(tmp_path)

    class Growing(MemoryLedger):
        def read_rows(self, start: int, limit: int) -> list[Row]:
            page = super().read_rows(start, limit)
            if start < 1_800:  # the pass over all of it, before the lock
                ledger.grow(60)
                publisher.publish(at_us=1)
            return page

    growing = Growing(ledger.rows)
    checked = open_publisher(growing, tmp_path).check()
    assert checked is not None
    assert checked.size == len(ledger.rows) > 2_200
    assert checked.root == merkle.root([r.state for r in ledger.rows])
    assert {p: d for p, d in before.items() if ".p/" not in p and p != "checkpoint"}.items() <= files_in(
        tmp_path
    ).items()


def publish_often(publisher: Publisher) -> None:
    for _ in range(12):
        publisher.publish(at_us=1)
        publisher.look_back()


def add_money(ledger: MemoryLedger, count: int) -> None:
    version = sum(r.event.originator_id == BOOK_ID for r in ledger.rows)
    for n in range(version, version + count):
        transfer = Transfer("deposit", (Posting("external", -n), Posting(f"budget:{n % 7}", n)))
        ledger.add(
            BudgetDeposited(
                originator_id=BOOK_ID,
                originator_version=n + 1,
                at_us=1,
                stream_id=TREE_ID,
                reference=str(n),
                transfer=transfer,
            )
        )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 5), st.booleans()), min_size=1, max_size=6)
)
def test_restarts_change_nothing_of_what_is_published(
    steps: list[tuple[int, int, bool]], short_tail: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folders = [tmp_path_factory.mktemp("restarts") for _ in range(2)]
    ledgers = [MemoryLedger() for _ in folders]
    publishers = [open_publisher(ledger, folder) for ledger, folder in zip(ledgers, folders, strict=True)]
    for facts, payments, restart in steps:
        for ledger in ledgers:
            add_money(ledger, payments)
            ledger.grow(facts)
        if restart:
            publishers[1] = open_publisher(ledgers[1], folders[1])
        one, other = (publisher.publish(at_us=1) for publisher in publishers)
        assert one == other
        publishers[1].look_back()
    assert files_in(folders[0]) == files_in(folders[1])


def test_a_restart_reads_the_end_of_the_ledger_and_the_rest_page_by_page(
    tmp_path: Path, short_tail: int
) -> None:
    ledger = MemoryLedger()
    ledger.grow(3_000)
    first = open_publisher(ledger, tmp_path).publish(at_us=1)
    publisher, ledger.rows_read = open_publisher(ledger, tmp_path), 0
    assert publisher.publish(at_us=1) == first
    assert ledger.rows_read <= short_tail + WIDTH + 1
    looks, looked = 0, True
    while looked:
        ledger.rows_read = 0
        looked, looks = publisher.look_back(), looks + 1
        assert 0 < ledger.rows_read <= short_tail
        ledger.rows_read = 0
        assert publisher.publish(at_us=1) == first
        assert ledger.rows_read == 0  # what is old costs a publication nothing
    assert looks == 9  # all of it was held against the log once
    assert not publisher.look_back()
    assert ledger.rows_read == 0


def test_an_old_event_that_was_changed_is_found_after_a_restart(tmp_path: Path, short_tail: int) -> None:
    ledger = MemoryLedger()
    ledger.grow(3_000)
    open_publisher(ledger, tmp_path).publish(at_us=1)
    row = ledger.rows[1_000]
    ledger.rows[1_000] = Row(1_000, row.event, row.state[:-1] + b"\x07")
    before, publisher = files_in(tmp_path), open_publisher(ledger, tmp_path)
    with pytest.raises(PublishRefused, match="not the one the log was published from"):
        publish_often(publisher)
    ledger.grow(10)
    for _ in range(3):  # nothing is signed any more, however often it is tried
        with pytest.raises(PublishRefused, match="not the one the log was published from"):
            publisher.publish(at_us=1)
        assert not publisher.look_back()
    with pytest.raises(PublishRefused, match="not the one the log was published from"):
        open_publisher(ledger, tmp_path).check()
    assert files_in(tmp_path) == before
    ledger.rows[1_000] = row  # the newer backup was restored
    assert publisher.publish(at_us=1).root == merkle.root([r.state for r in ledger.rows])


def test_a_look_back_that_fails_begins_anew(tmp_path: Path, short_tail: int) -> None:
    ledger = MemoryLedger()
    ledger.grow(3_000)
    first = open_publisher(ledger, tmp_path).publish(at_us=1)
    publisher, failing = open_publisher(ledger, tmp_path), False
    read = ledger.read_rows

    def read_rows(start: int, limit: int) -> list[Row]:
        if failing:
            raise OSError("the database is away")
        return read(start, limit)

    ledger.read_rows = read_rows  # type: ignore[method-assign]
    publisher.publish(at_us=1)
    assert publisher.look_back()
    failing = True
    with pytest.raises(OSError, match="away"):
        publisher.look_back()
    failing = False
    assert not publisher.look_back()
    assert publisher.publish(at_us=1) == first
    for _ in range(8):
        assert publisher.look_back()
    assert not publisher.look_back()


def test_an_old_file_that_was_lost_is_mended_after_a_restart(tmp_path: Path, short_tail: int) -> None:
    ledger = MemoryLedger()
    ledger.grow(3_000)
    open_publisher(ledger, tmp_path).publish(at_us=1)
    before = files_in(tmp_path)
    for mend in (Publisher.check, publish_often):
        (tmp_path / "tile/entries/003").unlink()
        mend(open_publisher(ledger, tmp_path))
        assert files_in(tmp_path) == before


@pytest.mark.parametrize("change", ["balances", "covered", "leaf", "nonsense"])
def test_remembered_balances_are_believed_only_with_their_state_leaf(
    tmp_path: Path, short_tail: int, change: str
) -> None:
    ledger = MemoryLedger()
    add_money(ledger, 20)
    ledger.grow(1_000)
    open_publisher(ledger, tmp_path).publish(at_us=1)
    memory = Memory.read(tmp_path)
    assert memory is not None
    match change:
        case "balances":
            msgspec.structs.replace(memory, balances={**memory.balances, "fees": 1}).write(tmp_path)
        case "nonsense":
            (tmp_path / MEMORY).write_bytes(b"{")
        case _:
            msgspec.structs.replace(memory, **{change: getattr(memory, change) - 1}).write(tmp_path)
    ledger.grow(1)
    open_publisher(ledger, tmp_path).publish(at_us=1)
    assert Memory.read(tmp_path).balances == memory.balances  # type: ignore[union-attr]
    leaf = ledger.rows[-1].event
    assert isinstance(leaf, StateRecorded)
    assert (leaf.accounts, leaf.balances_sha256) == balances_digest(memory.balances)


# --- crashes


def crashing(at: int, mode: str) -> Callable[[dict[Path, bytes], Path], None]:
    """`write_all` that dies at its `at`-th file: before it, half way through it, or after it."""
    written = itertools.count()

    def write(files: dict[Path, bytes], staging: Path) -> None:
        for path, data in files.items():
            if next(written) != at:
                write_all({path: data}, staging)
                continue
            if mode == "half":
                staging.mkdir(parents=True, exist_ok=True)
                (staging / "0").write_bytes(data[: len(data) // 2])
            if mode == "after":
                write_all({path: data}, staging)
            raise Crash

    return write


def run_with_restarts(ledger: MemoryLedger, folder: Path) -> int:
    """Publish three times over a tile boundary; whatever dies is started again. Returns the number of crashes."""
    crashes = 0
    publisher = open_publisher(ledger, folder)
    for step in (100, 200, 5):
        ledger.grow(step)
        while True:
            try:
                publisher.publish(at_us=1)
                break
            except Crash:
                crashes += 1
                publisher = open_publisher(ledger, folder)
    return crashes


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[bytes]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    ledger = MemoryLedger()
    assert run_with_restarts(ledger, folder) == 0
    return files_in(folder), [r.state for r in ledger.rows]


@pytest.mark.parametrize("mode", ["before", "half", "after"])
def test_a_crash_at_any_write_changes_nothing_in_the_end(
    uninterrupted: tuple[dict[str, bytes], list[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    for at in itertools.count():
        folder, ledger = tmp_path / str(at), MemoryLedger()
        monkeypatch.setattr(module, "write_all", crashing(at, mode))
        if not run_with_restarts(ledger, folder):
            break
        assert files_in(folder) == uninterrupted[0]
        assert [r.state for r in ledger.rows] == uninterrupted[1]
    assert at > 10


@pytest.mark.parametrize("mode", ["before", "half", "after"])
def test_a_write_that_fails_is_made_good_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_tail: int, mode: str
) -> None:
    """A full disk, say: the process lives on. With it, what a restart remembers of the balances is written too."""

    def publish(name: str, failing: int | None) -> tuple[dict[str, bytes], list[bytes], int]:
        ledger, failures = MemoryLedger(), 0
        folder = tmp_path / name
        publisher = open_publisher(ledger, folder)
        write = crashing(-1 if failing is None else failing, mode)
        monkeypatch.setattr(module, "write_all", write)
        monkeypatch.setattr(resume, "write_atomic", lambda path, data: write({path: data}, folder / ".new"))
        for step in (short_tail, 200, 5):
            add_money(ledger, 1)
            ledger.grow(step)
            while True:
                try:
                    publisher.publish(at_us=1)
                    break
                except Crash:
                    failures += 1
        return files_in(folder), [r.state for r in ledger.rows], failures

    undisturbed = publish("undisturbed", None)
    assert (tmp_path / "undisturbed" / MEMORY).exists()
    for at in itertools.count():
        made = publish(str(at), at)
        assert made[:2] == undisturbed[:2]
        if made[2] == 0:
            break
    assert at > 10


@pytest.mark.parametrize("mode", ["before", "after"])
def test_a_state_leaf_that_was_or_was_not_persisted_is_recorded_once(
    uninterrupted: tuple[dict[str, bytes], list[bytes]], tmp_path: Path, mode: str
) -> None:
    ledger = MemoryLedger(fail_save=mode)
    assert run_with_restarts(ledger, tmp_path) == 1
    assert files_in(tmp_path) == uninterrupted[0]
    assert sum(r.event.originator_id == TREE_ID for r in ledger.rows) == 3


def test_what_an_unsigned_publication_left_does_not_outlive_a_restored_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = MemoryLedger()
    ledger.grow(100)
    open_publisher(ledger, tmp_path).publish(at_us=1)
    signed = len(ledger.rows)
    ledger.grow(50)

    def die_at_checkpoint(files: dict[Path, bytes], staging: Path) -> None:
        if tmp_path / "checkpoint" in files:
            raise Crash
        write_all(files, staging)

    monkeypatch.setattr(module, "write_all", die_at_checkpoint)
    with pytest.raises(Crash):
        open_publisher(ledger, tmp_path).publish(at_us=1)
    assert "tile/0/000.p/152" in files_in(tmp_path)
    monkeypatch.undo()
    del ledger.rows[signed:]
    ledger.grow(70)
    open_publisher(ledger, tmp_path).publish(at_us=2)
    assert sorted(p for p in files_in(tmp_path) if p.startswith("tile/0")) == [
        "tile/0/000.p/101",
        "tile/0/000.p/172",
    ]
