"""The audit: an honest log passes, and whatever is altered is found and named."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import msgspec
import psycopg
import pytest
from crew_life import LOG, T0, live_fully, make_id, make_key
from forged_log import ORIGIN, VKEY, altered, find, publish_entries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.aggregates.book import Book
from ledger.application import Ledger
from ledger.audit import NothingThere, Report, audit
from ledger.checkpoint import Checkpoint
from ledger.event_codec import decode, encode
from ledger.events import (
    BroadcastStarted,
    BudgetDeposited,
    EpochSettled,
    Event,
    HoldsReleased,
    InviteCreated,
    KeyAdded,
    NodeJoined,
    NodeSuspended,
    PayoutApproved,
    PayoutAttempted,
    PayoutLineConfirmed,
    PayoutLineReserved,
    PayoutPlanned,
    PayoutResolved,
    Posting,
    ReceiptsRefused,
    SegmentsPublished,
    SegmentsServed,
    SessionOpened,
    SettingsChanged,
    StateRecorded,
    TariffSet,
    TicketIssued,
    Transfer,
)
from ledger.ids import BOOK_ID
from ledger.judged import pack
from ledger.note import NoteError, VerifierKey
from ledger.tlog.publisher import Publisher


@dataclass(frozen=True)
class Published:
    folder: Path
    checkpoints: list[bytes]  # signed notes, oldest first
    entries: list[bytes]
    balances: dict[str, int]

    @property
    def events(self) -> list[Event]:
        return [decode(e) for e in self.entries]


@pytest.fixture(scope="module")
def honest(
    postgres_url: str, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Published]:
    """A whole life on a real database, published in five steps, with more than one full tile of events."""
    tmp_path = tmp_path_factory.mktemp("honest")
    url = urlunsplit(urlsplit(postgres_url)._replace(path="/test_audit"))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE test_audit TEMPLATE {migrated_template}")
        ledger = Ledger(url)
        try:
            yield _live_and_publish(ledger, tmp_path)
        finally:
            ledger.close()
            connection.execute("DROP DATABASE test_audit WITH (FORCE)")


def _live_and_publish(ledger: Ledger, tmp_path: Path) -> Published:
    folder = tmp_path / "log"
    publisher = Publisher(ledger, folder, LOG, ORIGIN)
    notes: list[bytes] = []

    def publish(at_us: int) -> None:
        publisher.publish(at_us=at_us)
        notes.append((folder / "checkpoint").read_bytes())

    life = live_fully(ledger, tmp_path, publish)
    for i in range(110):
        life.join(f"friend {i}")  # three events each
    publish(life.tick())
    entries = [r.data for r in ledger.read(0, 10_000)]
    return Published(folder, notes, entries, dict(ledger.load(Book, BOOK_ID).accounts))


def reason(report: Report) -> str:
    return report.problem.reason if report.problem else ""


# --- an honest log


def test_an_honest_log_passes_and_has_the_books_balances(honest: Published) -> None:
    report = audit(honest.folder, vkey=str(VKEY), jobs=2)
    assert report.problem is None
    assert report.ok
    assert report.balances == {a: m for a, m in sorted(honest.balances.items()) if m}
    counts = report.counts
    assert (report.size, counts.events) == (len(honest.entries), len(honest.entries))
    assert (counts.tickets, counts.batches, counts.receipts, counts.accepted) == (4, 4, 13, 5)
    assert (counts.epochs, counts.payout_lines, counts.state_leaves) == (3, 2, 6)
    assert counts.signatures == 1 + 4 + 4 + 10  # checkpoint, tickets, batches, receipts that name their node
    assert report.paid_micro == sum(m for a, m in honest.balances.items() if a.endswith(":paid")) > 0
    assert report.pinned


def test_progress_ends_at_the_size_of_the_log(honest: Published) -> None:
    seen: list[tuple[int, int]] = []
    audit(honest.folder, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(honest.entries), len(honest.entries))
    assert seen == sorted(seen)


def test_every_earlier_checkpoint_is_consistent_and_can_still_be_audited(
    honest: Published, tmp_path: Path
) -> None:
    for note in honest.checkpoints:
        report = audit(honest.folder, since=note.decode())
        assert report.problem is None
        assert report.consistent_with == Checkpoint.open(note, VKEY).size
        older = shutil.copytree(honest.folder, tmp_path / str(report.consistent_with))
        (older / "checkpoint").write_bytes(note)
        assert audit(older).problem is None


def test_a_log_is_audited_over_http(honest: Published) -> None:
    handler = functools.partial(_Quiet, directory=str(honest.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            assert audit(url, vkey=str(VKEY)).problem is None
            assert audit(f"{url}checkpoint").problem is None
            with pytest.raises(NothingThere):
                audit(f"{url}nowhere")
        finally:
            server.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_audit_needs_no_database_and_nothing_of_the_hub() -> None:
    script = (
        "import sys; import ledger.audit, hub.commands.audit, hub.commands.proof, hub.commands.log;"
        "bad = {'eventsourcing', 'psycopg', 'sqlalchemy', 'alembic', 'fastapi', 'av', 'redis', 'jinja2'};"
        "sys.exit(str(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_empty_log_passes(tmp_path: Path) -> None:
    publish_entries(tmp_path, [])
    report = audit(tmp_path)
    assert (report.problem, report.size) == (None, 0)


# --- damaged files


def file_names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_found_and_named(
    honest: Published, scratch: Path, data: st.DataObject
) -> None:
    path = scratch / data.draw(st.sampled_from(file_names(scratch)))
    original = path.read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    value = data.draw(st.integers(1, 255)) ^ original[at]
    path.write_bytes(original[:at] + bytes([value]) + original[at + 1 :])
    try:
        problem = audit(scratch).problem
    finally:
        path.write_bytes(original)
    assert problem is not None
    assert problem.file is not None or problem.position is not None


@pytest.fixture(scope="module")
def scratch(honest: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to damage and restore."""
    return shutil.copytree(honest.folder, tmp_path_factory.mktemp("scratch") / "log")


