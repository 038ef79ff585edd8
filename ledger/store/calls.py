"""The call that appends, made over and over: on a connection kept for it, as a statement prepared by name.

A pool's lending and a cursor's making cost more of the caller's processor than the call itself. Invariant: whatever a
call raises, its connection goes back to the pool, which lends no broken one; what is kept is between two transactions.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from threading import Lock
from typing import Any, Final

import psycopg
from psycopg import generators, pq

Lent = AbstractContextManager[psycopg.Connection[Any]]
_BINARY: Final = pq.Format.BINARY
_FAILED: Final = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE)
_numbers: Final = count()


class Calls:
    """Thread-safe. One connection is kept; who finds it in use is lent another."""

    def __init__(self, lend: Callable[[], Lent], statements: Mapping[bytes, bytes]) -> None:
        """Statements by name, each of which gives one integer; their parameters are $1, $2, ..., in binary formats."""
        number = next(_numbers)  # others may prepare theirs on the same connections
        self._lend = lend
        self._names = {name: b"%s_%d" % (name, number) for name in statements}
        self._statements = statements
        self._kept: list[tuple[Lent, psycopg.Connection[Any]]] = []
        self._closed = False
        self._lock = Lock()

    def call(self, name: bytes, params: Sequence[bytes]) -> int:
        """What the statement gives. Raises what `lend` makes of psycopg's errors."""
        with self._lock:
            kept = self._kept.pop() if self._kept else None
        lent, connection = kept or self._lent()
        # No ExitStack: an error that leaves one holds itself, and with it all who were about to save.
        try:
            if kept is None:
                self._prepare(connection)
            formats = [_BINARY] * len(params)
            connection.pgconn.send_query_prepared(self._names[name], params, formats, result_format=_BINARY)
            value = _result(connection).get_value(0, 0)
        except BaseException as e:
            lent.__exit__(type(e), e, e.__traceback__)
            raise
        with self._lock:
            if keep := not self._kept and not self._closed:
                self._kept.append((lent, connection))
        if not keep:
            lent.__exit__(None, None, None)
        assert value is not None
        return int.from_bytes(value, signed=True)

    def close(self) -> None:
        """Give back what is kept. Later calls keep nothing."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
        for lent, _ in kept:
            lent.__exit__(None, None, None)

    def _lent(self) -> tuple[Lent, psycopg.Connection[Any]]:
        lent = self._lend()
        return lent, lent.__enter__()

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        # The connection may have been here before, and others may have dropped what they think is theirs alone.
        connection.pgconn.send_query(b"SELECT name FROM pg_prepared_statements")
        result = _result(connection)
        there = {result.get_value(row, 0) for row in range(result.ntuples)}
        for name, statement in self._statements.items():
            if self._names[name] not in there:
                connection.pgconn.send_prepare(self._names[name], statement)
                _result(connection)


def _result(connection: psycopg.Connection[Any]) -> pq.abc.PGresult:
    """Of what was sent. Raises its error."""
    # As psycopg's own cursors do it: nothing that waits for the server holds the interpreter's lock.
    result: pq.abc.PGresult = connection.wait(generators.execute(connection.pgconn))[-1]
    if result.status in _FAILED:
        raise psycopg.errors.error_from_result(result, connection.info.encoding)
    return result
