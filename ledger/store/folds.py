"""Kept folds: what a long fold came to, so that a start reads only what came after.

Invariant: a fold is given back only when it was made by exactly this program, is whole, and rests on the log as it is
now: the event before its position still has the bytes it had. Everything else counts as not there, and the caller folds
the events again. Nothing is lost with this table.
"""

import hashlib
import io
import pickle
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import UUID, SafeUUID

import msgspec
import structlog
from eventsourcing.persistence import PersistenceError
from msgspec._utils import rebuild  # type: ignore[attr-defined]
from psycopg.rows import tuple_row
from psycopg.sql import SQL, Identifier

import ledger
from ledger.aggregates.base import Aggregate
from ledger.store.database import Datastore
from ledger.store.outage import outage

MAX_STATE_BYTES: Final = 256 * 2**20
_CONTAINERS: Final = {
    c.__qualname__: c for c in (OrderedDict, defaultdict, deque, set, frozenset, list, dict)
}
_OTHERS: Final = {
    ("uuid", "UUID"): UUID,
    ("uuid", "SafeUUID"): SafeUUID,
    ("msgspec._utils", "rebuild"): rebuild,
}
_FOLDS: Final = frozenset({("ledger.services.credit_index", "CreditIndex")})

log = structlog.get_logger()


@cache
def shape() -> bytes:
    """SHA-256 over the sources of the ledger: another program may mean something else by the same state."""
    digest = hashlib.sha256()
    folder = Path(ledger.__path__[0])
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()


class Folds:
    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore
        schema = Identifier(datastore.schema)
        self._get = SQL("SELECT shape, position, anchor, digest, state FROM {}.folds WHERE name = %b").format(
            schema
        )
        self._put = SQL(
            "INSERT INTO {0}.folds AS f (name, shape, position, anchor, digest, state) VALUES (%b, %b, %b, %b, %b, %b)"
            " ON CONFLICT (name) DO UPDATE SET shape = excluded.shape, position = excluded.position,"
            " anchor = excluded.anchor, digest = excluded.digest, state = excluded.state"
            " WHERE f.position < excluded.position OR f.shape <> excluded.shape OR f.anchor <> excluded.anchor"
        ).format(schema)

    def recall(self, name: str, anchor_at: Callable[[int], bytes | None]) -> tuple[int, Any] | None:
        """(position, state), or None. `anchor_at` gives the bytes of the event that the fold took in last.

        Never raises for what is wrong with the row; what `anchor_at` raises is the caller's.
        """
        try:
            with (
                self._datastore.get_connection() as connection,
                connection.cursor(row_factory=tuple_row) as cursor,
            ):
                row = cursor.execute(self._get, (name,), binary=True).fetchone()
        except PersistenceError as e:
            outage.symptom(log, "fold.not_read", name=name, error=str(e))
            return None
        if row is None or row[0] != shape():
            return None
        _, position, anchor, digest, state = row
        last = anchor_at(position)
        if (
            last is None
            or hashlib.sha256(last).digest() != anchor
            or hashlib.sha256(state).digest() != digest
        ):
            log.warning("fold.does_not_fit", name=name, position=position)
            return None
        try:
            return position, _Reader(io.BytesIO(state)).load()
        except Exception as e:
            log.warning("fold.damaged", name=name, error=repr(e))
            return None

    def keep(self, name: str, position: int, last: bytes, state: Any) -> None:
        """Remember `state`, the fold of what is before `position`; `last` are the bytes of its last event."""
        data = pickle.dumps(state, protocol=5)
        if len(data) > MAX_STATE_BYTES:
            log.warning("fold.too_large", name=name, state_bytes=len(data))
            return
        anchor, digest = hashlib.sha256(last).digest(), hashlib.sha256(data).digest()
        try:
            with self._datastore.get_connection() as connection:
                connection.execute(self._put, (name, shape(), position, anchor, digest, data))
        except PersistenceError as e:
            outage.symptom(log, "fold.not_kept", name=name, error=str(e))


class _Reader(pickle.Unpickler):
    """Makes plain data of the ledger and standard containers, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "collections") and name in _CONTAINERS:
            return _CONTAINERS[name]
        if (module, name) in _OTHERS:
            return _OTHERS[module, name]
        if module.startswith("ledger."):
            found = super().find_class(module, name)
            if isinstance(found, type) and (
                is_dataclass(found)
                or issubclass(found, msgspec.Struct | Aggregate | Enum)
                or (module, name) in _FOLDS
            ):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a kept fold")
