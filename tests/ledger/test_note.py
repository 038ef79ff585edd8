"""Signed notes and checkpoints, against the examples of the specifications and of Go's sumdb/note."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.checkpoint import Checkpoint, CheckpointError
from ledger.keys import KeyPair
from ledger.note import Note, NoteError, VerifierKey, open_note, sign_note

# golang.org/x/mod/sumdb/note: its documented example key and note.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NOTE = (
    TEXT + "\n— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()
KEY = KeyPair(b"\x07" * 32)
NAME = "example.org/log"
VKEY = VerifierKey(NAME, KEY.public_key)


def test_the_reference_note_opens_and_is_signed_to_the_same_bytes() -> None:
    peter = VerifierKey.parse(PETER)
    assert str(peter) == PETER
    assert open_note(NOTE, (peter,)) == TEXT
    assert sign_note(TEXT, "PeterNeumann", KeyPair(PETER_SEED)) == NOTE


def test_other_implementations_keys_parse_to_the_same_text() -> None:
    for text in (PETER, ENOCH, "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"):
        assert str(VerifierKey.parse(text)) == text


def test_the_specifications_checkpoint_example_parses() -> None:
    note = Note.parse(
        b"example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        b"\xe2\x80\x94 example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5"
        b"/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    )
    checkpoint = Checkpoint.parse_text(note.text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text() == note.text
    assert note.signatures[0].key_hash.hex() == "033de0ae"


def test_text_may_hold_blank_lines() -> None:
    text = "a\n\nb\n"
    assert open_note(sign_note(text, NAME, KEY), (VKEY,)) == text


def test_signatures_of_unknown_keys_are_ignored_but_one_known_key_must_have_signed() -> None:
    other = b"\xe2\x80\x94 witness.example " + base64.b64encode(b"abcd" + b"\x01" * 64) + b"\n"
    assert open_note(NOTE + other, (VerifierKey.parse(PETER), VKEY)) == TEXT
    with pytest.raises(NoteError, match="not signed by a known key"):
        open_note(NOTE, (VKEY,))


@given(st.data())
def test_any_changed_byte_of_a_note_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(NOTE) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != NOTE[at]))
    with pytest.raises(NoteError):
        open_note(NOTE[:at] + bytes([value]) + NOTE[at + 1 :], (VerifierKey.parse(PETER),))


@given(st.data())
def test_any_changed_character_of_a_verifier_key_is_refused_or_names_another_key(
    data: st.DataObject,
) -> None:
    at = data.draw(st.integers(0, len(PETER) - 1))
    changed = PETER[:at] + data.draw(st.characters().filter(lambda c: c != PETER[at])) + PETER[at + 1 :]
    with pytest.raises(NoteError):
        VerifierKey.parse(changed)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_raise_anything_but_a_note_error(data: bytes) -> None:
    with pytest.raises(NoteError):
        open_note(data, (VKEY,))


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"text\n",
        b"text\n\n",
        b"text\n\nno dash\n",
        b"text\n\n\xe2\x80\x94 name\n",
        b"text\n\n\xe2\x80\x94 name AAAA\n",
        b"text\n\n\xe2\x80\x94 name AAAAAAA=\n\xff",
        b"te\rxt\n\n\xe2\x80\x94 name AAAAAAA=\n",
        b"x" * 70_000,
        b"text\n\n" + b"\xe2\x80\x94 name AAAAAAA=\n" * 65,
    ],
)
def test_malformed_notes_are_refused(note: bytes) -> None:
    with pytest.raises(NoteError):
        Note.parse(note)


@pytest.mark.parametrize(
    "vkey", ["", "a+b", "a+00000000+AAAA", "+c74f20a3+AA==", "a b+c74f20a3+ARpc", "a+c74f20a3+é", PETER + "A"]
)
def test_malformed_verifier_keys_are_refused(vkey: str) -> None:
    with pytest.raises(NoteError):
        VerifierKey.parse(vkey)


def test_text_that_cannot_be_a_note_is_not_signed() -> None:
    for text in ("no newline", "bell\x07\n"):
        with pytest.raises(NoteError):
            sign_note(text, NAME, KEY)
    with pytest.raises(NoteError, match="name"):
        sign_note("text\n", "two words", KEY)


@given(st.integers(0, (1 << 63) - 1), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_survives_signing_and_opening(size: int, root: bytes) -> None:
    checkpoint = Checkpoint(NAME, size, root)
    assert Checkpoint.open(checkpoint.sign(KEY), VKEY) == checkpoint


HASH = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"origin\n1\n{HASH}",
        f"\n1\n{HASH}\n",
        f"origin\n01\n{HASH}\n",
        f"origin\n-1\n{HASH}\n",
        f"origin\n+1\n{HASH}\n",
        f"origin\n٣\n{HASH}\n",
        f"origin\n\n{HASH}\n",
        f"origin\n{1 << 63}\n{HASH}\n",
        f"origin\n{'9' * 30}\n{HASH}\n",
        "origin\n1\nAAAA\n",
        "origin\n1\n!\n",
        "origin\n1\né\n",
        f"origin\n1\n{HASH[:-2]}B=\n",
        f"origin\n1\n{HASH}\nextension\n",
        f"{'o' * 300}\n1\n{HASH}\n",
    ],
)
def test_malformed_checkpoints_are_refused(text: str) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint.parse_text(text)