def test_every_file_that_is_lost_cut_short_or_too_long_is_named(honest: Published, scratch: Path) -> None:
    for name in file_names(scratch):
        path = scratch / name
        original = path.read_bytes()
        older = ".p/" in name and not name.endswith(f"/{len(honest.entries) % 256}") and "tile/1" not in name
        for damaged in (None, original[:-1], original + b"\x00"):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            if name == "checkpoint" and damaged is None:
                with pytest.raises(NothingThere):
                    audit(scratch)
            elif not (older and damaged is None):  # an older partial tile may be deleted
                problem = audit(scratch).problem
                assert problem is not None, name
                assert problem.file == name
            path.write_bytes(original)
    assert audit(scratch).problem is None


def test_a_checkpoint_of_another_key_is_refused_however_well_it_is_signed(
    honest: Published, tmp_path: Path
) -> None:
    stranger = make_key("stranger")
    folder = shutil.copytree(honest.folder, tmp_path / "log")
    checkpoint = Checkpoint.open(honest.checkpoints[-1], VKEY)
    (folder / "checkpoint").write_bytes(checkpoint.sign(stranger))
    assert "not signed by a known key" in reason(audit(folder))
    (folder / "vkey").write_text(f"{VerifierKey(ORIGIN, stranger.public_key)}\n")
    assert "another key than the one you trust" in reason(audit(folder, vkey=str(VKEY)))
    assert "is not in the log" in reason(audit(folder))
    (folder / "vkey").unlink()
    assert "no verifier key" in reason(audit(folder))


# --- rewritten logs


def test_a_forked_log_fails_against_the_checkpoint_that_was_kept(honest: Published, tmp_path: Path) -> None:
    kept = honest.checkpoints[2].decode()
    size = Checkpoint.open(kept.encode(), VKEY).size
    position = find(honest.events, InviteCreated)
    assert position < size
    forked = list(honest.entries)
    forked[position] = altered(honest.events[position], at_us=T0)
    publish_entries(tmp_path, forked)
    assert audit(tmp_path).problem is None  # in perfect order, but for who remembers
    assert "the log was rewritten" in reason(audit(tmp_path, since=kept))


def test_a_log_shorter_than_the_kept_checkpoint_fails(honest: Published, tmp_path: Path) -> None:
    publish_entries(tmp_path, honest.entries[:40])
    assert "the log is shorter" in reason(audit(tmp_path, since=honest.checkpoints[-1].decode()))


def test_a_kept_checkpoint_that_is_not_this_logs_is_told_apart(honest: Published) -> None:
    mine = Checkpoint.open(honest.checkpoints[0], VKEY)
    with pytest.raises(NoteError, match="of another log"):
        audit(honest.folder, since=replace(mine, origin="other").sign(LOG).decode())
    with pytest.raises(NoteError):
        audit(honest.folder, since="nonsense")
    by_stranger = mine.sign(make_key("stranger")).decode()
    assert "was not signed by this log" in reason(audit(honest.folder, since=by_stranger))


# --- forgeries: the hub alters what it recorded and signs the result

