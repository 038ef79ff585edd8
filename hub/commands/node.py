"""`streamrp2p node`: join a crew and carry its stream. Runs on the plain install, without any of the hub's packages.

Invariant: what is printed on stdout is data (or, with --json, one JSON object); an error says what to do next.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer

from hub.logs import configure_logging
from hub.own_node import own_status
from hub.service_unit import Unit, install, own_command
from hub.settings import load_settings
from ledger.money import decimal_text
from relay.node.hub_client import HubError, clocks_apart
from relay.node.identity import (
    IdentityError,
    Profile,
    load_profile,
    save_profile,
)
from relay.node.server import Tls
from relay.node.service import MIB, Options, Started, join, serve

app = typer.Typer(
    help="Join a crew and carry its stream (for friends).",
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_T = TypeVar("_T")
_EXIT_BY_STATUS: Final = {401: 3, 403: 3, 404: 4, 409: 3, 422: 2}

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Where the node's key and receipts are kept (default: STREAMRP2P_DATA_DIR)."
    ),
]
Name = Annotated[
    str | None, typer.Option(help="What the crew calls this node (default: this computer's name).")
]
Port = Annotated[
    int | None, typer.Option(min=1, max=65_535, help="TCP port viewers reach this node on (default: 8100).")
]
PublicUrl = Annotated[
    str | None,
    typer.Option(
        help="How viewers reach this node, such as https://me.example.org (default: seen by the hub)."
    ),
]
CacheMib = Annotated[int, typer.Option(min=16, max=65_536, help="Memory for segments, in MiB.")]
UploadLimit = Annotated[float | None, typer.Option(min=0.1, help="At most this many Mbit/s upload.")]
MapPort = Annotated[
    bool, typer.Option(help="Ask the home router (PCP, NAT-PMP, UPnP) to lead the port here.")
]
PagePort = Annotated[
    int,
    typer.Option(
        min=1, max=65_535, help="Port of this node's own page on this computer, or one of the next."
    ),
]
Page = Annotated[bool, typer.Option(help="Show the page on http://127.0.0.1.")]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", help="Certificate chain (PEM): viewers come by https.")
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="The certificate's private key (PEM).")]
SendInterval = Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between batches of receipts.")]
Host = Annotated[str, typer.Option(help="Address to listen on (default: all).")]
AnyPort = Annotated[
    int | None,
    typer.Option(min=0, max=65_535, help="Listen on this port (default: as joined, 8100; 0: any free)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class NodeError(Exception):
    """Shown to the friend as it is."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@app.command("join")
def join_command(
    hub_url: Annotated[str, typer.Argument(help="The hub, such as https://live.example.org")],
    code: Annotated[str, typer.Argument(help="The invite code you were given.")],
    name: Name = None,
    port: Port = None,
    public_url: PublicUrl = None,
    data_dir: DataDir = None,
    run: Annotated[bool, typer.Option("--run", help="Start serving at once.")] = False,
    as_json: Json = False,
) -> None:
    """Make this computer a node of a crew. Safe to repeat."""
    folder = _folder(data_dir)
    profile = _join(folder, hub_url, code, name, port, public_url)
    _tell_joined(profile, as_json)
    if run:
        _run(folder, Options())


