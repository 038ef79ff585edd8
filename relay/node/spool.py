"""Spool: receipts on disk between the viewer's POST and the hub's verdict.

Invariant: when `add` has returned, the receipt survives a crash until `answered` is called for it; a receipt gives
way before that only to one of the same ticket that claims everything it claims. When `add` raises, the receipt is
not promised and the file is as it was.

All waiting receipts share one write and one fsync (group commit), made in a thread of the spool's own.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from ledger.receipt import SignedReceipt
from ledger.ticket import SignedTicket
from relay.node import spool_file
from relay.node.files import replace_file
from relay.node.spool_file import Kind, body_hash, covers, dump, record

log = structlog.get_logger()

SPOOL_FILE: Final = "receipts.spool"
MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MAX_PENDING: Final = 50_000
MAX_TICKETS: Final = 20_000
MAX_WAITING: Final = 10_000
MAX_PER_TICKET: Final = (
    4  # receipts of one ticket of which none claims all of another: node restarts, not viewers
)
MAX_ANSWERED: Final = 4_096
COMPACT_ABOVE_BYTES: Final = 256 * 1024


class SpoolFull(Exception):
    """The disk or the spool's own bound is full: the receipt was not kept, the viewer keeps and resends it."""


class Conflicting(Exception):
    """The viewer takes back segments it has signed for, again and again."""


@dataclass(slots=True)
class _Write:
    data: bytes
    receipt: SignedReceipt | None = None  # taken into memory when durable
    done: asyncio.Future[None] | None = None  # None: nobody waits for it to be durable


