"""One event's proof in a file (c2sp.org/tlog-proof): verified offline, years later, with nothing but the log's key.

Invariant: a proof that verifies shows that exactly the entry it carries stands at its index in the tree that the log's
key signed. The entry travels in the `extra` line; it is believed only because it hashes to the leaf.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Final, Self

from ledger import merkle
from ledger.checkpoint import Checkpoint, decode_hash, parse_decimal
from ledger.note import MAX_NOTE_BYTES, VerifierKey
from ledger.tlog.reader import LogReader, NotPublished, read_note
from ledger.tlog.source import Source
from ledger.tlog.tiles import MAX_ENTRY_BYTES

HEADER: Final = "c2sp.org/tlog-proof@v1"
MAX_HASHES: Final = 63
MAX_BYTES: Final = MAX_ENTRY_BYTES * 2 + MAX_HASHES * 64 + MAX_NOTE_BYTES


class ProofError(ValueError):
    """Bytes that are not a proof, or a proof that does not hold."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class TlogProof:
    index: int
    entry: bytes
    hashes: tuple[bytes, ...]  # from the leaf's sibling up to the root's child
    checkpoint: bytes  # the signed note

    def encode(self) -> bytes:
        lines = [HEADER, f"extra {base64.b64encode(self.entry).decode()}", f"index {self.index}"]
        lines += [base64.b64encode(h).decode() for h in self.hashes]
        return "\n".join([*lines, "", ""]).encode() + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises ProofError unless `data` has the form of a proof with its entry. Verifies nothing."""
        if len(data) > MAX_BYTES:
            raise ProofError(f"a proof is at most {MAX_BYTES} bytes")
        head, blank, checkpoint = data.partition(b"\n\n")
        try:
            header, *lines = head.decode("ascii").split("\n")
            if header != HEADER or not blank:
                raise ProofError("this is not a proof of a log entry")
            if len(lines) < 2 or not lines[0].startswith("extra ") or not lines[1].startswith("index "):
                raise ProofError("the proof lacks the entry or its index")
            entry = base64.b64decode(lines[0].removeprefix("extra "), validate=True)
            index = parse_decimal(lines[1].removeprefix("index "))
            if len(lines) - 2 > MAX_HASHES or len(entry) > MAX_ENTRY_BYTES:
                raise ProofError("the proof is too long")
            return cls(index, entry, tuple(decode_hash(h) for h in lines[2:]), checkpoint)
        except ProofError:
            raise
        except (binascii.Error, ValueError) as e:
            raise ProofError(f"malformed proof: {e}") from e

    def verify(self, key: VerifierKey) -> Checkpoint:
        """The signed checkpoint that the entry is proven under. Raises ProofError, NoteError."""
        checkpoint = Checkpoint.open(self.checkpoint, key)
        leaf = merkle.leaf_hash(self.entry)
        if not merkle.verify_inclusion(leaf, self.index, checkpoint.size, self.hashes, checkpoint.root):
            raise ProofError(f"the entry is not at position {self.index} of the log that was signed")
        return checkpoint


def make_proof(source: Source, index: int) -> TlogProof:
    """The proof of one entry from the published files.

    Raises NotPublished when the log does not reach `index`, and ProofError when the files contradict each other.
    """
    note, checkpoint = read_note(source)
    if not 0 <= index < checkpoint.size:
        raise NotPublished(f"the published log holds positions 0 to {checkpoint.size - 1}, not {index}")
    reader = LogReader(source, checkpoint.size)
    ((_, entry),) = reader.entries(index, index + 1)
    hashes = merkle.inclusion_proof(reader.subtree, index, checkpoint.size)
    leaf = merkle.leaf_hash(entry)
    if not merkle.verify_inclusion(leaf, index, checkpoint.size, hashes, checkpoint.root):
        raise ProofError(f"the published files do not prove position {index}: run an audit")
    return TlogProof(index, entry, tuple(hashes), note)
