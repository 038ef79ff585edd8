"""Proof files: made from tiles, verified offline; and the commands an auditor types."""

import hashlib
import json
from pathlib import Path

import msgspec
import pytest
from crew_life import LOG, make_id, make_key
from forged_log import ORIGIN, VKEY, publish_entries
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hub.cli import app
from ledger.checkpoint import Checkpoint
from ledger.event_codec import encode
from ledger.events import CrewFounded, InviteCreated, KeyAdded, StreamArchived
from ledger.ids import CREW_ID, invite_id
from ledger.keys import key_id
from ledger.note import NoteError, VerifierKey
from ledger.tlog.proof import ProofError, TlogProof, make_proof
from ledger.tlog.reader import LogReader, NotPublished
from ledger.tlog.source import FolderSource, open_source

KEY_ADDED = KeyAdded(
    originator_id=CREW_ID,
    originator_version=2,
    at_us=1,
    purpose="log",
    key_id=key_id(LOG.public_key),
    public_key=LOG.public_key,
)
FOUNDED = CrewFounded(
    originator_id=CREW_ID,
    originator_version=1,
    at_us=1,
    name="crew",
    unit="EUR",
    genesis_us=0,
    epoch_length_s=3_600,
)


def invited(n: int) -> bytes:
    code = hashlib.sha256(b"%d" % n).digest()
    event = InviteCreated(
        originator_id=invite_id(code),
        originator_version=1,
        at_us=n,
        friend_id=make_id("friend"),
        code_sha256=code,
        expires_us=n + 1,
    )
    return encode(event)


ENTRIES = [encode(FOUNDED), encode(KEY_ADDED), *map(invited, range(2, 600))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    publish_entries(folder, ENTRIES)
    return folder


@settings(deadline=None)
@given(index=st.integers(0, len(ENTRIES) - 1))
def test_every_entry_can_be_proven_from_the_tiles(folder: Path, index: int) -> None:
    proof = make_proof(FolderSource(folder), index)
    again = TlogProof.parse(proof.encode())
    assert again == proof
    assert again.verify(VKEY).size == len(ENTRIES)
    assert again.entry == ENTRIES[index]


@settings(deadline=None)
@given(data=st.data())
def test_a_proof_changed_anywhere_does_not_hold(folder: Path, data: st.DataObject) -> None:
    proof = make_proof(
        FolderSource(folder), data.draw(st.sampled_from([0, 255, 256, 511, 512, 599]))
    ).encode()
    at = data.draw(st.integers(0, len(proof) - 1))
    value = data.draw(st.integers(1, 255)) ^ proof[at]
    with pytest.raises((ProofError, NoteError)):
        TlogProof.parse(proof[:at] + bytes([value]) + proof[at + 1 :]).verify(VKEY)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_proof(data: bytes) -> None:
    with pytest.raises(ProofError):
        TlogProof.parse(data)


@pytest.mark.parametrize(
    "lines",
    [
        "c2sp.org/tlog-proof@v1\nindex 0\n\n",
        "c2sp.org/tlog-proof@v1\nextra AA==\nindex 00\n\n",
        "c2sp.org/tlog-proof@v1\nextra AA==\n\n",
        "c2sp.org/tlog-proof@v1\nextra AA==\nindex 0\nAA==\n\n",
        "c2sp.org/tlog-proof@v1\nextra A\nindex 0\n\n",
        "c2sp.org/tlog-proof@v2\nextra AA==\nindex 0\n\n",
        "c2sp.org/tlog-proof@v1\nextra AA==\nindex 0\n" + f"{'A' * 43}=\n" * 64 + "\n",
        "x" * 300_000,
    ],
)
def test_malformed_proofs_are_refused(lines: str) -> None:
    with pytest.raises(ProofError):
        TlogProof.parse(lines.encode())


def test_a_proof_under_another_key_or_origin_is_refused(folder: Path) -> None:
    proof = make_proof(FolderSource(folder), 3)
    with pytest.raises(NoteError):
        proof.verify(VerifierKey(ORIGIN, make_key("stranger").public_key))
    with pytest.raises(NoteError):
        proof.verify(VerifierKey("elsewhere.example", LOG.public_key))


def test_what_is_not_published_cannot_be_proven_or_read(folder: Path, tmp_path: Path) -> None:
    with open_source(folder) as source:
        with pytest.raises(NotPublished, match="positions 0 to 599"):
            make_proof(source, 600)
        assert [p for p, _ in LogReader(source, 600).entries(250, 260)] == list(range(250, 260))
        assert list(LogReader(source, 600).entries(600, 700)) == []
    with open_source(tmp_path) as source, pytest.raises(NotPublished):
        make_proof(source, 0)


def test_files_that_contradict_each_other_make_no_proof(folder: Path, tmp_path: Path) -> None:
    publish_entries(tmp_path, ENTRIES[::-1])
    (tmp_path / "checkpoint").write_bytes((folder / "checkpoint").read_bytes())
    with open_source(tmp_path) as source, pytest.raises(ProofError, match="run an audit"):
        make_proof(source, 5)


# --- the commands


run = CliRunner().invoke


def test_the_audit_command_says_that_everything_holds_and_keeps_the_checkpoint(
    folder: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    first = run(app, ["audit", str(folder), "--vkey", str(VKEY), "--keep", str(kept)])
    assert first.exit_code == 0, first.output
    assert "Everything holds." in first.stdout
    assert str(VKEY) in first.stdout.split(), "in one piece, to be copied"
    assert kept.read_bytes() == (folder / "checkpoint").read_bytes()
    again = run(app, ["audit", str(folder), "--since", str(kept), "--json", "--jobs", "2"])
    assert again.exit_code == 0, again.output
    report = json.loads(again.stdout)
    assert (report["ok"], report["size"], report["consistent_with"]) == (True, 600, 600)


def test_the_audit_command_exits_with_5_and_names_what_does_not_hold(folder: Path, tmp_path: Path) -> None:
    entries = [
        *ENTRIES,
        encode(StreamArchived(originator_id=make_id("n1"), originator_version=9, at_us=1, reason="")),
    ]
    publish_entries(tmp_path / "log", entries)
    done = run(app, ["audit", str(tmp_path / "log")])
    assert done.exit_code == 5
    assert "position 600" in done.stdout
    assert "does not follow" in done.stdout
    kept = tmp_path / "kept"
    failed = run(app, ["audit", str(tmp_path / "log"), "--json", "--keep", str(kept)])
    assert failed.exit_code == 5
    assert json.loads(failed.stdout)["problem"]["position"] == 600
    assert not kept.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit"],
        ["audit", "FOLDER", "--vkey", "nonsense"],
        ["audit", "FOLDER", "--since", "/nowhere/kept"],
        ["audit", "FOLDER", "--since", "FOLDER"],
        ["audit", "FOLDER", "--since", "FOLDER/vkey"],
        ["proof", "verify", "/nowhere/file", "--vkey", str(VKEY)],
        ["proof", "verify", "FOLDER/vkey", "--vkey", "nonsense"],
        ["proof", "make", "-1", "FOLDER"],
    ],
)
def test_arguments_that_cannot_be_right_are_usage_errors(folder: Path, arguments: list[str]) -> None:
    assert run(app, [a.replace("FOLDER", str(folder)) for a in arguments]).exit_code == 2


