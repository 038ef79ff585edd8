"""`streamrp2p up`: the whole hub in the foreground, until Ctrl-C.

Invariant: the hub is called up only when all of it is ready; secrets of the first run are shown once, on the terminal,
whether or not the start succeeds, and never in a log.
"""

import http.client
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import structlog
import typer

from hub.embedded.home import take_lock
from hub.heartbeats import HEARTBEATS_FOLDER, Heartbeats
from hub.logs import configure_logging
from hub.ports import listen_on, require_free_port
from hub.settings import Settings, load_settings, unknown_variables
from hub.supervisor import Program, Supervisor

NAME = "streamrp2p"
SETUP_TIMEOUT_S = 300.0  # a migration of a large database is part of it
_log = structlog.get_logger("hub.up")

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def up() -> None:
    """Run the hub: database, RTMP, HLS, API and pages. Settings: STREAMRP2P_* variables, see docs/operators.md."""
    settings = load_settings()
    configure_logging(json=settings.log_json, level=settings.log_level)
    for line in unknown_variables():
        _log.warning(line)
    settings.rtmps_context()  # a certificate that cannot be used is told now, not by an origin that never comes up
    settings.prepare_data_dir()
    lock = take_lock(settings.data_dir, "the hub")
    try:
        require_free_port(settings.rtmp_host, settings.rtmp_port, use="RTMP", setting="STREAMRP2P_RTMP_PORT")
        require_free_port(settings.http_host, settings.http_port, use="HTTP", setting="STREAMRP2P_HTTP_PORT")
        if settings.rtmps_port is not None:
            require_free_port(
                settings.rtmp_host, settings.rtmps_port, use="RTMPS", setting="STREAMRP2P_RTMPS_PORT"
            )
        with Supervisor() as supervisor:
            _run(settings, supervisor)
    finally:
        settings.runtime_path.unlink(missing_ok=True)
        os.close(lock)


def _run(settings: Settings, supervisor: Supervisor) -> None:
    if not _start_servers(settings, supervisor):
        return
    setup = supervisor.step([sys.executable, "-m", "hub.setup"], timeout_s=SETUP_TIMEOUT_S)
    if setup is None:
        return
    told = json.loads(setup)
    Heartbeats(settings.data_dir / HEARTBEATS_FOLDER).void()
    here = {"STREAMRP2P_DATA_DIR": str(settings.data_dir.absolute())}
    # Held here, so that encoders and players who come while the origin starts again wait a moment: VLC gives a stream
    # up for good after three refusals.
    rtmp = listen_on(settings.rtmp_host, settings.rtmp_port)
    http = listen_on(settings.http_host, settings.http_port)
    rtmps = listen_on(settings.rtmp_host, settings.rtmps_port) if settings.rtmps_port is not None else []
    origin = Program(
        "origin",
        [sys.executable, "-m", "hub.origin", _numbers(rtmp), _numbers(http), _numbers(rtmps)],
        lambda: _http_answers(settings),
        here,
        pass_fds=tuple(s.fileno() for s in (*rtmp, *http, *rtmps)),
        stop_patience_s=6.0,  # a second, but for a ledger that is slow and players that take nothing
    )
    worker = Program("worker", [sys.executable, "-m", "hub.worker"], environment=here)
    complete = False
    try:
        complete = supervisor.start(origin) and supervisor.start(worker)
    finally:  # what the first run made is told even when the start fails: it is never shown again
        typer.echo(welcome(settings, told, complete=complete))
        sys.stdout.flush()
    supervisor.run()


def _numbers(sockets: list[socket.socket]) -> str:
    return ",".join(str(s.fileno()) for s in sockets)


def _start_servers(settings: Settings, supervisor: Supervisor) -> bool:
    """Postgres and Valkey, where no external one is set; then everybody can find them."""
    servers = {"pid": str(os.getpid())}
    if settings.database_url is None:
        from hub.embedded.postgres import EmbeddedPostgres  # with an external one, not even imported

        postgres = EmbeddedPostgres(settings.data_dir / "postgres")
        if not supervisor.start(postgres):
            return False
        servers["database_url"] = postgres.url
    if settings.redis_url is None:
        from hub.embedded.valkey import EmbeddedValkey

        valkey = EmbeddedValkey(settings.data_dir / "valkey")
        if not supervisor.start(valkey):
            return False
        servers["redis_url"] = valkey.url
    write_private(settings.runtime_path, json.dumps(servers))
    return not supervisor.stopping


def write_private(path: Path, text: str) -> None:
    """Replace `path` in one step; readable by its owner alone."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def _http_answers(settings: Settings) -> bool:
    host = "127.0.0.1" if settings.http_host == "0.0.0.0" else settings.http_host  # noqa: S104
    connection = http.client.HTTPConnection("::1" if host == "::" else host, settings.http_port, timeout=0.5)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def welcome(settings: Settings, told: dict[str, str | None], *, complete: bool = True) -> str:
    """What to do next, for each person, and where the pages are. `told` is hub.bootstrap.FirstRun.

    In place of a secret that an earlier start showed, or died before it could show, stands the command that makes a
    new one.
    """
    if not complete and not told["operator_token"]:
        return ""
    slug, base = told["stream_slug"], settings.base_url
    headline = "StreamrP2P is up." if complete else "StreamrP2P is NOT up. Keep what the first run made:"

    def once(name: str, before: str, lost: str, new: str) -> str:
        """The secret with what stands before it; or, when it is not known (any more), the command for a new one."""
        return (
            f"{before}{told[name]}   (shown once: keep it)"
            if told[name]
            else f"{lost}a new one: streamrp2p {new})"
        )

    was = "(was shown once; "
    key = once("stream_key", "", was, f"stream key {slug}")
    page = f"{base}/creator"
    creator = once("creator_token", f"{page}#", f"{page}   (its link {was[1:]}", f"stream token {slug}")
    page = f"{base}/operator"
    operator = once("operator_token", f"{page}#", f"{page}   (its token {was[1:]}", "token create")
    lines = [
        *("", headline, ""),
        "  Creator: in OBS, Settings > Stream, Service: Custom",
        f"    Server      {settings.rtmp_server}",
        f"    Stream Key  {key}",
        f"    your page   {creator}",
        *("", "  Viewers"),
        f"    browser     {base}/watch/{slug}",
        f"    VLC         {base}/live/{slug}.m3u8",
        "",
    ]
    if told["invite_code"]:
        lines.append("  A friend joins with")
        lines.append(f"    streamrp2p node run {base} {told['invite_code']}")
        lines.append("  and reads their balance here (shown once: keep it)")
        lines.append(f"    {base}/friend#{told['friend_token']}")
    else:
        lines.append("  Friends")
        lines.append("    invited by  streamrp2p invite NAME")
        lines.append(f"    balance     {base}/friend")
    lines += ["", "  Operator", f"    page        {operator}"]
    if told["operator_token"]:
        lines.append(f"    API token   {told['operator_token']}")
    lines += ["", "  Anyone", f"    the log     {base}/audit", f"    audit it    streamrp2p audit {base}/log"]
    if complete:
        lines += ["", f"Stop with Ctrl-C. Commands are typed in a second terminal{_here()}."]
    return "\n".join([*lines, ""])


def _here() -> str:
    """How a shell finds the command, when not by its bare name."""
    return "" if shutil.which(NAME) or Path(sys.argv[0]).name != NAME else f"; {NAME} is {sys.argv[0]}"
