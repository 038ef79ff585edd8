"""What the replay has to know for ever, on disk: rows by key, in tables with a bounded cache before them.

Invariants: memory is bounded whatever the number of rows; a row is what was last put under its key. With a path, what
`save` returned from survives the end of the process at any instruction, all of it or none, and `opened` gives back
exactly that: each row has a share in a sum that is kept beside it, so that not one damaged byte is taken for true.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, Generic, Protocol, Self, TypeVar

import msgspec

CACHE_KIB: Final = 8_192  # pages that SQLite keeps in memory
_SUM: Final = 1 << 128
_SLOT: Final = (1 << 22) - 1  # most of what is looked for is new: a hash says so
_AT_ONCE: Final = 256  # keys in a query
_ANY: Final = f"SELECT key, value FROM rows WHERE key IN ({','.join('?' * _AT_ONCE)})"  # noqa: S608 - marks only
_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS head (id INTEGER PRIMARY KEY CHECK (id = 0), value BLOB NOT NULL);
"""
# https://www.sqlite.org/rescode.html. Not SQLITE_ERROR: that is said of a schema of no known format.
_NOT_THE_FILE: Final = (
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)

V = TypeVar("V")


class StoreDamaged(Exception):
    """The file is not what was saved."""


class StoreBusy(Exception):
    """Another audit has the state file open."""

    exit_code = 10


class _Head(msgspec.Struct, array_like=True, frozen=True):
    count: int
    total: bytes  # sum of all rows' digests, modulo 2^128
    note: bytes  # what was given to `save`


class Part(Protocol):
    """What keeps rows in memory for a while."""

    def flush(self) -> None:
        """Write what changed."""

    def trim(self) -> None:
        """Let go of what is more than the bound."""


