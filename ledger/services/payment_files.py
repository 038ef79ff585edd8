"""One database, one folder of payment files: those that know what its rails were given.

Invariant: whoever pays, or says what became of payments, does so beside files that know of all that was done with this
database before. Each use is a random id, written into the folder first and then into the database in place of the one
before it. So a folder is the database's when it knows the database's last use: another machine's folder, an older copy
and an empty one do not. A database from an older backup is known to newer files, as it should be (ADR 0038).
"""

from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg

from ledger.rails.journal import Journal

NAME: Final = "uses.journal"


class OtherFilesError(Exception):
    """The payment files are not those that this database was last paid with: what they do not know was perhaps paid."""

    exit_code = 5

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"the payment files in {folder} are not those that this database was last paid with, or older: whatever "
            f"they do not know would be paid again. Work where payouts were made last, or bring the newest of these "
            f"files from there. If they are lost: docs/operators.md, Backup"
        )


def check(connection: psycopg.Connection[Any], folder: Path) -> None:
    """`connection` is on the crew's schema. Changes nothing. Raises OtherFilesError, OSError."""
    _refuse_others(folder, _last_use(connection))


def use(connection: psycopg.Connection[Any], folder: Path, *, use_id: UUID, accept: bool = False) -> None:
    """From now on the database knows these files by `use_id`, a new random one. `connection` commits by itself.

    Others may use the same files at the same time; of two folders at once one is refused. `accept`: also files that do
    not know the last use, because somebody says that there are no others. Raises OtherFilesError, OSError.
    """
    while True:
        last = _last_use(connection)
        if not accept:
            _refuse_others(folder, last)
        Journal(folder / NAME).add(str(use_id), lambda _: {})
        if last is None:
            query = "INSERT INTO payment_files (last_use) VALUES (%s) ON CONFLICT DO NOTHING"
            done = connection.execute(query, (use_id,))
        else:
            query = "UPDATE payment_files SET last_use = %s WHERE last_use = %s"
            done = connection.execute(query, (use_id, last))
        if done.rowcount:
            return


def _refuse_others(folder: Path, last: UUID | None) -> None:
    if last is not None and Journal(folder / NAME).get(str(last)) is None:
        raise OtherFilesError(folder)


def _last_use(connection: psycopg.Connection[Any]) -> UUID | None:
    row = connection.execute("SELECT last_use FROM payment_files").fetchone()
    return None if row is None else row[0]
