"""kill -9 of a real node at the two worst moments, hub restarts, and clean stops: no accepted receipt is lost."""

import json
import signal
import subprocess
import sys
import time

import httpx2
from stand_in_hub import CODE, StandInHub

from hub.commands.node import _describe
from ledger.keys import KeyPair
from relay.viewers.cheat import claim

VIEWER = KeyPair(b"v" * 32)


def receipt_at_node(hub: StandInHub, url: str, count: int = 3):
    """Fetch segments and post their receipt; returns (ticket, receipt bytes) after the node's 204."""
    ticket = hub.issue(next(iter(hub.nodes)), VIEWER.public_key)
    with httpx2.Client(base_url=url, trust_env=False) as client:
        for sequence in range(100, 100 + count):
            answer = client.get(f"/segments/{hub.rendition}/{sequence}.ts?t={ticket.encode_url()}")
            assert answer.content == hub.media[sequence]
        receipt = claim(ticket, {s: hub.media[s] for s in range(100, 100 + count)}, VIEWER).encode()
        assert client.post("/receipts", content=receipt).status_code == 204
    return ticket, receipt


def until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_killed_between_spool_and_batch_the_receipt_is_sent_after_the_restart(hub, node_process, tmp_path):
    node = node_process(tmp_path, hub.url, CODE, "--send-interval", "60")
    ticket, _ = receipt_at_node(hub, node.url)
    node.end(signal.SIGKILL)
    assert hub.credits == set()
    node = node_process(tmp_path, "--send-interval", "0.2")
    until(lambda: len(hub.credits) == 3)
    assert hub.verdicts == ["accepted"]
    # The viewer goes on with its old ticket: the restarted node still knows that it served with it.
    more = claim(ticket, {s: hub.media[s] for s in range(100, 104)}, VIEWER, counter=2).encode()
    assert httpx2.post(f"{node.url}/receipts", content=more, trust_env=False).status_code == 204
    until(lambda: len(hub.credits) == 4)


def test_killed_between_batch_and_answer_the_resend_is_a_duplicate_only(hub, node_process, tmp_path):
    hub.hold_batches_s = 30.0
    node = node_process(tmp_path, hub.url, CODE, "--send-interval", "0.2")
    receipt_at_node(hub, node.url)
    until(lambda: hub.verdicts == ["accepted"])
    node.end(signal.SIGKILL)
    hub.hold_batches_s = 0.0
    node_process(tmp_path, "--send-interval", "0.2")
    until(lambda: len(hub.verdicts) == 2)
    time.sleep(0.6)
    assert hub.verdicts == ["accepted", "duplicate"]
    assert len(hub.credits) == 3


def test_lost_answers_and_a_hub_restart_cost_nothing(hub, node_process, tmp_path):
    hub.refuse_batches, hub.lose_answers = 1, 1
    node = node_process(tmp_path, hub.url, CODE, "--send-interval", "0.2")
    ticket, _ = receipt_at_node(hub, node.url, 1)
    until(lambda: len(hub.verdicts) == 2)
    time.sleep(0.6)
    assert hub.verdicts == ["accepted", "duplicate"]  # done but reported as failed, then answered
    hub.stop()
    with httpx2.Client(base_url=node.url, trust_env=False) as client:
        target = f"/segments/{hub.rendition}/100.ts?t={ticket.encode_url()}"
        assert client.get(target).content == hub.media[100]  # from memory
        receipt = claim(ticket, {s: hub.media[s] for s in (100, 101)}, VIEWER, counter=2).encode()
        assert client.post("/receipts", content=receipt).status_code == 204
        time.sleep(0.5)
        hub.restart()
        until(lambda: len(hub.credits) == 2)


def test_status_is_told_and_a_clean_stop_sends_what_is_left(hub, node_process, tmp_path):
    node = node_process(tmp_path, hub.url, CODE, "--send-interval", "2")
    receipt_at_node(hub, node.url)
    until(lambda: hub.verdicts == ["accepted"] and len(hub.heartbeats) > 0)
    command = [sys.executable, "-m", "hub.cli", "node", "status", "--json", "--data-dir", str(tmp_path)]
    shown = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert shown["receipts"]["verdicts"] == {"accepted": 1}
    assert shown["traffic"]["segments"] == 3
    assert shown["earned"]["pending_micro"] == 1_500_000
    assert shown["earned"]["estimate_micro"] == 38_000
    assert "1.500000 pending, 0.000020 available, 0.250000 on its way, 0.000000 paid (EUR)" in _describe(
        shown
    )
    command = [sys.executable, "-m", "hub.cli", "node", "run", "--port", "0", "--data-dir", str(tmp_path)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert "already running" in second.stderr
    receipt_at_node(hub, node.url)
    assert node.end(signal.SIGINT) == 0
    assert hub.verdicts == ["accepted", "accepted"]


def test_a_stop_does_not_wait_for_a_hub_that_hangs(hub, node_process, tmp_path):
    hub.hold_batches_s = 60.0
    node = node_process(tmp_path, hub.url, CODE, "--send-interval", "0.2")
    receipt_at_node(hub, node.url)
    until(lambda: hub.verdicts == ["accepted"])
    began = time.monotonic()
    assert node.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 8