Forge = Callable[[list[Event]], tuple[int, bytes]]


def _ticket_for_another(events: list[Event]) -> tuple[int, bytes]:
    at = find(events, TicketIssued)
    return at, altered(events[at], ticket=events[at].ticket[:-1] + b"\x00")


def _served(nth: int, **changes: Callable[[SegmentsServed], object]) -> Forge:
    """Of the columns, `indices`, `session_ids`, `viewer_networks` and `judged` are given by receipt."""

    def forge(events: list[Event]) -> tuple[int, bytes]:
        at = find(events, SegmentsServed, nth)
        event = events[at]
        assert isinstance(event, SegmentsServed)
        changed = {name: change(event) for name, change in changes.items()}
        by_receipt = ("indices", "session_ids", "viewer_networks", "judged")
        columns: list[Any] = [changed.pop(name, getattr(event, name)) for name in by_receipt]
        return at, altered(event, **changed, **pack(*columns))

    return forge


def _signed_otherwise(events: list[Event]) -> tuple[int, bytes]:
    """A batch that stands in two events."""
    first = events[find(events, SegmentsServed)]
    at = find(events, ReceiptsRefused)
    assert isinstance(first, SegmentsServed)
    event = events[at]
    assert isinstance(event, ReceiptsRefused)
    assert event.batch_header == first.batch_header
    header = event.batch_header
    return at, altered(event, batch_header=header[:-1] + bytes([header[-1] ^ 1]))


def _judged(index: int, **changes: object) -> Forge:
    def change(event: SegmentsServed) -> object:
        judged = list(event.judged)
        judged[index] = _replace(judged[index], **changes)
        return tuple(judged)

    return _served(0, judged=change)


def _replace(struct: object, **changes: object) -> object:
    return msgspec.structs.replace(struct, **changes)  # type: ignore[type-var]


def _change(kind: type[Event], nth: int = 0, /, **changes: object) -> Forge:
    def forge(events: list[Event]) -> tuple[int, bytes]:
        at = find(events, kind, nth)
        return at, altered(events[at], **changes)

    return forge


def _settlement(change: Callable[[EpochSettled], dict[str, object]]) -> Forge:
    def forge(events: list[Event]) -> tuple[int, bytes]:
        at = find(events, EpochSettled)
        event = events[at]
        assert isinstance(event, EpochSettled)
        return at, altered(event, **change(event))

    return forge


def _more_for_one_node(event: EpochSettled) -> dict[str, object]:
    """A line and its transfer agree; only the rules say otherwise."""
    line = event.lines[0]
    more = line.amount_micro + 1
    transfers = list(event.transfers)
    for i, t in enumerate(transfers):
        if t.postings[1].account == f"friend:{line.friend_id}:pending":
            source, target = t.postings
            transfers[i] = Transfer(
                t.reason,
                (
                    Posting(source.account, source.amount_micro - 1),
                    Posting(target.account, target.amount_micro + 1),
                ),
            )
    return {"lines": (_replace(line, amount_micro=more), *event.lines[1:]), "transfers": tuple(transfers)}


def _unbalanced(event: EpochSettled) -> dict[str, object]:
    first = event.transfers[0]
    posting = first.postings[1]
    bigger = Transfer(first.reason, (first.postings[0], Posting(posting.account, posting.amount_micro + 1)))
    return {"transfers": (bigger, *event.transfers[1:])}


def _payout_amount(events: list[Event]) -> tuple[int, bytes]:
    at = find(events, PayoutPlanned)
    event = events[at]
    assert isinstance(event, PayoutPlanned)
    line = _replace(event.lines[0], amount_micro=event.lines[0].amount_micro - 1)
    return at, altered(event, lines=(line, *event.lines[1:]))


