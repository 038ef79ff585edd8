"""The file rail: one CSV file, which the operator pays by hand or imports at the bank.

Invariant: a key stands in the file at most once, and nobody is told CONFIRMED before the whole line is on disk (fsync).
A line torn by a crash was never confirmed and is cut off before anything else is written. Several processes may use one
file: each works under an exclusive lock.
"""

import csv
import fcntl
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from ledger.money import decimal_text
from ledger.rails import Answer, OtherPayment, Outcome, Payment, destination_fault
from ledger.rails.journal import sync_folder

COLUMNS: Final = ("key", "friend_id", "amount_micro", "amount", "unit", "destination")
HEADER: Final = (",".join(COLUMNS) + "\n").encode()


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
        """Raises OtherPayment, and OSError when the disk does not take the line; nothing is confirmed then."""
        if fault := destination_fault(payment.destination):
            return Answer(Outcome.FAILED, fault)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(os.O_RDWR | os.O_CREAT) as file:
            whole, line = _whole_lines(file), _line(payment)
            if payment.key in _keys(whole):
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
        try:
            with self._locked(os.O_RDONLY) as file:
                known = key in _keys(_whole_lines(file))
                if known:  # who wrote it may have died before that
                    os.fsync(file.fileno())
                    sync_folder(self._path.parent)
        except FileNotFoundError:
            known = False
        return Answer(Outcome.CONFIRMED, self._path.name) if known else Answer(Outcome.ABSENT)

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


def _keys(whole: bytes) -> set[str]:
    # A key is a uuid, a colon and a number: never quoted.
    return {line.split(b",", 1)[0].decode() for line in whole.splitlines()[1:]}


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
