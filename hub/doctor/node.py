"""A friend's node, from key to line. Needs no package of the hub."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

import httpx2

from hub.doctor import Finding, State, certificate, folder, port_free
from hub.own_node import own_status
from ledger.keys import KeyPair
from ledger.request import MAX_SKEW_S
from relay.node.hub_client import HubClient, HubError, clocks_apart
from relay.node.identity import IdentityError, Profile, load_or_create_key, load_profile

FREE_BYTES_MIN: Final = 100_000_000
UPLOAD_BYTES: Final = 2 * 1024 * 1024  # what the hub takes
GOOD_MBIT_S: Final = 5.0  # one viewer of an ordinary stream, and some air


def examine(path: Path) -> Iterator[Finding]:
    """The node in this folder (`<data dir>/node`)."""
    yield folder(path, free_bytes_min=FREE_BYTES_MIN)
    try:
        profile, key = load_profile(path), load_or_create_key(path)
    except (IdentityError, OSError) as e:
        yield Finding(
            "identity", State.FAIL, str(e), "restore the folder from a backup, or join with a new invite"
        )
        return
    if profile is None:
        yield Finding(
            "identity", State.FAIL, "this node has not joined a hub", "streamrp2p node join HUB_URL CODE"
        )
        return
    yield Finding("identity", State.OK, f"{profile.name}, node {profile.node_id}")
    yield from _hub(profile)
    status = _own_status(path, profile)
    yield from _listening(profile, status)
    reached = asyncio.run(_reached(profile, key, status))
    yield reached
    if status is not None:
        yield from _router(status["port"], needed=reached.state is not State.OK)
    yield asyncio.run(_line(profile, key))
    if status is not None:
        yield from _standing(status)


def _hub(profile: Profile) -> Iterator[Finding]:
    began_s = time.time()
    try:
        answer = httpx2.get(f"{profile.hub_url}/api/health", timeout=5.0)
    except (httpx2.HTTPError, httpx2.InvalidURL) as e:
        yield Finding(
            "hub",
            State.FAIL,
            f"{profile.hub_url} does not answer: {e}",
            "is your internet line up? Else ask the operator",
        )
        return
    took_s = time.time() - began_s
    if answer.status_code != 200:
        yield Finding(
            "hub", State.FAIL, f"{profile.hub_url} answers {answer.status_code}", "ask the operator"
        )
        return
    yield Finding("hub", State.OK, f"{profile.hub_url} answers in {took_s * 1000:.0f} ms")
    trusted = certificate("hub's certificate", profile.hub_url, now_s=began_s)
    if trusted is not None:
        yield trusted
    with contextlib.suppress(ValueError, KeyError, TypeError):
        yield _clock(parsedate_to_datetime(answer.headers["date"]).timestamp(), began_s + took_s / 2)


def _clock(theirs_s: float, ours_s: float) -> Finding:
    ahead_s = theirs_s + 0.5 - ours_s  # the header has whole seconds
    if abs(ahead_s) >= MAX_SKEW_S / 10:
        advice = (
            "switch on automatic time; where it is on, tell the operator to. It costs you nothing meanwhile"
        )
        return Finding("clock", State.WARN, clocks_apart(ahead_s), advice)
    said = (
        f"this computer's clock is {abs(ahead_s):.0f} s {'behind' if ahead_s > 0 else 'ahead of'} the hub's"
    )
    return Finding("clock", State.OK, said)


def _own_status(path: Path, profile: Profile) -> dict[str, Any] | None:
    """What the running node says of itself; None when it does not run."""
    status = own_status(path)
    mine = status is not None and status.get("node_id") == profile.node_id and "receipts" in status
    return status if mine else None


def _listening(profile: Profile, status: dict[str, Any] | None) -> Iterator[Finding]:
    if status is None:
        advice = "another program has it: end that one, or run with another --port"
        yield Finding("node", State.WARN, "it does not run", "streamrp2p node run")
        yield port_free("port", "", profile.port, advice=advice)
        return
    listening, viewers = status["port"]["listening"], status["viewers"]
    helping = f"{viewers} viewer{'' if viewers == 1 else 's'}"
    yield Finding("node", State.OK, f"runs on port {listening}, helping {helping}")
    own = certificate(
        "own certificate", profile.public_url or "", connect_to=("127.0.0.1", listening), now_s=time.time()
    )
    if own is not None:
        yield own


def _router(port: dict[str, Any], *, needed: bool) -> Iterator[Finding]:
    if problem := port["problem"]:
        said = problem.partition(": forward")[0]
        if needed:
            advice = f"forward TCP port {port['listening']} to this computer"
            yield Finding("router", State.WARN, said, advice)
        else:
            yield Finding("router", State.SKIP, f"{said}: not needed, the hub reaches this node")
    elif opener := port["opened_by"]:
        yield Finding("router", State.OK, f"opened port {port['public']} by {opener}")


async def _reached(profile: Profile, key: KeyPair, status: dict[str, Any] | None) -> Finding:
    if status is None:
        return Finding("reached", State.SKIP, "only a running node can be reached")
    async with HubClient(profile.hub_url, key) as hub:
        try:
            told = await hub.check(url=profile.public_url, port=status["port"]["public"])
        except HubError as e:
            return Finding("reached", State.FAIL, f"the hub did not look: {e}", "try again in a minute")
    if told.reachable:
        return Finding("reached", State.OK, f"the hub reaches {told.url} in {told.took_ms} ms")
    advice = f"forward TCP port {status['port']['listening']} in your router, or say --public-url"
    return Finding("reached", State.FAIL, f"the hub does not reach {told.url}: {told.why}", advice)


async def _line(profile: Profile, key: KeyPair) -> Finding:
    async with HubClient(profile.hub_url, key) as hub:
        began = time.monotonic()
        try:
            await hub.upload(os.urandom(UPLOAD_BYTES))
        except HubError as e:
            return Finding("upload", State.FAIL, f"it cannot be measured: {e}", "try again in a minute")
        mbit_s = UPLOAD_BYTES * 8 / (time.monotonic() - began) / 1e6
    said = f"about {mbit_s:.0f} Mbit/s to the hub"
    if mbit_s < GOOD_MBIT_S:
        return Finding("upload", State.WARN, said, "few viewers fit: close what else uploads")
    return Finding("upload", State.OK, said)


def _standing(status: dict[str, Any]) -> Iterator[Finding]:
    standing, error = status["hub"]["node_status"], status["hub"]["error"]
    if error:
        yield Finding("standing", State.WARN, error)
    elif standing != "active":
        reason = status["hub"].get("reason", "")  # a node of before reasons were told has none
        said = f"the hub says this node is {standing}" + (f": {reason}" if reason else "")
        yield Finding("standing", State.FAIL, said, "ask the operator")
    waiting = status["receipts"]["waiting"]
    yield Finding("receipts", State.OK, f"{waiting} wait for the hub's answer")