FORGERIES: dict[str, tuple[Forge, str, type[Event] | None]] = {
    # name: (what is altered, part of the reason, kind of event at which it is found when that is a later one)
    "a receipt credited more bytes": (_judged(0, credited_bytes=10**9), "the verdict is", None),
    "a receipt credited more segments": (_judged(0, units=4), "the verdict is", None),
    "a duplicate accepted": (_judged(1, verdict="accepted", units=1), "the verdict is", None),
    "an honest receipt called late": (
        _judged(0, verdict="late", units=0, credited_bytes=0),
        "the verdict is",
        None,
    ),
    "an honest receipt called badly signed": (
        _judged(0, verdict="bad_signature", units=0, credited_bytes=0),
        "",  # either the credit that follows or the signature itself shows it
        None,
    ),
    "a batch under another node": (_served(0, node_id=lambda _: make_id("x")), "never joined", None),
    "a batch judged long after": (_served(0, at_us=lambda e: e.at_us * 2), "the verdict is", None),
    "a receipt left out": (
        _served(
            0,
            indices=lambda e: e.indices[:-1],
            receipts=lambda e: e.receipts[:-205],
            judged=lambda e: e.judged[:-1],
            session_ids=lambda e: e.session_ids[:-1],
            viewer_networks=lambda e: e.viewer_networks[:-1],
        ),
        "receipts of this batch have no verdict",
        None,
    ),
    "a receipt altered": (
        _served(0, receipts=lambda e: e.receipts[:40] + bytes([e.receipts[40] ^ 1]) + e.receipts[41:]),
        "",
        None,
    ),
    "a viewer's signature altered": (
        _served(1, receipts=lambda e: e.receipts[:-1] + bytes([e.receipts[-1] ^ 1])),
        "the signature of a receipt",
        None,
    ),
    "a node's signature altered": (
        _served(0, batch_header=lambda e: e.batch_header[:-1] + bytes([e.batch_header[-1] ^ 1])),
        "",
        None,
    ),
    "a node's signature altered where its batch goes on": (
        _signed_otherwise,
        "the signature of the batch",
        ReceiptsRefused,
    ),
    "a batch of a version that there is not": (
        _served(0, batch_header=lambda e: b"\3" + e.batch_header[1:]),
        "a batch of version 3",
        None,
    ),
    "a batch called one of another version": (
        _served(0, batch_header=lambda e: bytes([e.batch_header[0] ^ 3]) + e.batch_header[1:]),
        "",  # its signature, or what it says of its receipts
        None,
    ),
    "a wider network limit": (_served(0, network_limit=lambda _: 9), "the network limit", None),
    "another network": (_served(1, viewer_networks=lambda _: (b"elsewhere",)), "networks are not", None),
    "another session": (_served(1, session_ids=lambda _: (make_id("x"),)), "sessions are not", None),
    "a ticket signed by nobody": (_ticket_for_another, "the signature of the ticket", None),
    "a ticket for another broadcast": (
        _change(TicketIssued, broadcast_id=make_id("x")),
        "never started",
        None,
    ),
    "a refused receipt called malformed": (
        _change(ReceiptsRefused, indices=(1, 7)),
        "",
        None,
    ),
    "a segment made larger": (
        lambda events: _larger_segment(events),
        "the verdict is",
        SegmentsServed,
    ),
    "a node that joins another friend": (
        _change(NodeJoined, friend_id=make_id("me")),
        "another friend",
        None,
    ),
    "a viewer's key exchanged": (
        _change(SessionOpened, viewer_key=bytes(32)),
        "for another viewer",
        TicketIssued,
    ),
    "a line and its transfer raised": (_settlement(_more_for_one_node), "by the rules", None),
    "a transfer that does not balance": (_settlement(_unbalanced), "the transfers are not", None),
    "an epoch settled before its end": (_change(EpochSettled, at_us=T0), "is not over", None),
    "an epoch settled twice": (_change(EpochSettled, 1, epoch=0), "is settled already", None),
    "a log range that skips credits": (_change(EpochSettled, log_from=20), "must be read from", None),
    "a settlement of nothing": (_change(EpochSettled, lines=(), transfers=()), "lines", None),
    "a tariff raised afterwards": (
        _change(TariffSet, rate_micro_per_gb=10**12 - 1),
        "by the rules",
        EpochSettled,
    ),
    "a deposit that was never made": (
        lambda events: _bigger_deposit(events),
        "the balances after the first",
        StateRecorded,
    ),
    "a hold released early": (_change(HoldsReleased, at_us=T0), "is not over", None),
    "a payout of another amount": (_payout_amount, "were planned", PayoutLineReserved),
    "a payout that was never approved": (
        _change(PayoutApproved, originator_id=make_id("x"), originator_version=1),
        "does not begin with",
        None,
    ),
    "an attempt with another key": (_change(PayoutAttempted, key="other"), "another key", None),
    "a failed payout booked as paid": (
        _change(PayoutResolved, outcome="failed"),
        "money moves for a payout line that is failed",
        PayoutLineConfirmed,
    ),
    "a payment counted twice": (_change(PayoutLineConfirmed, 1, line=1), "its money stays in_flight", None),
    "a state leaf of other books": (
        _change(StateRecorded, 4, balances_sha256=bytes(32)),
        "the balances after the first",
        None,
    ),
    "a state leaf of another point": (_change(StateRecorded, 3, position=5), "another part of the log", None),
    "a caps setting changed afterwards": (
        _change(SettingsChanged, settings={"prefix_sessions_max": 9}),
        "the network limit",
        SegmentsServed,
    ),
    "a foreign ticket key": (_change(KeyAdded, public_key=bytes(32)), "id is not its own", None),
    "a broadcast that began elsewhere": (_change(BroadcastStarted, first_sequence=7), "does not go on", None),
}


