"""The publisher: what it writes, what it refuses to sign, and what it mends."""

import fcntl
import shutil
import threading
from pathlib import Path

import psycopg
import pytest
from crew_life import LOG, Life, live_fully, make_key
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_ledger import ORIGIN, VKEY, MemoryLedger, Row, files_in, open_publisher

from ledger import merkle
from ledger.aggregates.tree import balances_digest
from ledger.application import Ledger
from ledger.checkpoint import Checkpoint
from ledger.event_codec import UnknownEventError
from ledger.events import StateRecorded
from ledger.note import VerifierKey
from ledger.services import crew
from ledger.tlog import publisher as module
from ledger.tlog.files import write_all
from ledger.tlog.publisher import FolderInUse, Publisher, PublishRefused

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
