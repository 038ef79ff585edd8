"""The operator's hub: settings, disk, ports, what it says of itself, and its public name."""

import json
import os
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx2

from hub.doctor import Finding, State, answers, certificate, folder, port_free
from hub.settings import Settings, SettingsError, unknown_variables

FREE_BYTES_MIN: Final = 1_000_000_000


def is_here(settings: Settings) -> bool:
    """A hub was started with these settings before."""
    return settings.runtime_path.exists() or (settings.data_dir / "postgres").is_dir()


def examine(settings: Settings) -> Iterator[Finding]:
    for line in unknown_variables():
        yield Finding("settings", State.WARN, line)
    yield folder(settings.data_dir, free_bytes_min=FREE_BYTES_MIN)
    running = _is_running(settings)
    yield (
        Finding("hub", State.OK, "it runs")
        if running
        else Finding("hub", State.WARN, "it does not run", "streamrp2p up")
    )
    yield from _ports(settings, running=running)
    if running:
        yield from _ready(settings)
    yield from _public(settings)
    yield from _rtmps(settings, running=running)


def _is_running(settings: Settings) -> bool:
    try:
        os.kill(int(json.loads(settings.runtime_path.read_bytes())["pid"]), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _ports(settings: Settings, *, running: bool) -> Iterator[Finding]:
    ports = [
        ("RTMP", settings.rtmp_host, settings.rtmp_port),
        ("HTTP", settings.http_host, settings.http_port),
    ]
    if settings.rtmps_port is not None:
        ports.append(("RTMPS", settings.rtmp_host, settings.rtmps_port))
    for name, host, port in ports:
        if running:
            yield answers(name, _reachable(host), port, advice="see the hub's log")
        else:
            advice = f"end the program that has it, or set STREAMRP2P_{name}_PORT"
            yield port_free(name, host, port, advice=advice)


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


def _ready(settings: Settings) -> Iterator[Finding]:
    host = _reachable(settings.http_host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.http_port}/api/ready"
    try:
        checks: dict[str, Any] = httpx2.get(url, timeout=10.0, trust_env=False).json()["checks"]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError) as e:
        yield Finding("ready", State.FAIL, f"the hub does not say: {e}", "see the hub's log")
        return
    for name, said in checks.items():
        bad = State.WARN if name == "valkey" else State.FAIL
        yield Finding(
            name, State.OK if said == "ok" else bad, str(said), "" if said == "ok" else "see the hub's log"
        )


def _public(settings: Settings) -> Iterator[Finding]:
    if settings.public_url is None:
        yield Finding(
            "public name",
            State.WARN,
            f"friends and viewers are told {settings.base_url}",
            "set STREAMRP2P_PUBLIC_URL when they come from outside your network",
        )
        return
    trusted = certificate("certificate", settings.public_url, now_s=time.time())
    if trusted is not None:
        yield trusted
    try:
        status = httpx2.get(f"{settings.public_url}/api/health", timeout=10.0).status_code
    except (httpx2.HTTPError, httpx2.InvalidURL) as e:
        said = f"{settings.public_url} does not answer from this machine: {e}"
        yield Finding(
            "public name", State.WARN, said, "check it from outside: some routers do not lead back in"
        )
        return
    state = State.OK if status == 200 else State.FAIL
    advice = "" if status == 200 else "is that name this hub's?"
    yield Finding("public name", state, f"{settings.public_url} answers {status}", advice)


def _rtmps(settings: Settings, *, running: bool) -> Iterator[Finding]:
    try:
        if settings.rtmps_context() is None:
            return
    except SettingsError as e:
        yield Finding(
            "RTMPS certificate", State.FAIL, str(e), "set STREAMRP2P_RTMPS_CERT and _KEY to PEM files"
        )
        return
    if running and settings.rtmps_port is not None:
        at = (_reachable(settings.rtmp_host), settings.rtmps_port)
        url = f"https://{settings.public_host}"
        trusted = certificate("RTMPS certificate", url, connect_to=at, now_s=time.time())
        if trusted is not None:
            yield trusted
