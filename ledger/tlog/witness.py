"""A witness (c2sp.org/tlog-witness): cosigns checkpoints of logs it knows, each a continuation of the one before.

Invariant: no two checkpoints of one origin are cosigned of which one is not a prefix of the other, whatever fails and
whoever dies: the newest is on disk before its cosignature exists. Bytes in, bytes out; the time is an argument.
"""

import base64
import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

import structlog

from ledger import merkle
from ledger.checkpoint import Checkpoint, decode_hash, parse_decimal
from ledger.keys import KeyPair
from ledger.note import MAX_NOTE_BYTES, Note, NoteError, VerifierKey
from ledger.tlog.cosignature import WitnessKey, cosign
from ledger.tlog.files import make_folder, write_atomic

MAX_HASHES: Final = 63
MAX_REQUEST_BYTES: Final = MAX_NOTE_BYTES + (MAX_HASHES + 1) * 48
SIZE_TYPE: Final = "text/x.tlog.size"
_TEXT: Final = "text/plain; charset=utf-8"
_LOCK: Final = ".lock"

log = structlog.get_logger()


class WitnessError(Exception):
    """The witness cannot run here. The message is for people."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int  # HTTP
    body: str
    content_type: str = _TEXT


@dataclass(frozen=True, slots=True)
class Request:
    """The body of add-checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    note: bytes

    def encode(self) -> bytes:
        return encode_request(self.old, self.proof, self.note)

    @classmethod
    def parse(cls, body: bytes) -> "Request":
        """Raises ValueError."""
        head, blank, note = body.partition(b"\n\n")
        first, *hashes = head.decode("ascii").split("\n")
        if not blank or not first.startswith("old ") or len(hashes) > MAX_HASHES:
            raise ValueError("the request is an old size, at most 63 hashes, an empty line and a checkpoint")
        return cls(parse_decimal(first.removeprefix("old ")), tuple(decode_hash(h) for h in hashes), note)


def encode_request(old: int, proof: Sequence[bytes], note: bytes) -> bytes:
    lines = [f"old {old}", *(base64.b64encode(h).decode() for h in proof), "", ""]
    return "\n".join(lines).encode() + note


class Witness:
    """One per folder. Methods may be called from any thread."""

    def __init__(self, folder: Path, name: str, key: KeyPair, trusted: Sequence[VerifierKey]) -> None:
        """`trusted` are the keys of the logs it knows: a key's name is the origin, which may have several keys."""
        self._folder = folder
        self._name = name
        self._key = key
        self._trusted = tuple(trusted)
        self._mutex = Lock()
        self.vkey = WitnessKey(name, key.public_key)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder. Raises WitnessError when another process does."""
        make_folder(self._folder)
        with open(self._folder / _LOCK, "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise WitnessError(f"another witness runs on {self._folder}") from e
            yield

    def latest(self, origin: str) -> Checkpoint | None:
        """What was cosigned last. Raises WitnessError when it cannot be read: then nothing more is signed."""
        path = self._path(origin, "checkpoint")
        try:
            return Checkpoint.parse_text(Note.parse(path.read_bytes()).text)
        except FileNotFoundError:
            return None
        except (OSError, NoteError) as e:
            raise WitnessError(f"{path} cannot be read: {e}") from e

    def add_checkpoint(self, body: bytes, *, now_s: int) -> Answer:
        """Cosign the checkpoint in the request, or say why not. Raises WitnessError, OSError: nothing was signed."""
        try:
            request = Request.parse(body)
            note = Note.parse(request.note)
            checkpoint = Checkpoint.parse_text(note.text)
        except ValueError as e:
            return Answer(400, f"{e}\n")
        keys = [key for key in self._trusted if key.name == checkpoint.origin]
        if not keys:
            return Answer(404, "this witness does not know that log\n")
        if not _signed_by_any(note, keys):
            return Answer(403, "no signature of a key that this witness trusts\n")
        if request.old > checkpoint.size:
            return Answer(400, "the old size is larger than the checkpoint's\n")
        with self._mutex:
            return self._continue(request, note, checkpoint, now_s)

    def _continue(self, request: Request, note: Note, new: Checkpoint, now_s: int) -> Answer:
        last = self.latest(new.origin)
        size, root = (last.size, last.root) if last is not None else (0, merkle.EMPTY_ROOT)
        if request.old != size:
            return Answer(409, f"{size}\n", SIZE_TYPE)
        if new.size == size and new.root != root:
            self._keep_evidence(new, request)
            return Answer(409, f"{size}\n", SIZE_TYPE)
        if not merkle.verify_consistency(size, new.size, request.proof, root, new.root):
            self._keep_evidence(new, request)
            return Answer(422, "the checkpoint does not continue the last one that was cosigned\n")
        if last is None or new.size > size:
            write_atomic(self._path(new.origin, "checkpoint"), request.note)
            log.info("witness.cosigned", origin=new.origin, size=new.size)
        return Answer(200, cosign(note.text, self._name, self._key, at_s=now_s))

    def _keep_evidence(self, new: Checkpoint, request: Request) -> None:
        """A log that signed this has forked, or sent a proof that is wrong: the newest such request is kept."""
        log.error("witness.refused", origin=new.origin, size=new.size, root=new.root.hex())
        write_atomic(self._path(new.origin, "refused"), request.encode())

    def _path(self, origin: str, suffix: str) -> Path:
        return self._folder / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.{suffix}"


def _signed_by_any(note: Note, keys: Sequence[VerifierKey]) -> bool:
    for key in keys:
        try:
            if note.verified_by(key):
                return True
        except NoteError:
            continue
    return False
