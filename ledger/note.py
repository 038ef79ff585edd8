"""Signed notes (c2sp.org/signed-note): text, a blank line, then one line for each signature. Ed25519 only.

Invariant: `open_note(sign_note(t, keys), vkeys)` returns exactly `t`, and no text is returned that none of the
verifier's keys signed.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final, Self

from ledger.keys import PUBLIC_KEY_BYTES, KeyPair, verify

ED25519: Final = 0x01  # signature type identifier
KEY_HASH_BYTES: Final = 4
MAX_NOTE_BYTES: Final = 65_536
MAX_SIGNATURES: Final = 64  # the specification asks verifiers to accept at least 16
_DASH: Final = "— "


class NoteError(ValueError):
    """Bytes that are not a signed note, or a note that no known key signed."""


def _valid_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(c.isspace() or ord(c) < 0x20 for c in name)


def _decode_base64(text: str, what: str) -> bytes:
    """Standard base64 in its one canonical form. Raises NoteError."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise NoteError(f"{what} is not base64") from e
    if base64.b64encode(data).decode() != text:
        raise NoteError(f"{what} is not canonical base64")
    return data


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A named public key. Text form (vkey): `name+hash+base64(type || public key)`."""

    name: str
    public_key: bytes  # 32 bytes

    def __post_init__(self) -> None:
        if not _valid_name(self.name):
            raise NoteError("a key name is not empty and has no spaces and no plus sign")
        if len(self.public_key) != PUBLIC_KEY_BYTES:
            raise NoteError("an Ed25519 public key is 32 bytes")

    @property
    def key_hash(self) -> bytes:
        """SHA-256(name, newline, type, public key)[:4]: an identifier, it proves nothing."""
        material = self.name.encode() + b"\n" + bytes([ED25519]) + self.public_key
        return hashlib.sha256(material).digest()[:KEY_HASH_BYTES]

    def __str__(self) -> str:
        key = base64.b64encode(bytes([ED25519]) + self.public_key).decode()
        return f"{self.name}+{self.key_hash.hex()}+{key}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NoteError unless `text` is an Ed25519 vkey whose hash is its key's."""
        parts = text.split("+", 2)  # base64 may hold a plus sign, a name may not
        if len(parts) != 3:
            raise NoteError("a verifier key is name+hash+key")
        name, hash_hex, encoded = parts
        material = _decode_base64(encoded, "the verifier key")
        if len(material) != 1 + PUBLIC_KEY_BYTES or material[0] != ED25519:
            raise NoteError("the verifier key is not an Ed25519 key")
        key = cls(name, material[1:])
        if hash_hex != key.key_hash.hex():
            raise NoteError("the verifier key's hash does not match its key")
        return key


@dataclass(frozen=True, slots=True)
class Signature:
    name: str
    key_hash: bytes  # 4 bytes
    signature: bytes  # of whatever type its key has


@dataclass(frozen=True, slots=True)
class Note:
    """A parsed note. Its text must not be believed before `verified_by` says so."""

    text: str  # with its final newline
    signatures: tuple[Signature, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises NoteError unless `data` has the form of a signed note. Verifies nothing."""
        if len(data) > MAX_NOTE_BYTES:
            raise NoteError(f"a note is at most {MAX_NOTE_BYTES} bytes")
        try:
            whole = data.decode()
        except UnicodeDecodeError as e:
            raise NoteError("a note is UTF-8 text") from e
        if any(ord(c) < 0x20 and c != "\n" for c in whole):
            raise NoteError("a note has no control characters")
        head, blank, tail = whole.rpartition("\n\n")
        if not blank or not tail.endswith("\n"):
            raise NoteError("a note is text, a blank line and signature lines")
        lines = tail[:-1].split("\n")
        if len(lines) > MAX_SIGNATURES:
            raise NoteError(f"a note has at most {MAX_SIGNATURES} signatures")
        return cls(head + "\n", tuple(_parse_signature(line) for line in lines))

    def verified_by(self, key: VerifierKey) -> bool:
        """True when `key` signed the text. Raises NoteError when a signature that claims to be its does not hold."""
        found = False
        for s in self.signatures:
            if s.name != key.name or s.key_hash != key.key_hash:
                continue
            if not verify(key.public_key, b"", self.text.encode(), s.signature):
                raise NoteError(f"the signature of {key.name} does not match the text")
            found = True
        return found


def _parse_signature(line: str) -> Signature:
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space or not _valid_name(name):
        raise NoteError("malformed signature line")
    blob = _decode_base64(encoded, "a signature")
    if len(blob) <= KEY_HASH_BYTES:
        raise NoteError("a signature is too short")
    return Signature(name, blob[:KEY_HASH_BYTES], blob[KEY_HASH_BYTES:])


def sign_note(text: str, name: str, *keys: KeyPair) -> bytes:
    """The note, signed by each key under that name. Raises NoteError when `text` cannot be a note's text."""
    if not text.endswith("\n") or any(ord(c) < 0x20 and c != "\n" for c in text):
        raise NoteError("a note's text ends in a newline and has no control characters")
    note = f"{text}\n"
    for key in keys:
        verifier = VerifierKey(name, key.public_key)
        signature = key.sign(b"", text.encode())
        note += f"{_DASH}{name} {base64.b64encode(verifier.key_hash + signature).decode()}\n"
    return note.encode()


def open_note(data: bytes, keys: tuple[VerifierKey, ...]) -> str:
    """The text of a note that at least one of `keys` signed. Raises NoteError."""
    note = Note.parse(data)
    verified = [note.verified_by(k) for k in keys]  # all of them: one bad signature of a known key is enough
    if True not in verified:
        raise NoteError("the note is not signed by a known key")
    return note.text