class Store:
    def __init__(self, path: Path | None = None) -> None:
        """Rows at `path`, or in a private file that goes with the process and never is one while it is small."""
        self._parts: list[Part] = []
        self._kept = path is not None
        self._count = self._total = 0
        self._saved = (0, 0)
        self._written = bytearray(_SLOT + 1)  # 0: no row whose key has this hash was ever written
        self._names: set[int] = set()  # first bytes of the keys that were
        self._connection = sqlite3.connect(
            path or "", isolation_level=None, check_same_thread=False, timeout=0
        )
        run = self._connection.execute
        try:
            run(f"PRAGMA cache_size = -{CACHE_KIB}")
            if self._kept:
                run("PRAGMA locking_mode = EXCLUSIVE")
                run("PRAGMA journal_mode = WAL")
                run("PRAGMA synchronous = NORMAL")
            else:
                run("PRAGMA journal_mode = OFF")
                run("PRAGMA synchronous = OFF")
            self._connection.executescript(_SCHEMA)
            run("BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as e:
            self._connection.close()
            raise _told(e, path) from e
        except UnicodeDecodeError as e:  # what SQLite says of a damaged schema quotes it
            self._connection.close()
            raise StoreDamaged("the schema is damaged") from e
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def opened(cls, path: Path, *, fresh: bool = False) -> tuple[Self, bytes | None]:
        """The store at `path` and the note of its last `save`; a new one, and None, when there is nothing of use.

        Raises StoreBusy when another process has it open.
        """
        with suppress(StoreDamaged):
            store = cls(path)  # also when it is to be empty: nobody else may be at work on it
            try:
                if not fresh:
                    return store, store._verified()
            except StoreDamaged:
                pass
            except BaseException:
                store.close()
                raise
            store.close()
        discard(path)
        return cls(path), None

    def close(self) -> None:
        """What was not saved is gone."""
        self._connection.close()

    # --- tables

    def table(
        self, name: bytes, encode: Callable[[V], bytes], decode: Callable[[bytes], V], bound: int
    ) -> "Table[V]":
        """A table of at most about `bound` values in memory. `name` is one byte, its own."""
        table = Table(self, name, encode, decode, bound)
        self.add(table)
        return table

    def add(self, part: Part) -> None:
        self._parts.append(part)

    def trim(self) -> None:
        """Bound the memory. Between events only: values are objects, and after this call they are others."""
        for part in self._parts:
            part.trim()

    def save(self, note: bytes) -> None:
        """Make everything durable, together with `note`."""
        for part in self._parts:
            part.flush()
        self._saved = (self._count, self._total)
        self._commit(note)

    def amend(self, note: bytes) -> None:
        """Exchange the note of the last `save`. What came after it is gone, as is what the tables hold."""
        self._connection.execute("ROLLBACK")
        self._connection.execute("BEGIN IMMEDIATE")
        self._count, self._total = self._saved
        self._commit(note)

    def _commit(self, note: bytes) -> None:
        head = msgspec.msgpack.encode(_Head(self._count, self._total.to_bytes(16), note))
        value = hashlib.sha256(head).digest() + head
        self._connection.execute("INSERT OR REPLACE INTO head VALUES (0, ?)", (value,))
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN IMMEDIATE")

    # --- rows

    def get(self, key: bytes) -> bytes | None:
        if not self._written[hash(key) & _SLOT]:
            return None
        row = self._connection.execute("SELECT value FROM rows WHERE key = ?", (key,)).fetchone()
        return row[0] if row is not None else None

    def get_all(self, name: bytes, of: Collection[bytes]) -> dict[bytes, bytes]:
        """The rows that the table of that name has under any of these keys, by name and key."""
        found: dict[bytes, bytes] = {}
        written = self._written
        if name[0] not in self._names:
            return found
        keys = [key for some in of if written[hash(key := name + some) & _SLOT]]
        for at in range(0, len(keys), _AT_ONCE):
            some = keys[at : at + _AT_ONCE]
            some += some[:1] * (_AT_ONCE - len(some))
            found.update(self._connection.execute(_ANY, some).fetchall())
        return found

    def any(self, name: bytes, keys: Collection[bytes]) -> bool:
        """Whether the table of that name has a row under any of these keys."""
        return bool(self.get_all(name, keys))

    def write(self, rows: list[tuple[bytes, bytes | None]]) -> None:
        """Put each value under its key; None takes the row away."""
        rows.sort(key=lambda row: row[0])  # neighbours share pages
        if self._kept:
            for key, value in rows:
                self._account(key, self.get(key), -1)
                self._account(key, value, 1)
        run = self._connection.executemany
        run("INSERT OR REPLACE INTO rows VALUES (?, ?)", [row for row in rows if row[1] is not None])
        run("DELETE FROM rows WHERE key = ?", [row[:1] for row in rows if row[1] is None])
        for key, _ in rows:
            self._written[hash(key) & _SLOT] = 1
            self._names.add(key[0])

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows whose keys begin with `prefix`, in the order of their keys."""
        query = "SELECT key, value FROM rows WHERE key >= ? AND key < ? ORDER BY key"
        end = (int.from_bytes(prefix) + 1).to_bytes(len(prefix))
        return iter(self._connection.execute(query, (prefix, end)))

    def _account(self, key: bytes, value: bytes | None, sign: int) -> None:
        if value is not None:
            self._total = (self._total + sign * _digest(key, value)) % _SUM
            self._count += sign

    def _verified(self) -> bytes | None:
        """The note, when every row is there as it was saved. Raises StoreDamaged."""
        try:
            head = self._connection.execute("SELECT value FROM head").fetchone()
            if head is None:
                raise StoreDamaged("nothing was saved")
            if hashlib.sha256(head[0][32:]).digest() != head[0][:32]:
                raise StoreDamaged("the head is damaged")
            known = msgspec.msgpack.decode(head[0][32:], type=_Head)
            for key, value in self._connection.execute("SELECT key, value FROM rows"):
                self._account(key, value, 1)
                self._written[hash(key) & _SLOT] = 1
                self._names.add(key[0])
        except (sqlite3.DatabaseError, msgspec.MsgspecError, TypeError, UnicodeDecodeError) as e:
            raise StoreDamaged(str(e)) from e
        if (self._count, self._total.to_bytes(16)) != (known.count, known.total):
            raise StoreDamaged("the rows are not those that were saved")
        self._saved = (self._count, self._total)
        return known.note


class _Elsewhere:
    """In place of a value that is not in memory."""


_ELSEWHERE: Final = _Elsewhere()


class Table(Generic[V]):
    """Values by key, the latest used in memory. Made by `Store.table`."""

    def __init__(
        self,
        store: Store,
        name: bytes,
        encode: Callable[[V], bytes],
        decode: Callable[[bytes], V],
        bound: int,
    ) -> None:
        self._store = store
        self._name = name
        self._encode = encode
        self._decode = decode
        self._bound = bound
        self._cache: dict[bytes, V | None] = {}
        self._changed: set[bytes] = set()

    def get(self, key: bytes) -> V | None:
        known = self._cache.get(key, _ELSEWHERE)
        if not isinstance(known, _Elsewhere):
            return known
        data = self._store.get(self._name + key)
        if data is None:
            return None
        value = self._cache[key] = self._decode(data)
        return value

    def __contains__(self, key: bytes) -> bool:
        return self.get(key) is not None

    def put(self, key: bytes, value: V) -> None:
        self._cache[key] = value
        self._changed.add(key)

    def put_all(self, rows: Mapping[bytes, V]) -> None:
        self._cache.update(rows)
        self._changed.update(rows)

    def any(self, keys: Collection[bytes]) -> bool:
        """Whether there is a value under any of these keys."""
        cache, name = self._cache, self._name
        if cache.keys().isdisjoint(keys):
            return self._store.any(name, keys)
        return any(self.get(key) is not None for key in keys)

    def remove(self, key: bytes) -> None:
        self._cache[key] = None
        self._changed.add(key)

    def items(self) -> Iterator[tuple[bytes, V]]:
        """All there are, by key."""
        self.flush()
        for key, data in list(self._store.scan(self._name)):
            yield key[1:], self._decode(data)

    def flush(self) -> None:
        if self._changed:
            self._write(self._changed)
            self._changed.clear()

    def trim(self) -> None:
        if len(self._cache) > self._bound:
            oldest = list(islice(self._cache, len(self._cache) - self._bound // 2))
            written = self._changed.intersection(oldest)
            if written:
                self._write(written)
                self._changed -= written
            for key in oldest:
                del self._cache[key]

    def _write(self, keys: Iterable[bytes]) -> None:
        name, encode, cache = self._name, self._encode, self._cache
        rows = [(name + key, None if (v := cache[key]) is None else encode(v)) for key in keys]
        self._store.write(rows)


def discard(path: Path) -> None:
    """Remove a store's files."""
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm"), Path(f"{path}-journal")):
        with suppress(FileNotFoundError):
            name.unlink()


def _digest(key: bytes, value: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key + value, digest_size=16, salt=len(key).to_bytes(16)).digest())


def _told(error: sqlite3.DatabaseError, path: Path | None) -> Exception:
    """Whether the file is damaged, or something else keeps this program from it: then it stays as it is."""
    if path is None:
        return error
    code = error.sqlite_errorcode & 0xFF  # above are the kinds of it
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(f"another audit is using {path}")
    return StoreBusy(f"{path}: {error}") if code in _NOT_THE_FILE else StoreDamaged(str(error))


def number_key(number: int) -> bytes:
    """Any integer that an event can hold, as a key."""
    return number.to_bytes(9, signed=True)
