"""Witnesses: what they cosign, what they refuse, and that a hub cannot go back behind them."""

import base64
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from crew_life import LOG, Life, live_fully, make_id, make_key
from hypothesis import given, settings
from hypothesis import strategies as st
from subtrees import subtrees_of

from hub.commands.witness import WitnessApp
from ledger import merkle
from ledger.application import Ledger, Recorded
from ledger.audit import audit
from ledger.checkpoint import Checkpoint
from ledger.event_codec import encode, tag_of
from ledger.events import NodeWentOnline
from ledger.keys import KeyPair
from ledger.note import Note, NoteError, VerifierKey
from ledger.services import crew
from ledger.store.recorder import Row
from ledger.tlog import witness as module
from ledger.tlog.cosignature import WitnessKey, cosign
from ledger.tlog.cosigners import Cosigners, WitnessAddress
from ledger.tlog.files import write_atomic
from ledger.tlog.publisher import Publisher, PublishRefused
from ledger.tlog.witness import SIZE_TYPE, Witness, WitnessError, encode_request

ORIGIN = "hub.example/log"
VKEY = VerifierKey(ORIGIN, LOG.public_key)
KEY = make_key("witness")
NAME = "witness.example/w1"
NOW_S = 1_700_000_000
LEAVES = [merkle.leaf_hash(b"%d" % n) for n in range(40)]
FORK = [*LEAVES[:7], merkle.leaf_hash(b"another"), *LEAVES[8:]]


def checkpoint(size: int, leaves: list[bytes] = LEAVES) -> bytes:
    return Checkpoint(ORIGIN, size, merkle.root_of_hashes(leaves[:size])).sign(LOG)


def request(old: int, new: int, leaves: list[bytes] = LEAVES) -> bytes:
    proof = merkle.consistency_proof(subtrees_of(leaves), old, new) if old <= new else []
    return encode_request(old, proof, checkpoint(new, leaves))


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    (tmp_path / "witness").mkdir()
    return Witness(tmp_path / "witness", NAME, KEY, [VKEY])


def size_of(witness: Witness) -> int:
    last = witness.latest(ORIGIN)
    return last.size if last is not None else 0


# --- cosignatures


def test_the_cosignature_of_the_specification_s_example_has_its_key_hash_and_time() -> None:
    line = "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA=="
    blob = base64.b64decode(line)
    assert len(blob) == 4 + 8 + 64
    assert int.from_bytes(blob[4:12]) == 1679315147  # the time in the specification's signed message


def test_a_cosignature_holds_for_its_text_its_key_and_its_time_only() -> None:
    key, note = WitnessKey(NAME, KEY.public_key), checkpoint(5)
    text = Note.parse(note).text
    cosigned = note + cosign(text, NAME, KEY, at_s=NOW_S).encode()
    assert key.cosigned_s(Note.parse(cosigned)) == NOW_S
    assert Checkpoint.open(cosigned, VKEY).size == 5
    assert WitnessKey.parse(str(key)) == key
    assert key.cosigned_s(Note.parse(note)) is None
    assert WitnessKey("other", KEY.public_key).cosigned_s(Note.parse(cosigned)) is None
    assert WitnessKey(ORIGIN, LOG.public_key).cosigned_s(Note.parse(cosigned)) is None  # not the log's own
    moved = checkpoint(6) + cosign(text, NAME, KEY, at_s=NOW_S).encode()
    with pytest.raises(NoteError, match="does not match"):
        key.cosigned_s(Note.parse(moved))
    blob = bytearray(base64.b64decode(cosigned.decode().split()[-1]))
    blob[11] ^= 1
    later = note + f"— {NAME} {base64.b64encode(blob).decode()}\n".encode()
    with pytest.raises(NoteError, match="does not match"):
        key.cosigned_s(Note.parse(later))
    with pytest.raises(NoteError):
        WitnessKey.parse(str(VKEY))


# --- the witness