def _larger_segment(events: list[Event]) -> tuple[int, bytes]:
    at = find(events, SegmentsPublished)
    event = events[at]
    assert isinstance(event, SegmentsPublished)
    first = _replace(event.segments[0], segment_bytes=event.segments[0].segment_bytes + 1)
    return at, altered(event, segments=(first, *event.segments[1:]))


def _bigger_deposit(events: list[Event]) -> tuple[int, bytes]:
    at = find(events, BudgetDeposited)
    event = events[at]
    assert isinstance(event, BudgetDeposited)
    source, target = event.transfer.postings
    bigger = (Posting(source.account, -(10**9)), Posting(target.account, 10**9))
    return at, altered(event, transfer=Transfer(event.transfer.reason, bigger))


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_signed_by_the_hub_is_found_at_its_position(
    honest: Published, tmp_path: Path, name: str
) -> None:
    forge, why, found_at = FORGERIES[name]
    events = honest.events
    position, data = forge(list(events))
    entries = list(honest.entries)
    assert entries[position] != data
    entries[position] = data
    publish_entries(tmp_path, entries)
    problem = audit(tmp_path, jobs=2).problem
    assert problem is not None
    assert problem.position is not None
    if found_at is None:
        assert problem.position >= position
    else:
        assert isinstance(events[problem.position], found_at)
    if why:
        assert why in problem.reason


def test_an_event_that_is_dropped_repeated_moved_or_added_is_found(honest: Published, tmp_path: Path) -> None:
    at = find(honest.events, TicketIssued)
    money = find(honest.events, BudgetDeposited)
    e = honest.entries
    changed = {
        "dropped": (e[:money] + e[money + 1 :], ""),
        "repeated": (e[: at + 1] + e[at:], "does not follow"),
        "unknown": (
            [*e[:at], e[at].replace(b"ticket.issued.v1", b"ticket.issued.v9"), *e[at:]],
            "unknown event",
        ),
        "garbage": ([*e[:at], b"garbage", *e[at:]], "cannot be replayed"),
        "other bytes": (
            [*e[:at], b"\xde\x00" + bytes([e[at][0] & 15]) + e[at][1:], *e[at + 1 :]],
            "encoding",
        ),
        "second book": (
            [*e, altered(honest.events[money], originator_id=make_id("book"), originator_version=1)],
            "not in the aggregate of its kind",
        ),
    }
    for name, (entries, why) in changed.items():
        publish_entries(tmp_path / name, entries)
        problem = audit(tmp_path / name).problem
        assert problem is not None, name
        assert why in problem.reason
        assert problem.position is not None


def test_a_state_leaf_may_lag_behind_other_writers(honest: Published, tmp_path: Path) -> None:
    """Events of others may come between the balances a state leaf speaks of and the leaf itself."""
    at = find(honest.events, StateRecorded, 0)
    deposit = next(e for e in honest.events if isinstance(e, BudgetDeposited))
    late = altered(deposit, originator_version=deposit.originator_version + 1, reference="late")
    entries = [*honest.entries[:at], late, honest.entries[at]]
    publish_entries(tmp_path, entries)
    assert audit(tmp_path).problem is None


def test_a_suspension_a_moment_before_a_verdict_does_not_fail_the_audit(
    honest: Published, tmp_path: Path
) -> None:
    """The hub reads a node just before it appends; the log orders only each aggregate by itself."""
    events = honest.events
    at = find(events, SegmentsServed, 2)
    node_id = events[at].node_id
    suspended = {
        "originator_id": node_id,
        "originator_version": find_version(events[:at], node_id) + 1,
        "reason": "race",
    }
    for before_s, passes in ((1, True), (-1, True), (3600, False), (-3600, False)):
        late = NodeSuspended(at_us=events[at].at_us - before_s * 1_000_000, **suspended)
        publish_entries(
            tmp_path / str(before_s), [*honest.entries[:at], encode(late), *honest.entries[at : at + 1]]
        )
        problem = audit(tmp_path / str(before_s)).problem
        assert (problem is None) is passes


def find_version(events: list[Event], originator_id: UUID) -> int:
    return max(e.originator_version for e in events if e.originator_id == originator_id)
