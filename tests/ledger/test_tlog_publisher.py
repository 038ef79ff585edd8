"""The publisher: what it writes, what it refuses to sign, and what a crash leaves behind."""

import fcntl
import itertools
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from crew_life import LOG, Life, live_fully, make_id, make_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import merkle
from ledger.aggregates.base import Aggregate
from ledger.aggregates.tree import balances_digest
from ledger.application import Ledger
from ledger.checkpoint import Checkpoint
from ledger.events import (
    BudgetDeposited,
    Event,
    NodeWentOnline,
    Posting,
    StateRecorded,
    Transfer,
    UnknownEventError,
    encode,
    tag_of,
)
from ledger.ids import BOOK_ID, TREE_ID
from ledger.keys import KeyPair
from ledger.note import VerifierKey
from ledger.services import crew
from ledger.tlog import publisher as module
from ledger.tlog import resume
from ledger.tlog.files import write_all
from ledger.tlog.publisher import FolderInUse, Publisher, PublishRefused
from ledger.tlog.resume import MEMORY, Memory
from ledger.tlog.tiles import WIDTH

ORIGIN = "hub.example/log"
VKEY = VerifierKey(ORIGIN, LOG.public_key)


@dataclass(frozen=True)
class Row:
    position: int
    event: Event
    state: bytes

    @property
    def topic(self) -> str:
        return tag_of(self.event)


@dataclass
class MemoryLedger:
    """The ledger's contract with the publisher, in a list: deterministic, and it counts what is read."""

    rows: list[Row] = field(default_factory=list)
    rows_read: int = 0
    fail_save: str = ""  # "before" or "after" it is persisted

    def read_rows(self, start: int, limit: int) -> list[Row]:
        page = self.rows[start : start + limit]
        self.rows_read += len(page)
        return page

    def size(self) -> int:
        return len(self.rows)

    def last_event(self, aggregate_id: UUID) -> Event | None:
        return next((r.event for r in reversed(self.rows) if r.event.originator_id == aggregate_id), None)

    def save(self, *aggregates: Aggregate) -> list[int]:
        fail, self.fail_save = self.fail_save, ""
        if fail == "before":
            raise Crash
        first = len(self.rows)
        for aggregate in aggregates:
            self.add(*aggregate.collect_events())
        if fail == "after":
            raise Crash
        return list(range(first, len(self.rows)))

    def add(self, *events: Event) -> None:
        for event in events:
            self.rows.append(Row(len(self.rows), event, encode(event)))

    def grow(self, count: int) -> None:
        """Facts of no consequence."""
        for i in range(len(self.rows), len(self.rows) + count):
            self.add(NodeWentOnline(originator_id=make_id(f"node {i}"), originator_version=1, at_us=1))


class Crash(BaseException):
    """The process died here."""


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


def open_publisher(ledger: Any, folder: Path, key: KeyPair = LOG) -> Publisher:
    return Publisher(ledger, folder, key, ORIGIN)


# --- what is written


def test_the_checkpoint_commits_to_every_event_of_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    publisher = open_publisher(ledger, folder)
    live_fully(ledger, tmp_path, lambda at_us: publisher.publish(at_us=at_us))
    events = ledger.read(0, 10_000)
    checkpoint = Checkpoint.open((folder / "checkpoint").read_bytes(), VKEY)
    assert checkpoint.size == len(events)
    assert checkpoint.root == merkle.root([e.data for e in events])
    assert (folder / "vkey").read_text() == f"{VKEY}\n"
    assert isinstance(events[-1].event, StateRecorded)


