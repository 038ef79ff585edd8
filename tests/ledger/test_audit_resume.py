"""An audit that was interrupted goes on, and the next one reads only what is new; neither state is believed."""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from crew_life import LOG
from forged_log import ORIGIN, VKEY, altered, find, publish_entries
from hypothesis import given, settings
from hypothesis import strategies as st
from test_audit_columns import Crowd
from test_audit_lives import RandomLife

from bench.evening import MemoryLedger
from ledger.audit import Report, StoreBusy, audit
from ledger.audit.helpers import Helpers
from ledger.audit.replay import Replay, _decoder
from ledger.audit.store import Store
from ledger.checkpoint import Checkpoint
from ledger.event_codec import decode
from ledger.events import SegmentsServed, SessionOpened, TicketIssued
from ledger.tlog.tiles import WIDTH


@pytest.fixture(scope="module")
def entries() -> list[bytes]:
    """A few hundred events: more than two bundles."""
    made = Crowd(1)
    while made.life.ledger.size() < 700:
        made.evening()
        made.life.tick(3_600)
        made.life.settle()
    return [r.data for r in made.life.ledger.read(0, 10_000)]


def last_bundle(entries: list[bytes]) -> int:
    """Where an audit of all of them saves its state last."""
    return (len(entries) - 1) // WIDTH * WIDTH


def same(one: Report, other: Report) -> bool:
    """But for where it began, and the signatures, which include the checkpoint's once."""
    return (one.problem, one.root, one.counts, one.balances) == (
        other.problem,
        other.root,
        other.counts,
        other.balances,
    )


def test_an_audit_of_every_size_goes_on_from_the_one_before(entries: list[bytes], tmp_path: Path) -> None:
    state, kept = tmp_path / "state", None
    began = []
    for size in (100, 256, 300, 512, 600, len(entries)):
        folder = tmp_path / str(size)
        publish_entries(folder, entries[:size])
        report = audit(folder, state=state, since=kept)
        assert report.problem is None
        assert same(report, audit(folder))
        began.append(report.resumed_from)
        kept = report.checkpoint
    assert began == [0, 0, 256, 256, 512, 512]


def test_whatever_is_altered_is_found_where_a_whole_audit_finds_it(
    entries: list[bytes], tmp_path: Path
) -> None:
    """Before the point that was saved, and after it; the state stays good for the honest log."""
    state = tmp_path / "state"
    publish_entries(tmp_path / "honest", entries[:600])
    publish_entries(tmp_path / "first", entries[:1])
    kept = (tmp_path / "first" / "checkpoint").read_text()
    assert audit(tmp_path / "honest", state=state).problem is None
    assert audit(tmp_path / "honest", state=state, since=kept).resumed_from == 512
    events = [decode(e) for e in entries]
    for kind, changes in (
        (SessionOpened, {"stream_id": UUID(int=1)}),
        (TicketIssued, {"ticket": bytes(254)}),
        (SegmentsServed, {"network_limit": 99}),
    ):
        for nth in (0, -1):
            at = find(events, kind, nth)
            forged = [*entries[:at], altered(events[at], **changes), *entries[at + 1 :]]
            folder = tmp_path / f"{kind.__name__} {nth}"
            publish_entries(folder, forged)
            copy = Path(shutil.copy(state, tmp_path / "copy"))
            report, whole = audit(folder, state=copy, since=kept), audit(folder, since=kept)
            assert whole.problem is not None
            assert report.problem == whole.problem
            assert report.resumed_from == 0  # nobody is accused on the strength of the state