@app.command("run")
def run_command(
    hub_url: Annotated[str | None, typer.Argument(help="Join this hub first.")] = None,
    code: Annotated[str | None, typer.Argument(help="The invite code, with the hub.")] = None,
    name: Name = None,
    port: AnyPort = None,
    host: Host = "",
    public_url: PublicUrl = None,
    cache_mib: CacheMib = 256,
    upload_limit: UploadLimit = None,
    map_port: MapPort = True,
    page: Page = True,
    page_port: PagePort = 8180,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    send_interval: SendInterval = 5.0,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Serve until Ctrl-C."""
    folder = _folder(data_dir)
    if hub_url is not None:
        if code is None:
            raise NodeError("joining needs the invite code too: streamrp2p node run HUB_URL CODE", 2)
        _join(folder, hub_url, code, name, port, public_url)
    else:
        profile = _joined(folder)
        if public_url is not None:
            save_profile(folder, msgspec.structs.replace(profile, public_url=_trimmed(public_url)))
    options = Options(
        host=host,
        port=port,
        cache_bytes=cache_mib * MIB,
        send_interval_s=send_interval,
        upload_limit_mbit_s=upload_limit,
        map_port=map_port,
        page_port=page_port if page else None,
        tls=_tls(folder, tls_cert, tls_key),
    )
    _run(folder, options, as_json=as_json)


@app.command("status")
def status_command(data_dir: DataDir = None, as_json: Json = False) -> None:
    """What the running node is doing, and what it has earned."""
    folder = _folder(data_dir)
    profile = _joined(folder)
    health = _guard(lambda: own_status(folder))
    if health is None:
        raise NodeError("the node is not running: start it with `streamrp2p node run`", 10)
    if health.get("node_id") != profile.node_id or "receipts" not in health:
        raise NodeError("something else answers on this node's port", 1)
    typer.echo(msgspec.json.encode(health).decode() if as_json else _describe(health))


@app.command("install-service")
def install_service_command(
    user: Annotated[bool, typer.Option("--user", help="For your own account, without root.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the service file, change nothing.")
    ] = False,
    port: AnyPort = None,
    cache_mib: CacheMib = 256,
    upload_limit: UploadLimit = None,
    map_port: MapPort = True,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    data_dir: DataDir = None,
) -> None:
    """Start the node with this computer (Linux with systemd)."""
    folder = _folder(data_dir)
    profile = _joined(folder)
    tls = _tls(folder, tls_cert, tls_key)
    words = ["node", "run", "--data-dir", str(folder.parent.absolute()), "--cache-mib", str(cache_mib)]
    if port is not None:
        words += ["--port", str(port)]
    if upload_limit is not None:
        words += ["--upload-limit", str(upload_limit)]
    if not map_port:
        words.append("--no-map-port")
    if tls is not None:
        words += ["--tls-cert", str(tls.certificate.absolute()), "--tls-key", str(tls.key.absolute())]
    try:
        unit = Unit(
            (*own_command(), *words),
            folder.parent.absolute(),
            profile.hub_url,
            cache_mib,
            None if user else folder.owner(),
        )
        if dry_run:
            typer.echo(unit.text(), nl=False)
        else:
            typer.echo(install(unit))
    except (OSError, KeyError, ValueError, NotImplementedError) as e:  # the last: no accounts, on Windows
        raise NodeError(f"the service cannot be installed: {e}", 1) from e


def _folder(data_dir: Path | None) -> Path:
    settings = load_settings()
    configure_logging(json=settings.log_json, level=settings.log_level)
    for name in ("httpx2", "httpcore2"):  # they log every request
        logging.getLogger(name).setLevel(logging.WARNING)
    return (data_dir or settings.data_dir) / "node"


def _join(
    folder: Path, hub_url: str, code: str, name: str | None, port: int | None, public_url: str | None
) -> Profile:
    """The invite's line is typed again and again: what it does not say stays as it was."""
    if not hub_url.startswith(("http://", "https://")):
        raise NodeError(f"the hub's address starts with http:// or https://, not {hub_url!r}", 2)
    known = _guard(lambda: load_profile(folder))
    called = (name or (known.name if known else socket.gethostname()) or "node")[:80]
    reached = _trimmed(public_url) or (known.public_url if known else None)
    port = port or (known.port if known else 8100)
    try:
        return asyncio.run(join(folder, hub_url, code.strip(), name=called, port=port, public_url=reached))
    except HubError as e:
        raise NodeError(_why_not_joined(e), 10 if e.transient else _EXIT_BY_STATUS.get(e.status, 1)) from e
    except (IdentityError, OSError) as e:
        raise NodeError(str(e), 1) from e


def _joined(folder: Path) -> Profile:
    profile: Profile | None = _guard(lambda: load_profile(folder))
    if profile is None:
        raise NodeError("this node has not joined a hub yet: run `streamrp2p node run HUB_URL CODE`", 4)
    return profile


def _tls(folder: Path, certificate: Path | None, key: Path | None) -> Tls | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise NodeError("TLS needs both --tls-cert and --tls-key", 2)
    profile = _guard(lambda: load_profile(folder))
    if profile is not None and not (profile.public_url or "").startswith("https://"):
        raise NodeError(
            "with a certificate, say the name it is for: --public-url https://me.example.org:8100", 2
        )
    return Tls(certificate, key)


def _trimmed(url: str | None) -> str | None:
    if url is None:
        return None
    if not url.startswith(("http://", "https://")):
        raise NodeError(f"--public-url starts with http:// or https://, not {url!r}", 2)
    return url.rstrip("/")


def _why_not_joined(error: HubError) -> str:
    if error.status == 0:
        return f"cannot reach the hub: {error}. Check the address, then try again"
    if error.status == 409:
        return f"the invite code does not work: {error}. Ask the creator for a new one"
    if error.status == 404:
        return f"there is no hub at this address: {error}"
    return f"the hub did not let this node join: {error}"


def _run(folder: Path, options: Options, *, as_json: bool = False) -> None:
    try:
        _run_loop(_serve(folder, options, as_json))
    except* (IdentityError, HubError) as group:
        raise NodeError(str(group.exceptions[0]), 1) from None
    except* OSError as group:
        raise NodeError(f"cannot run: {group.exceptions[0]}", 1) from None


def _run_loop(main: Coroutine[Any, Any, _T]) -> _T:
    if sys.platform != "win32":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    return asyncio.run(main)


async def _serve(folder: Path, options: Options, as_json: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    else:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the last: its terminal is closed
            loop.add_signal_handler(number, stop.set)

    def ready(started: Started) -> None:
        profile, page = started.profile, None
        if started.page_port is not None:
            page = f"http://127.0.0.1:{started.page_port}/"
        told = {
            "node_id": profile.node_id,
            "name": profile.name,
            "hub_url": profile.hub_url,
            "port": started.port,
            "page_url": page,
        }
        line = f"{profile.name} is carrying for {profile.hub_url} on port {started.port}. Thank you!"
        line += f"\nSee it work: {page} (Ctrl-C stops)" if page else " (Ctrl-C stops)"
        typer.echo(msgspec.json.encode(told).decode() if as_json else line)
        sys.stdout.flush()

    await serve(folder, options, stop, ready=ready)


def _guard(load: Any) -> Any:
    try:
        return load()
    except (IdentityError, OSError) as e:
        raise NodeError(str(e), 1) from e


def _tell_joined(profile: Profile, as_json: bool) -> None:
    if as_json:
        told = {"node_id": profile.node_id, "friend_id": profile.friend_id, "hub_url": profile.hub_url}
        typer.echo(msgspec.json.encode(told).decode())
    else:
        typer.echo(f"Joined {profile.hub_url} as {profile.name} (node {profile.node_id}).")


def _describe(health: dict[str, Any]) -> str:
    hub, traffic, receipts, earned = health["hub"], health["traffic"], health["receipts"], health["earned"]
    verdicts = (
        ", ".join(f"{count} {name}" for name, count in sorted(receipts["verdicts"].items())) or "none yet"
    )
    lines = [
        f"{health['name']}: helping {health['viewers']} viewer{'' if health['viewers'] == 1 else 's'} now",
        f"hub        {hub['url']}: {hub['node_status']}"
        + (f", {hub['reason']}" if hub.get("reason") else "")
        + (f" ({hub['error']})" if hub["error"] else ""),
        *_clock(hub.get("clock_ahead_s", 0)),
        f"uploaded   {traffic['uploaded_bytes'] / 1e9:.3f} GB in {traffic['segments']} segments since start",
        f"receipts   {receipts['waiting']} waiting; answered: {verdicts}",
        f"port       {_port(health['port'])}",
        f"credited   {receipts['units']} segments, {receipts['credited_bytes']} bytes since start",
    ]
    if earned is not None:
        parts = (
            (earned["pending_micro"], "pending"),
            (earned["available_micro"], "available"),
            (earned["in_flight_micro"], "on its way"),
            (earned["paid_micro"], "paid"),
        )
        unit = f" ({earned['unit']})" if earned["unit"] else ""
        lines.append(
            "earned     " + ", ".join(f"{decimal_text(amount)} {what}" for amount, what in parts) + unit
        )
        if earned["estimate_micro"] is not None:
            lines.append(f"           about {decimal_text(earned['estimate_micro'])} more is not settled yet")
    return "\n".join(lines)


def _clock(hub_ahead_s: int) -> list[str]:
    if not hub_ahead_s:
        return []
    return [f"clock      {clocks_apart(hub_ahead_s)}. It costs you nothing; is automatic time on?"]


def _port(port: dict[str, Any]) -> str:
    if port["problem"]:
        return f"{port['public']}: {port['problem']}"
    return f"{port['public']}" + (
        f", opened in your router by {port['opened_by']}" if port["opened_by"] else ""
    )
