"""The file rail: one CSV file, which the operator pays by hand or imports at the bank.

Invariant: a key stands in the file at most once, and nobody is told CONFIRMED before the whole line is on disk (fsync).
A line torn by a crash was never confirmed and is cut off before anything else is written. Several processes may use one
file: each works under an exclusive lock. A file that another program has written anew (a spreadsheet, with other
separators or quotes) is refused: a key that is no longer found there would be paid again.
"""

import csv
import fcntl
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from ledger.money import decimal_text
from ledger.rails import Answer, OtherPayment, Outcome, Payment, destination_fault
from ledger.rails.journal import sync_folder

COLUMNS: Final = ("key", "friend_id", "amount_micro", "amount", "unit", "destination")
HEADER: Final = (",".join(COLUMNS) + "\n").encode()
_KEY: Final = re.compile(rb"[^\s,;\"']+:[1-9][0-9]*")


class FileChangedError(Exception):
    """The payment file is not as the rail wrote it."""

    exit_code = 5

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} was changed by another program: what was paid cannot be read from it any more. Restore it "
            f"(work on copies), then run the payout again"
        )


class CsvRail:
    def __init__(self, path: Path) -> None:
        """`path` is created when the first payment is submitted. Keep it until its payout is finished."""
        self._path = path

    @property
    def name(self) -> str:
        return "csv"

    def prepare(self, amounts_micro: Sequence[int]) -> None:
        """Nothing: a line can always be written."""

    def submit(self, payment: Payment) -> Answer:
        """Raises OtherPayment, FileChangedError, and OSError when the disk does not take the line; then nothing is
        confirmed."""
        if fault := destination_fault(payment.destination):
            return Answer(Outcome.FAILED, fault)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(os.O_RDWR | os.O_CREAT) as file:
            whole, line = _whole_lines(file), _line(payment)
            if payment.key in self._keys(whole):
                if line not in whole.splitlines(keepends=True):
                    raise OtherPayment(payment.key)
            else:
                file.seek(len(whole))
                file.truncate()
                file.write((b"" if whole else HEADER) + line)
            # Also for a key found: who wrote it may have died before its fsync.
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self._path.parent)
        return Answer(Outcome.CONFIRMED, self._path.name)

    def look_up(self, key: str) -> Answer:
        """Raises FileChangedError, OSError."""
        known = key in self.keys()
        return Answer(Outcome.CONFIRMED, self._path.name) if known else Answer(Outcome.ABSENT)

    def keys(self) -> set[str]:
        """Of all lines. Raises FileChangedError, OSError."""
        try:
            with self._locked(os.O_RDONLY) as file:
                found = self._keys(_whole_lines(file))
                if found:  # who wrote it may have died before that
                    os.fsync(file.fileno())
                    sync_folder(self._path.parent)
                return found
        except FileNotFoundError:
            return set()

    def _keys(self, whole: bytes) -> set[str]:
        lines = [line.split(b",", 1)[0] for line in whole.removeprefix(HEADER).splitlines()]
        if whole and not (whole.startswith(HEADER) and all(map(_KEY.fullmatch, lines))):
            raise FileChangedError(self._path)
        return {line.decode() for line in lines}

    @contextmanager
    def _locked(self, flags: int) -> Iterator[BinaryIO]:
        # Only the operator's account may read who is paid where.
        descriptor = os.open(self._path, flags | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _whole_lines(file: BinaryIO) -> bytes:
    """The content without a torn last line. No field holds a line break, so a line feed ends a line."""
    content = file.read()
    return content[: content.rfind(b"\n") + 1]


def _line(payment: Payment) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(
        (
            payment.key,
            payment.friend_id,
            payment.amount_micro,
            decimal_text(payment.amount_micro),
            payment.unit,
            payment.destination,
        )
    )
    return out.getvalue().encode()