def test_a_checkpoint_from_before_the_saved_point_is_proven_by_the_tiles(
    entries: list[bytes], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    publish_entries(tmp_path / "log", entries)
    assert audit(tmp_path / "log", state=state).problem is None
    old = tmp_path / "old"
    publish_entries(old, entries[:77])
    report = audit(tmp_path / "log", state=state, since=(old / "checkpoint").read_text())
    assert (report.problem, report.resumed_from) == (None, last_bundle(entries))
    assert report.consistent_with == 77
    other = Checkpoint(ORIGIN, 77, bytes(32)).sign(LOG).decode()
    report = audit(tmp_path / "log", state=state, since=other)
    assert report.problem is not None
    assert "the log was rewritten" in report.problem.reason


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6))
def test_wherever_it_is_saved_the_replay_goes_on_as_if_nothing_had_happened(seed: int) -> None:
    """A life with payouts, disputes and settings, taken down and up again every few events."""
    life = RandomLife(MemoryLedger(), seed)  # type: ignore[arg-type]
    life.run(150)
    entries, dice = [r.data for r in life.ledger.read(0, 10_000)], random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, closing(Helpers(1)) as helpers:
        path, whole = Path(folder) / "state", Store()
        store = Store(path)
        try:
            straight, replay = Replay(whole, helpers), Replay(store, helpers)
            for position, data in enumerate(entries):
                straight.apply(position, data)
                replay.apply(position, data)
                if dice.random() < 0.1:
                    store.save(replay.saved())
                    store.close()
                    store, saved = Store.opened(path)
                    assert saved is not None
                    replay = Replay(store, helpers, saved=saved)
            straight.finish()
            replay.finish()
            assert _decoder.decode(replay.saved()) == _decoder.decode(straight.saved())
        finally:
            store.close()
            whole.close()


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_damaged_state_is_never_taken_up(dice: random.Random) -> None:
    """Whatever bytes change: the rows are those that were saved, or the store says that they are not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        rows = {dice.randbytes(dice.randrange(1, 20)): dice.randbytes(dice.randrange(40)) for _ in range(200)}
        with closing(Store(path)) as store:
            store.write([(b"x" + k, v) for k, v in rows.items()])
            store.save(b"note")
        data = bytearray(path.read_bytes())
        for _ in range(dice.randrange(1, 4)):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        opened, note = Store.opened(path)
        with closing(opened):
            found = dict(opened.scan(b"x"))
        assert (note, found) in ((b"note", {b"x" + k: v for k, v in rows.items()}), (None, {}))


def test_a_state_with_a_schema_that_is_no_text_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with closing(Store(path)) as store:
        store.save(b"note")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CREATE TABLE", b"CREATE\xcbTABLE"))
    store, note = Store.opened(path)
    with closing(store):
        assert note is None


@pytest.mark.parametrize("field", range(0, 100, 2))
def test_a_state_with_another_header_is_never_taken_up_for_a_busy_one(tmp_path: Path, field: int) -> None:
    """https://www.sqlite.org/fileformat.html, 1.3"""
    path = tmp_path / "state"
    store, _ = Store.opened(path)
    store.save(b"note")
    store.close()
    data = bytearray(path.read_bytes())
    data[field : field + 2] = b"\x77\x77"
    path.write_bytes(data)
    store, note = Store.opened(path)
    assert note in (None, b"note")
    store.close()


def test_a_state_that_others_may_write_to_is_put_aside(entries: list[bytes], tmp_path: Path) -> None:
    """Whoever writes it can make the sums right, and the balances whatever they like."""
    state = tmp_path / "state"
    publish_entries(tmp_path / "log", entries)
    kept = audit(tmp_path / "log", state=state).checkpoint
    for mode, resumed_from in ((0o666, 0), (0o644, last_bundle(entries)), (0o620, 0)):
        state.chmod(mode)
        assert audit(tmp_path / "log", state=state, since=kept).resumed_from == resumed_from


def test_a_state_of_another_log_or_another_program_is_put_aside(
    entries: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    publish_entries(tmp_path / "log", entries)
    kept = audit(tmp_path / "log", state=state).checkpoint
    assert audit(tmp_path / "log", state=state, since=kept).resumed_from == last_bundle(entries)
    publish_entries(tmp_path / "short", entries[:300])
    first = audit(tmp_path / "short").checkpoint
    copy = Path(shutil.copy(state, tmp_path / "copy"))
    assert audit(tmp_path / "short", state=copy, since=first).resumed_from == 0
    monkeypatch.setattr("ledger.audit.resume.program", lambda: "other")
    assert audit(tmp_path / "log", state=state, since=kept).resumed_from == 0


def test_without_a_kept_checkpoint_a_whole_audit_is_a_whole_audit(
    entries: list[bytes], tmp_path: Path
) -> None:
    """Once it came to its end, every file is read again, and a byte that changed since is found."""
    state, log = tmp_path / "state", tmp_path / "log"
    publish_entries(log, entries)
    kept = audit(log, state=state).checkpoint
    bundle = log / "tile" / "entries" / "000"
    data = bytearray(bundle.read_bytes())
    data[1_000] ^= 1
    bundle.write_bytes(data)
    assert audit(log, state=state, since=kept).problem is None  # reads only what is new, as it says
    report = audit(log, state=state)
    assert report.resumed_from == 0
    assert report.problem is not None
    assert report.problem.file == "tile/entries/000"


def test_two_audits_do_not_share_a_state(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "state")), pytest.raises(StoreBusy):
        Store.opened(tmp_path / "state")


def test_an_interrupted_save_leaves_the_one_before(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "state")) as store:
        store.write([(b"a", b"1")])
        store.save(b"first")
        store.write([(b"a", b"2"), (b"b", b"2")])
    opened, note = Store.opened(tmp_path / "state")
    with closing(opened):
        assert (note, opened.get(b"a"), opened.get(b"b")) == (b"first", b"1", None)


def test_an_audit_that_is_killed_goes_on_where_it_had_saved(entries: list[bytes], tmp_path: Path) -> None:
    """kill -9 once something is saved; the same command then ends with the figures of a whole audit."""
    publish_entries(tmp_path / "log", entries)
    state = tmp_path / "state"
    script = (
        "import sys, time; from pathlib import Path; from ledger.audit import audit;"
        f"audit({str(tmp_path / 'log')!r}, state=Path({str(state)!r}), save_every_s=0,"
        "progress=lambda done, size: done >= 512 and (print('saved', flush=True), time.sleep(60)))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        process.send_signal(signal.SIGKILL)
    report = audit(tmp_path / "log", vkey=str(VKEY), state=state)
    assert report.resumed_from == 512
    assert same(report, audit(tmp_path / "log"))
