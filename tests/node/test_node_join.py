"""Joining: the key, the profile, and errors a friend can act on."""

import asyncio
import json
import os
import stat
import time

import pytest
from stand_in_hub import CODE, StandInHub
from typer.testing import CliRunner

from hub.commands.node import NodeError, app
from ledger.ids import node_id
from relay.node.files import create_secret
from relay.node.hub_client import HubClient, HubError
from relay.node.identity import KEY_FILE, PROFILE_FILE, IdentityError, load_or_create_key, load_profile


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_joining_twice_gives_the_same_answer_and_keeps_the_key(hub, tmp_path):
    first = run("join", hub.url, CODE, "--json", "--data-dir", str(tmp_path))
    assert first.exit_code == 0, first.output
    key = (tmp_path / "node" / KEY_FILE).read_bytes()
    again = run("join", hub.url, CODE, "--json", "--data-dir", str(tmp_path))
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert (tmp_path / "node" / KEY_FILE).read_bytes() == key
    assert len(hub.nodes) == 1
    assert json.loads(first.stdout)["node_id"] == str(node_id(next(iter(hub.nodes))))


def test_joining_again_keeps_what_is_not_said_again(hub, tmp_path):
    folder, join = tmp_path / "node", ("join", hub.url, CODE, "--data-dir", str(tmp_path))
    said = ("--name", "attic", "--port", "8200", "--public-url", "https://me.example:8200")
    assert run(*join, *said).exit_code == 0
    first = load_profile(folder)
    assert run(*join).exit_code == 0
    assert load_profile(folder) == first
    assert run(*join, "--name", "cellar").exit_code == 0
    assert load_profile(folder).name == "cellar"


@pytest.mark.parametrize("command", ["run", "status", "install-service"])
def test_who_has_not_joined_is_told_how(tmp_path, command):
    done = run(command, "--data-dir", str(tmp_path))
    assert isinstance(done.exception, NodeError)
    assert done.exception.exit_code == 4
    assert "node run HUB_URL CODE" in str(done.exception)


@pytest.mark.parametrize(
    ("code", "exit_code", "said"), [("wrong", 3, "no such invite"), ("expired", 3, "expired")]
)
def test_a_code_that_does_not_work_is_explained(hub, tmp_path, code, exit_code, said):
    done = run("join", hub.url, code, "--data-dir", str(tmp_path))
    assert isinstance(done.exception, NodeError)
    assert done.exception.exit_code == exit_code
    assert said in str(done.exception)
    assert "new one" in str(done.exception)
    assert load_profile(tmp_path / "node") is None


def test_a_hub_that_is_away_is_try_again(tmp_path):
    done = run("join", "http://127.0.0.1:9", CODE, "--data-dir", str(tmp_path))
    assert isinstance(done.exception, NodeError)
    assert done.exception.exit_code == 10
    assert "cannot reach the hub" in str(done.exception)


def test_wrong_addresses_are_usage_errors(tmp_path):
    for arguments in (("join", "hub.example", CODE), ("run", "http://hub.example")):
        done = run(*arguments, "--data-dir", str(tmp_path))
        assert isinstance(done.exception, NodeError)
        assert done.exception.exit_code == 2


def test_a_folder_belongs_to_one_hub(hub, tmp_path):
    assert run("join", hub.url, CODE, "--data-dir", str(tmp_path)).exit_code == 0
    other = StandInHub()
    try:
        done = run("join", other.url, CODE, "--data-dir", str(tmp_path))
    finally:
        other.stop()
    assert "belongs to" in str(done.exception)


def test_a_wrong_clock_the_nodes_or_the_hubs_keeps_nobody_out(hub, tmp_path):
    key = load_or_create_key(tmp_path)
    hub.media[0], off_s = b"segment", 7_200

    async def main() -> None:
        async with HubClient(hub.url, key, now_s=lambda: time.time() + off_s) as client:
            await client.join(CODE, "n", None, 8100)
            assert abs(client.hub_ahead_s + 7_200) <= 1
            for hub.clock_offset_s in (-100_000, 0, 500_000):  # the hub's is set while the node runs
                await client.heartbeat(url=None, port=8100, viewers=0, uploaded_bytes=0)
                pulled = await client.segment(hub.rendition, 0)
                assert pulled.data == b"segment"

    asyncio.run(main())


def test_a_clock_that_is_right_again_is_trusted_again(hub, tmp_path):
    key = load_or_create_key(tmp_path)
    wrong_s = [7_200]

    async def main() -> None:
        async with HubClient(hub.url, key, now_s=lambda: time.time() + wrong_s[0]) as client:
            await client.join(CODE, "n", None, 8100)
            wrong_s[0] = 3
            await client.heartbeat(url=None, port=8100, viewers=0, uploaded_bytes=0)
            assert client.hub_ahead_s == 0

    asyncio.run(main())


def test_what_is_refused_for_another_reason_is_not_sent_again(hub, tmp_path):
    async def main() -> None:
        async with HubClient(hub.url, load_or_create_key(tmp_path)) as client:
            with pytest.raises(HubError) as refused:
                await client.heartbeat(url=None, port=8100, viewers=0, uploaded_bytes=0)
            assert (refused.value.status, client.hub_ahead_s) == (403, 0)

    asyncio.run(main())


def test_the_key_is_private_made_once_and_never_replaced(tmp_path):
    key = load_or_create_key(tmp_path)
    path = tmp_path / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not create_secret(path, b"another")
    assert load_or_create_key(tmp_path) == key
    assert key.seed.hex() not in repr(key)
    path.chmod(0o644)
    load_or_create_key(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == [KEY_FILE]
    path.write_text("nonsense")
    with pytest.raises(IdentityError):
        load_or_create_key(tmp_path)


def test_a_damaged_profile_is_named(tmp_path):
    (tmp_path / PROFILE_FILE).write_text("{")
    with pytest.raises(IdentityError, match="join again"):
        load_profile(tmp_path)