class Spool:
    """One per node. Use from one event loop; `close` writes what waits."""

    def __init__(self, folder: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._path = folder / SPOOL_FILE
        self._max_file_bytes = max_file_bytes
        self._pending: OrderedDict[bytes, SignedReceipt] = OrderedDict()  # by body hash
        self._of_ticket: dict[bytes, list[bytes]] = {}  # ticket hash -> body hashes in _pending
        self._tickets: OrderedDict[bytes, SignedTicket] = OrderedDict()
        self._answered: OrderedDict[bytes, None] = OrderedDict()
        self._waiting: list[_Write] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(1, "spool")
        self._rewrite = False  # the file may not hold what we think: write it anew before the next append
        self._open()
        self._writer = asyncio.create_task(self._write_loop(), name="spool writer")

    # --- what others see

    @property
    def pending(self) -> int:
        return len(self._pending)

    @property
    def file_bytes(self) -> int:
        return self._size

    @property
    def tickets(self) -> Iterable[SignedTicket]:
        """Tickets this node had served with before it was last stopped or killed."""
        return self._tickets.values()

    async def add(self, receipt: SignedReceipt) -> None:
        """Keep a verified receipt; durable when this returns. Raises SpoolFull or Conflicting."""
        name = body_hash(receipt)
        same = [self._pending[n] for n in self._of_ticket.get(receipt.receipt.ticket_hash, ())]
        if name in self._answered or any(covers(old, receipt) for old in same):
            return
        if len([old for old in same if not covers(receipt, old)]) >= MAX_PER_TICKET:
            raise Conflicting
        if len(self._pending) >= MAX_PENDING or len(self._waiting) >= MAX_WAITING or self._closing:
            raise SpoolFull("the spool is full")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._submit(_Write(record(Kind.RECEIPT, receipt.encode()), receipt, done))
        await done

    def keep_ticket(self, ticket: SignedTicket) -> None:
        """Remember across restarts that we served with this ticket. Best effort: not awaited, not promised."""
        name = ticket.ticket.hash
        if name in self._tickets:
            return
        self._tickets[name] = ticket
        if len(self._tickets) > MAX_TICKETS:
            self._tickets.popitem(last=False)
        self._submit(_Write(record(Kind.TICKET, ticket.encode())))

    def latest(self, limit: int) -> list[SignedReceipt]:
        """Up to `limit` unanswered receipts, oldest first."""
        return [r for r, _ in zip(self._pending.values(), range(limit), strict=False)]

    def answered(self, receipts: Iterable[SignedReceipt]) -> None:
        """The hub has given its verdict on these. Lost in a crash, they are sent again and are duplicates."""
        for receipt in receipts:
            name = body_hash(receipt)
            self._answered[name] = None
            self._forget(name)
            self._submit(_Write(record(Kind.DONE, name)))
        while len(self._answered) > MAX_ANSWERED:
            self._answered.popitem(last=False)

    async def close(self) -> None:
        self._closing = True
        self._wake.set()
        await self._writer
        self._thread.shutdown()
        os.close(self._handle)

    # --- memory

    def _take(self, receipt: SignedReceipt) -> None:
        name = body_hash(receipt)
        ticket = receipt.receipt.ticket_hash
        for old in list(self._of_ticket.get(ticket, ())):
            if covers(receipt, self._pending[old]):
                self._forget(old)
        self._pending[name] = receipt
        names = self._of_ticket.setdefault(ticket, [])
        if name not in names:
            names.append(name)

    def _forget(self, name: bytes) -> None:
        receipt = self._pending.pop(name, None)
        if receipt is None:
            return
        names = self._of_ticket[receipt.receipt.ticket_hash]
        names.remove(name)
        if not names:
            del self._of_ticket[receipt.receipt.ticket_hash]

    # --- the file

    def _open(self) -> None:
        data = self._path.read_bytes() if self._path.exists() else b""
        found = spool_file.recover(data)
        self._tickets.update(found.tickets)
        for receipt in found.receipts.values():
            self._take(receipt)
        if (
            len(data) - found.good_bytes > spool_file.MAX_RECORD_BYTES
        ):  # more than one torn record: not just a crash
            aside = self._path.with_suffix(".damaged")
            self._path.replace(aside)
            log.error("the receipt spool was damaged; what was sound is kept", damaged_copy=str(aside))
            found.good_bytes = 0
        if found.good_bytes == 0:
            whole = self._dump()
            replace_file(self._path, whole)
            found.good_bytes = len(whole)
        self._size = found.good_bytes
        self._handle = _open_append(self._path)
        os.ftruncate(self._handle, self._size)
        if self._pending:
            log.info("receipts from before are still to be sent", receipts=len(self._pending))

    def _dump(self) -> bytes:
        return dump(list(self._pending.values()), list(self._tickets.values()))

    def _submit(self, write: _Write) -> None:
        self._waiting.append(write)
        self._wake.set()

    async def _write_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            group, self._waiting = self._waiting, []
            if not group:
                continue
            data = b"".join(w.data for w in group)
            step = partial(self._append, data)
            if self._must_compact(len(data)):
                step = partial(self._replace, self._dump(), data)
            try:
                await loop.run_in_executor(self._thread, step)
            except OSError as e:
                log.warning("cannot write receipts to disk", error=str(e), receipts=len(self._pending))
                self._settle(group, e)
            else:
                self._settle(group, None)

    def _settle(self, group: list[_Write], error: OSError | None) -> None:
        """Memory follows the disk before the next write is planned, so that a rewrite never misses a receipt."""
        for write in group:
            if write.receipt is not None and error is None:
                self._take(write.receipt)
            if write.done is None or write.done.done():
                continue
            if error is None:
                write.done.set_result(None)
            else:
                write.done.set_exception(SpoolFull(f"cannot write to disk: {error.strerror}"))

    def _must_compact(self, more_bytes: int) -> bool:
        live = len(self._pending) * 214 + len(self._tickets) * 263
        grown = self._size > COMPACT_ABOVE_BYTES and self._size > 2 * live
        return self._rewrite or grown or self._size + more_bytes > self._max_file_bytes

    def _append(self, data: bytes) -> None:
        """In the spool's thread. On failure the file is cut back to what it was."""
        try:
            _write_all(self._handle, data)
        except OSError:
            self._rewrite = True  # until the cut has succeeded
            os.ftruncate(self._handle, self._size)
            self._rewrite = False
            raise
        try:
            os.fsync(self._handle)
        except OSError:
            # The kernel may have dropped the pages and would report the next fsync as good: only a new file counts.
            self._rewrite = True
            raise
        self._size += len(data)

    def _replace(self, whole: bytes, more: bytes) -> None:
        """In the spool's thread: the file anew with what is live, and this group."""
        if len(whole) + len(more) > self._max_file_bytes:
            raise OSError(0, "the spool has reached its bound")
        os.close(self._handle)  # Windows replaces no open file
        try:
            replace_file(self._path, whole + more)
            self._size, self._rewrite = len(whole) + len(more), False
        finally:
            self._handle = _open_append(self._path)


def _open_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