@settings(max_examples=60, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans(), st.booleans()), max_size=12
    )
)
def test_whatever_is_asked_what_was_cosigned_is_one_history(
    asked: list[tuple[int, int, bool, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("witness")
    cosigned: list[tuple[int, bytes]] = []
    for old, new, fork, restart in asked:
        witness = Witness(folder, NAME, KEY, [VKEY])
        leaves = FORK if fork else LEAVES
        answer = witness.add_checkpoint(request(old, new, leaves), now_s=NOW_S)
        if restart:
            witness = Witness(folder, NAME, KEY, [VKEY])
        if answer.status == 200:
            cosigned.append((new, merkle.root_of_hashes(leaves[:new])))
            assert size_of(witness) == new
        elif answer.status == 409:
            assert answer.content_type == SIZE_TYPE
            assert answer.body == f"{size_of(witness)}\n"
    sizes = [size for size, _ in cosigned]
    assert sizes == sorted(sizes)
    one, other = (
        [(size, merkle.root_of_hashes(leaves[:size])) for size, _ in cosigned] for leaves in (LEAVES, FORK)
    )
    assert cosigned in (one, other)


def test_each_refusal_has_its_status(witness: Witness) -> None:
    def status(body: bytes) -> int:
        return witness.add_checkpoint(body, now_s=NOW_S).status

    assert status(request(0, 10)) == 200
    assert status(request(10, 10)) == 200  # asked again: cosigned again
    assert status(request(10, 20)) == 200
    assert status(request(10, 30)) == 409  # a stale size
    assert status(request(20, 20, FORK)) == 409  # the same size, another root
    assert status(request(20, 30, FORK)) == 422
    assert status(encode_request(20, [], checkpoint(30))) == 422
    assert status(request(21, 20)) == 400
    assert status(b"nonsense") == 400
    assert status(b"old 20\n\nnonsense") == 400
    assert status(b"old 020\n\n" + checkpoint(30)) == 400
    assert status(encode_request(20, [bytes(32)] * 64, checkpoint(30))) == 400
    stranger = Checkpoint(ORIGIN, 30, merkle.root_of_hashes(LEAVES[:30])).sign(make_key("stranger"))
    assert status(encode_request(20, [], stranger)) == 403
    unknown = Checkpoint("other.example/log", 30, bytes(32)).sign(LOG)
    assert status(encode_request(0, [], unknown)) == 404
    assert size_of(witness) == 20


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_witness_that_dies_while_it_writes_has_signed_nothing_it_forgot(
    witness: Witness, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    assert witness.add_checkpoint(request(0, 7), now_s=NOW_S).status == 200

    def dying(path: Path, data: bytes) -> None:
        if when == "after":
            write_atomic(path, data)
        raise OSError("the disk is gone")

    monkeypatch.setattr(module, "write_atomic", dying)
    with pytest.raises(OSError, match="gone"):
        witness.add_checkpoint(request(7, 20), now_s=NOW_S)
    monkeypatch.undo()
    assert size_of(witness) == (20 if when == "after" else 7)
    fork = witness.add_checkpoint(request(size_of(witness), 30, FORK), now_s=NOW_S)
    assert fork.status == (422 if when == "after" else 200)  # nobody saw 20 unless it is on disk


def test_a_witness_whose_memory_is_damaged_signs_nothing(witness: Witness, tmp_path: Path) -> None:
    assert witness.add_checkpoint(request(0, 10), now_s=NOW_S).status == 200
    (memory,) = (tmp_path / "witness").glob("*.checkpoint")
    memory.write_bytes(b"")
    with pytest.raises(WitnessError, match="cannot be read"):
        witness.add_checkpoint(request(0, 10), now_s=NOW_S)


def test_two_witnesses_cannot_share_a_folder(witness: Witness, tmp_path: Path) -> None:
    second = Witness(tmp_path / "witness", NAME, KEY, [VKEY])
    with witness.alone(), pytest.raises(WitnessError, match="another witness"), second.alone():
        pass


# --- the hub and its witness, over HTTP


DRIBBLE_MAX = 200  # bytes, 10 s of them


class QuietServer(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
def address(witness: Witness) -> Iterator[WitnessAddress]:
    """The witness, served on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(WitnessApp(witness), ws="none", lifespan="off", log_config=None)
        server = QuietServer(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield WitnessAddress(witness.vkey, f"http://127.0.0.1:{listener.getsockname()[1]}")
        server.should_exit = True
        thread.join()


@pytest.fixture
def cosigners(address: WitnessAddress) -> Cosigners:
    return Cosigners([address])


def publisher(ledger: Any, folder: Path, cosigners: Cosigners | None, key: KeyPair = LOG) -> Publisher:
    return Publisher(ledger, folder, key, ORIGIN, cosigners=cosigners)


def test_published_checkpoints_carry_cosignatures_that_the_audit_verifies(
    ledger: Ledger, tmp_path: Path, witness: Witness, cosigners: Cosigners
) -> None:
    folder = tmp_path / "log"
    publish = publisher(ledger, folder, cosigners)
    live_fully(ledger, tmp_path, lambda at_us: publish.publish(at_us=at_us))
    note = (folder / "checkpoint").read_bytes()
    assert witness.vkey.cosigned_s(Note.parse(note)) is not None
    assert size_of(witness) == Checkpoint.open(note, VKEY).size
    report = audit(folder, witnesses=[str(witness.vkey)])
    assert report.ok
    assert list(report.cosigned_s) == [NAME]
    publish.publish(at_us=1)  # nothing new: the same bytes
    assert (folder / "checkpoint").read_bytes() == note
    stranger = WitnessKey("stranger.example", make_key("stranger").public_key)
    missing = audit(folder, witnesses=[str(stranger)]).problem
    assert missing is not None
    assert "has not cosigned" in missing.reason


def test_a_hub_restored_from_an_old_backup_is_caught_by_its_witness(
    ledger: Ledger, tmp_path: Path, cosigners: Cosigners
) -> None:
    life, folder, backup = Life(ledger), tmp_path / "log", tmp_path / "backup"
    life.found()
    publisher(ledger, folder, cosigners).publish(at_us=life.tick())
    shutil.copytree(folder, backup)
    kept = ledger.read(0, 1_000)
    life.join("later")
    publisher(ledger, folder, cosigners).publish(at_us=life.tick())

    restored: Any = Restored(kept)
    before = (backup / "checkpoint").read_bytes()
    for growth in (1, 50):  # shorter than what the witness saw, then grown past it in another way
        restored.grow(growth)
        with pytest.raises(PublishRefused, match=r"witness\.example/w1 has seen another log"):
            publisher(restored, backup, cosigners).publish(at_us=life.tick())
        assert (backup / "checkpoint").read_bytes() == before


class Restored:
    """An older database, which goes on differently."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = list(rows)

    def read_rows(self, start: int, limit: int) -> list[Row]:
        return [Row(r.position, tag_of(r.event), r.data) for r in self.rows[start : start + limit]]

    def size(self) -> int:
        return len(self.rows)

    def last_event(self, aggregate_id: Any) -> Any:
        return next((r.event for r in reversed(self.rows) if r.event.originator_id == aggregate_id), None)

    def save(self, *aggregates: Any) -> list[int]:
        first = len(self.rows)
        for aggregate in aggregates:
            for event in aggregate.collect_events():
                self.add(event)
        return list(range(first, len(self.rows)))

    def add(self, event: Any) -> None:
        self.rows.append(Recorded(len(self.rows), event, encode(event)))

    def grow(self, count: int) -> None:
        for n in range(count):
            self.add(NodeWentOnline(originator_id=make_id(f"x {n}"), originator_version=1, at_us=1))


def test_a_witness_that_is_away_or_talks_nonsense_holds_up_nothing(ledger: Ledger, tmp_path: Path) -> None:
    life = Life(ledger)
    life.found()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and says nothing
        port = silent.getsockname()[1]
        key = WitnessKey(NAME, KEY.public_key)
        away = [WitnessAddress(key, f"http://127.0.0.1:{port}"), WitnessAddress(key, "http://127.0.0.1:1")]
        publisher(ledger, tmp_path, Cosigners(away)).publish(at_us=life.tick())
    assert Checkpoint.open((tmp_path / "checkpoint").read_bytes(), VKEY).size == ledger.size()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n"


@pytest.mark.parametrize("at_once", [b"HTTP/1.1 200 OK\r\nX-Name: ", HEAD], ids=["head", "body"])
def test_a_witness_that_answers_byte_by_byte_is_given_up(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bytes
) -> None:
    """Each byte comes within the limit of one wait; the answer as a whole never would."""
    monkeypatch.setattr("ledger.tlog.cosigners.TIMEOUT_S", 0.5)
    life, sent = Life(ledger), 0
    life.found()

    def dribble(listener: socket.socket) -> None:
        nonlocal sent
        connection, _ = listener.accept()
        with connection, suppress(ConnectionError):
            connection.recv(65_536)
            connection.sendall(at_once)
            while sent < DRIBBLE_MAX:
                connection.sendall(b"x")
                sent += 1
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=dribble, args=(listener,))
        thread.start()
        key = WitnessKey(NAME, KEY.public_key)
        address = WitnessAddress(key, f"http://127.0.0.1:{listener.getsockname()[1]}")
        publisher(ledger, tmp_path, Cosigners([address])).publish(at_us=life.tick())
        thread.join()
    assert 0 < sent < DRIBBLE_MAX
    assert Checkpoint.open((tmp_path / "checkpoint").read_bytes(), VKEY).size == ledger.size()


def test_old_checkpoints_stay_verifiable_when_the_log_s_key_changes(
    ledger: Ledger, tmp_path: Path, cosigners: Cosigners
) -> None:
    life, folder, successor = Life(ledger), tmp_path / "log", make_key("next log key")
    life.found()
    publisher(ledger, folder, cosigners).publish(at_us=life.tick())
    old = (folder / "checkpoint").read_text()
    crew.add_key(ledger, "log", successor.public_key, at_us=life.tick())
    publisher(ledger, folder, None, successor).publish(at_us=life.tick())
    assert audit(folder, since=old).consistent_with == Checkpoint.open(old.encode(), VKEY).size
    assert Checkpoint.open(old.encode(), VKEY).size > 0
    # The witness takes the new key when its keeper has been told of it, and the history goes on.
    with pytest.raises(NoteError):
        Checkpoint.open((folder / "checkpoint").read_bytes(), VKEY)
    both = Witness(tmp_path / "witness", NAME, KEY, [VKEY, VerifierKey(ORIGIN, successor.public_key)])
    seen = size_of(both)
    leaves = [merkle.leaf_hash(r.data) for r in ledger.read(0, 1_000)]
    new = Checkpoint(ORIGIN, len(leaves), merkle.root_of_hashes(leaves)).sign(successor)
    proof = merkle.consistency_proof(subtrees_of(leaves), seen, len(leaves))
    assert both.add_checkpoint(encode_request(seen, proof, new), now_s=NOW_S).status == 200


def test_a_witness_that_knows_the_old_key_alone_cosigns_what_both_signed(
    ledger: Ledger, tmp_path: Path, cosigners: Cosigners
) -> None:
    life, folder, successor = Life(ledger), tmp_path / "log", make_key("next log key")
    life.found()
    publisher(ledger, folder, cosigners).publish(at_us=life.tick())
    crew.add_key(ledger, "log", successor.public_key, at_us=life.tick())
    following = publisher(ledger, folder, cosigners, successor)
    following.former_key = LOG
    following.publish(at_us=life.tick())
    note = (folder / "checkpoint").read_bytes()
    new = VerifierKey(ORIGIN, successor.public_key)
    assert Checkpoint.open(note, VKEY) == Checkpoint.open(note, new)
    assert WitnessKey(NAME, KEY.public_key).cosigned_s(Note.parse(note)) is not None
    assert audit(folder, vkey=str(new), witnesses=[str(WitnessKey(NAME, KEY.public_key))]).problem is None
    following.former_key = None
    crew.retire_key(ledger, "log", LOG.key_id, at_us=life.tick())
    following.publish(at_us=life.tick())
    note = (folder / "checkpoint").read_bytes()
    assert Checkpoint.open(note, new).size == ledger.size()  # published all the same
    assert WitnessKey(NAME, KEY.public_key).cosigned_s(Note.parse(note)) is None