def test_nothing_published_is_told_apart_from_a_failure(tmp_path: Path) -> None:
    for arguments in (
        ["audit", str(tmp_path)],
        ["proof", "make", "0", str(tmp_path)],
        ["log", "show", "--from", str(tmp_path)],
    ):
        error = run(app, arguments).exception
        assert getattr(error, "exit_code", None) == 4  # hub.cli.main exits with it


def test_a_proof_is_made_and_verified_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.tlog-proof"
    assert run(app, ["proof", "make", "300", str(folder), "--out", str(file)]).exit_code == 0
    done = run(app, ["proof", "verify", str(file), "--vkey", str(VKEY)])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert (shown["position"], shown["size"], shown["event"]["type"]) == (300, 600, "invite.created.v1")
    file.write_bytes(file.read_bytes().replace(b"index 300", b"index 301"))
    refused = run(app, ["proof", "verify", str(file), "--vkey", str(VKEY)])
    assert refused.exit_code == 5
    assert "is not at position 301" in refused.stderr


def test_log_show_prints_events_as_json_lines_with_bytes_as_hex(folder: Path) -> None:
    done = run(app, ["log", "show", "--from", str(folder), "--type", "crew.key"])
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    event = json.loads(line)
    assert (event["position"], event["type"]) == (1, "crew.key_added.v1")
    assert event["public_key"] == LOG.public_key.hex()
    one = run(app, ["log", "show", "299", "--from", str(folder)])
    assert json.loads(one.stdout)["expires_us"] == 300
    beyond = run(app, ["log", "show", "600", "--from", str(folder)])
    assert getattr(beyond.exception, "exit_code", None) == 4


def test_log_show_spells_out_what_a_terminal_would_obey(tmp_path: Path) -> None:
    name = "crew\x1b[2J\x9b1m\u202eé"
    publish_entries(tmp_path, [encode(msgspec.structs.replace(FOUNDED, name=name))])
    done = run(app, ["log", "show", "--from", str(tmp_path)])
    assert json.loads(done.stdout)["name"] == name
    assert done.stdout.rstrip("\n").isprintable()
    assert "é" in done.stdout


def test_the_checkpoint_the_tests_publish_is_a_real_one(folder: Path) -> None:
    assert Checkpoint.open((folder / "checkpoint").read_bytes(), VKEY).size == 600
