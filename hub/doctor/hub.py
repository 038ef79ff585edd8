"""The operator's hub: settings, disk, ports, what it says of itself, and its public name."""

import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx2

from hub.doctor import Finding, State, answers, certificate, folder, port_free
from hub.settings import Settings, SettingsError, unknown_variables

FREE_BYTES_MIN: Final = 1_000_000_000
_FORWARDED: Final = re.compile(
    r'^streamrp2p_forwarded_requests_total\{believed="(\w+)"\} (\S+)$', re.MULTILINE
)


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
    yield _proxies(settings, running=running)
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


def _asked(settings: Settings, path: str) -> httpx2.Response:
    """What the running hub itself answers, past whatever stands before it. Raises httpx2.HTTPError."""
    host = _reachable(settings.http_host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.http_port}{path}"
    return httpx2.get(url, timeout=10.0, trust_env=False)


def _ready(settings: Settings) -> Iterator[Finding]:
    try:
        checks: dict[str, Any] = _asked(settings, "/api/ready").json()["checks"]
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


def _proxies(settings: Settings, *, running: bool) -> Finding:
    """Comes after `_public`, which has asked by the public name: through the proxy, when there is one."""
    check = "proxies"
    said = f"X-Forwarded-For is believed from {settings.trusted_proxies.replace(',', ', ')}"
    if not running:
        return Finding(check, State.OK, said)
    try:
        metrics = _asked(settings, "/metrics").text
    except httpx2.HTTPError as e:
        return Finding(check, State.SKIP, f"{said}; the hub does not say what came: {e}")
    counts = {believed: float(count) for believed, count in _FORWARDED.findall(metrics)}
    if others := counts.get("no"):
        return Finding(
            check,
            State.WARN,
            f"{said}; not so what came from elsewhere, {others:.0f} times: the log names one address a minute",
            "is one of them a proxy of yours? Name it in STREAMRP2P_TRUSTED_PROXIES",
        )
    if settings.base_url.startswith("https://") and not counts:
        return Finding(
            check,
            State.WARN,
            f"{said}; it came with no request yet, though {settings.base_url} leads through a proxy",
            "let the proxy set it: without, all viewers seem to be in one network, and caps go by networks",
        )
    return Finding(check, State.OK, said)


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
