"""Checkpoints (c2sp.org/tlog-checkpoint): a log's size and root as a signed note.

Invariant: `Checkpoint.parse_text(c.text()) == c`, and each checkpoint has exactly one text.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final, Self

from ledger.keys import KeyPair
from ledger.note import NoteError, VerifierKey, open_note, sign_note

MAX_SIZE: Final = (1 << 63) - 1
MAX_ORIGIN_CHARS: Final = 255
HASH_BYTES: Final = hashlib.sha256().digest_size


class CheckpointError(NoteError):
    """A note whose text is not a checkpoint, or not this log's."""


def parse_decimal(text: str) -> int:
    """ASCII decimal without leading zeroes. Raises ValueError."""
    if not text.isascii() or not text.isdigit() or (text[0] == "0" and text != "0") or len(text) > 19:
        raise ValueError(f"{text[:24]!r} is not a canonical decimal number")
    return int(text)


def decode_hash(text: str) -> bytes:
    """32 bytes from their one base64 form. Raises ValueError."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as e:
        raise ValueError("a hash is base64") from e
    if len(data) != HASH_BYTES or base64.b64encode(data).decode() != text:
        raise ValueError("a hash is the canonical base64 of 32 bytes")
    return data


@dataclass(frozen=True, slots=True)
class Checkpoint:
    origin: str
    size: int  # number of leaves
    root: bytes  # 32 bytes

    def __post_init__(self) -> None:
        if not self.origin or len(self.origin) > MAX_ORIGIN_CHARS or "\n" in self.origin:
            raise CheckpointError("a checkpoint's origin is one line of text")
        if not 0 <= self.size <= MAX_SIZE or len(self.root) != HASH_BYTES:
            raise CheckpointError("a checkpoint has a size and a root of 32 bytes")

    def text(self) -> str:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, *keys: KeyPair) -> bytes:
        """The signed note; the keys' name is the origin."""
        return sign_note(self.text(), self.origin, *keys)

    @classmethod
    def parse_text(cls, text: str) -> Self:
        """Raises CheckpointError. Extension lines are refused: an auditor could not check what they say."""
        lines = text.split("\n")
        if len(lines) != 4 or lines[3]:
            raise CheckpointError("a checkpoint is three lines: origin, size, root")
        try:
            return cls(lines[0], parse_decimal(lines[1]), decode_hash(lines[2]))
        except CheckpointError:
            raise
        except ValueError as e:
            raise CheckpointError(f"malformed checkpoint: {e}") from e

    @classmethod
    def open(cls, note: bytes, *keys: VerifierKey) -> Self:
        """The checkpoint in a note that one of `keys` signed. Raises NoteError."""
        return cls.parse_text(open_note(note, keys))
