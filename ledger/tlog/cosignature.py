"""Cosignatures (c2sp.org/tlog-cosignature, Ed25519 `cosignature/v1`): a witness says what it saw, and when.

Invariant: a cosignature that verifies is over exactly the checkpoint text it stands under and the time it carries, by
exactly the key it was asked for; a log's own signature is never taken for one.
"""

import base64
import hashlib
import struct
from dataclasses import dataclass
from typing import Final, Self

from ledger.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, KeyPair, verify
from ledger.note import KEY_HASH_BYTES, Note, NoteError, VerifierKey

COSIGNATURE: Final = 0x04  # signature type identifier
_TIME: Final = struct.Struct(">Q")
_MAX_TIME_S: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class WitnessKey:
    """A witness's name and public key. Text form (vkey): `name+hash+base64(type || public key)`."""

    name: str
    public_key: bytes  # 32 bytes

    def __post_init__(self) -> None:
        VerifierKey(self.name, self.public_key)  # the same rules

    @property
    def key_hash(self) -> bytes:
        material = self.name.encode() + b"\n" + bytes([COSIGNATURE]) + self.public_key
        return hashlib.sha256(material).digest()[:KEY_HASH_BYTES]

    def __str__(self) -> str:
        key = base64.b64encode(bytes([COSIGNATURE]) + self.public_key).decode()
        return f"{self.name}+{self.key_hash.hex()}+{key}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises NoteError unless `text` is the vkey of an Ed25519 witness."""
        name, _, rest = text.partition("+")
        hash_hex, _, encoded = rest.partition("+")
        try:
            material = base64.b64decode(encoded, validate=True)
        except ValueError as e:
            raise NoteError("a witness key is name+hash+key, the key in base64") from e
        if len(material) != 1 + PUBLIC_KEY_BYTES or material[0] != COSIGNATURE:
            raise NoteError("this is not the key of an Ed25519 witness")
        key = cls(name, material[1:])
        if text != str(key) or hash_hex != key.key_hash.hex():
            raise NoteError("the witness key's hash does not match its key")
        return key

    def cosigned_s(self, note: Note) -> int | None:
        """When this witness cosigned the note's text, in Unix seconds (its newest cosignature), or None.

        Raises NoteError when a line that claims to be its cosignature does not hold.
        """
        newest: int | None = None
        for line in note.signatures:
            if line.name != self.name or line.key_hash != self.key_hash:
                continue
            if len(line.signature) != _TIME.size + SIGNATURE_BYTES:
                raise NoteError(f"the cosignature of {self.name} has the wrong length")
            (at_s,) = _TIME.unpack_from(line.signature)
            message = _message(note.text, at_s)
            if at_s > _MAX_TIME_S or not verify(self.public_key, b"", message, line.signature[_TIME.size :]):
                raise NoteError(f"the cosignature of {self.name} does not match the text")
            newest = at_s if newest is None else max(newest, at_s)
        return newest


def cosign(text: str, name: str, key: KeyPair, *, at_s: int) -> str:
    """The signature line, with its newline, over a checkpoint's text. `at_s` is Unix seconds."""
    blob = WitnessKey(name, key.public_key).key_hash + _TIME.pack(at_s) + key.sign(b"", _message(text, at_s))
    return f"— {name} {base64.b64encode(blob).decode()}\n"


def _message(text: str, at_s: int) -> bytes:
    return f"cosignature/v1\ntime {at_s}\n{text}".encode()