@settings(max_examples=12, deadline=None)
@given(growth=st.lists(st.integers(0, 300), min_size=1, max_size=5))
def test_publishing_in_steps_gives_the_full_tiles_of_publishing_at_once(
    growth: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("steps")
    ledger = MemoryLedger()
    publisher = open_publisher(ledger, tmp_path / "steps")
    for step in growth:
        ledger.grow(step)
        publisher.publish(at_us=1)
    final = publisher.publish(at_us=1)
    assert open_publisher(ledger, tmp_path / "once").publish(at_us=1) == final
    once, steps = files_in(tmp_path / "once"), files_in(tmp_path / "steps")
    assert once.items() <= steps.items()
    assert all(".p/" in path for path in steps.keys() - once.keys())
    assert final.root == merkle.root([r.state for r in ledger.rows])


def test_nothing_new_means_no_state_leaf_and_the_same_checkpoint(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    publisher = open_publisher(ledger, tmp_path / "log")
    assert publisher.publish(at_us=1).size == 0
    ledger.grow(3)
    first = publisher.publish(at_us=2)
    assert first.size == 4
    assert publisher.publish(at_us=3) == first
    assert open_publisher(ledger, tmp_path / "log").publish(at_us=4) == first
    assert ledger.size() == 4


def test_full_tiles_take_the_place_of_partial_ones(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    publisher = open_publisher(ledger, tmp_path)
    ledger.grow(99)
    publisher.publish(at_us=1)
    assert "tile/0/000.p/100" in files_in(tmp_path)
    ledger.grow(200)
    publisher.publish(at_us=1)
    assert not any("000.p" in path for path in files_in(tmp_path) if not path.startswith("tile/1/"))


def test_publishing_costs_what_is_new_and_not_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = MemoryLedger()
    publisher = open_publisher(ledger, tmp_path)
    ledger.grow(3_000)
    publisher.publish(at_us=1)
    writes: list[Path] = []
    monkeypatch.setattr(
        module, "write_all", lambda files, staging: (writes.extend(files), write_all(files, staging))
    )
    for _ in range(3):
        ledger.rows_read = 0
        writes.clear()
        ledger.grow(2)
        publisher.publish(at_us=1)
        assert ledger.rows_read == 3  # with the state leaf
        assert len(writes) <= 4  # bundle, tile, tile above, checkpoint


def test_state_leaves_record_the_balances_before_them(ledger: Ledger, tmp_path: Path) -> None:
    publisher = open_publisher(ledger, tmp_path / "log")
    life = Life(ledger)
    life.found()
    publisher.publish(at_us=life.tick())
    leaf = ledger.read(0, 1_000)[-1]
    assert isinstance(leaf.event, StateRecorded)
    balances = {"external": -500_000_000, f"budget:{life.stream_id}": 500_000_000, "fees": 0}
    assert (leaf.event.accounts, leaf.event.balances_sha256) == balances_digest(balances)
    assert leaf.event.position == leaf.position


# --- what is refused


def test_a_changed_event_in_the_database_is_not_published(
    ledger: Ledger, database_url: str, tmp_path: Path
) -> None:
    life = Life(ledger)
    life.found()
    open_publisher(ledger, tmp_path).publish(at_us=life.tick())
    before = files_in(tmp_path)
    original = ledger.read(0, 1)[0].data
    changed = original.replace(b"\xa4crew", b"\xa4Crew")
    assert changed != original
    with psycopg.connect(database_url) as connection:  # as a superuser, who can do anything
        connection.execute("ALTER TABLE crew_main.events DISABLE TRIGGER ALL")
        connection.execute("UPDATE crew_main.events SET state = %s WHERE position = 0", (changed,))
    with pytest.raises(PublishRefused, match="not the one the log was published from"):
        open_publisher(ledger, tmp_path).publish(at_us=life.tick())
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("topic", ["node.flew.v9", "node.went_offline.v1"])
def test_bytes_of_another_type_than_their_row_names_are_not_published(tmp_path: Path, topic: str) -> None:
    ledger = MemoryLedger()
    ledger.grow(3)

    class Odd(Row):
        @property
        def topic(self) -> str:
            return topic

    ledger.rows[1] = Odd(1, ledger.rows[1].event, ledger.rows[1].state)
    with pytest.raises(UnknownEventError):
        open_publisher(ledger, tmp_path).publish(at_us=1)
    assert not (tmp_path / "checkpoint").exists()


def test_a_database_older_than_the_log_is_not_published(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    ledger.grow(10)
    publisher = open_publisher(ledger, tmp_path)
    publisher.publish(at_us=1)
    before = files_in(tmp_path)
    del ledger.rows[5:]
    with pytest.raises(PublishRefused, match="the database is older than the published log"):
        open_publisher(ledger, tmp_path).publish(at_us=1)
    ledger.grow(50)
    with pytest.raises(PublishRefused, match="not the one the log was published from"):
        open_publisher(ledger, tmp_path).publish(at_us=1)
    assert files_in(tmp_path) == before


def test_a_folder_of_another_log_or_with_a_broken_checkpoint_is_refused(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    ledger.grow(10)
    open_publisher(ledger, tmp_path).publish(at_us=1)
    with pytest.raises(PublishRefused, match="holds the log"):
        Publisher(ledger, tmp_path, LOG, "other.example/log").publish(at_us=1)
    with pytest.raises(PublishRefused, match="not signed by this log"):
        open_publisher(ledger, tmp_path, make_key("stranger")).publish(at_us=1)
    (tmp_path / "checkpoint").write_bytes(b"nonsense")
    with pytest.raises(PublishRefused, match="damaged"):
        open_publisher(ledger, tmp_path).publish(at_us=1)


def test_two_publishers_take_turns_and_never_fork(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    publishers = [open_publisher(ledger, tmp_path) for _ in range(2)]
    for publisher in publishers * 3:
        ledger.grow(70)
        checkpoint = publisher.publish(at_us=1)
        assert checkpoint.root == merkle.root([r.state for r in ledger.rows])


def test_a_folder_in_use_by_another_process_is_waited_for_and_then_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_PATIENCE_S", 0.2)
    ledger = MemoryLedger()
    publisher = open_publisher(ledger, tmp_path)
    publisher.publish(at_us=1)
    with open(tmp_path / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FolderInUse, match="another process"):
            publisher.publish(at_us=1)
        with pytest.raises(FolderInUse, match="another process"):
            publisher.check()
        monkeypatch.setattr(module, "LOCK_PATIENCE_S", 30)
        threading.Timer(0.1, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        publisher.publish(at_us=1)


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


def test_a_new_log_key_that_stands_in_the_log_goes_on_publishing(ledger: Ledger, tmp_path: Path) -> None:
    life = Life(ledger)
    life.found()
    open_publisher(ledger, tmp_path).publish(at_us=life.tick())
    successor = make_key("next log key")
    crew.add_key(ledger, "log", successor.public_key, at_us=life.tick())
    open_publisher(ledger, tmp_path, successor).publish(at_us=life.tick())
    note = (tmp_path / "checkpoint").read_bytes()
    assert Checkpoint.open(note, VerifierKey(ORIGIN, successor.public_key)).size == ledger.size()


# --- what is mended


def test_a_lost_folder_is_rebuilt_from_the_ledger(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    ledger.grow(600)
    open_publisher(ledger, tmp_path / "log").publish(at_us=1)
    before = files_in(tmp_path / "log")
    shutil.rmtree(tmp_path / "log")
    open_publisher(ledger, tmp_path / "log").publish(at_us=1)
    assert files_in(tmp_path / "log") == before


@pytest.mark.parametrize("damage", ["delete", "garble"])
def test_damaged_files_are_mended_from_the_ledger(tmp_path: Path, damage: str) -> None:
    ledger = MemoryLedger()
    ledger.grow(600)
    open_publisher(ledger, tmp_path).publish(at_us=1)
    before = files_in(tmp_path)
    for path in before.keys() - {"checkpoint"}:
        if damage == "delete":
            (tmp_path / path).unlink()
        else:
            (tmp_path / path).write_bytes(b"\xff" + before[path][1:])
        open_publisher(ledger, tmp_path).publish(at_us=1)
        assert files_in(tmp_path) == before


# --- restarts


@pytest.fixture
def short_tail(monkeypatch: pytest.MonkeyPatch) -> int:
    """A restart reads the last 300 events in place of 4,096."""
    monkeypatch.setattr(module, "TAIL", 300)
    return 300


def publish_often(publisher: Publisher) -> None:
    for _ in range(12):
        publisher.publish(at_us=1)


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
    for _ in range(12):
        ledger.rows_read = 0
        assert publisher.publish(at_us=1) == first
        assert ledger.rows_read <= short_tail
    assert ledger.rows_read == 0  # all of it was held against the log once


def test_an_old_event_that_was_changed_is_found_after_a_restart(tmp_path: Path, short_tail: int) -> None:
    ledger = MemoryLedger()
    ledger.grow(3_000)
    open_publisher(ledger, tmp_path).publish(at_us=1)
    row = ledger.rows[1_000]
    ledger.rows[1_000] = Row(1_000, row.event, row.state[:-1] + b"\x07")
    before, publisher = files_in(tmp_path), open_publisher(ledger, tmp_path)
    with pytest.raises(PublishRefused, match="not the one the log was published from"):
        publish_often(publisher)
    with pytest.raises(PublishRefused, match="not the one the log was published from"):
        open_publisher(ledger, tmp_path).check()
    assert files_in(tmp_path) == before


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
