"""A new key for tickets or for the log: whoever dies between two steps, an audit passes and nothing is lost."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "ledger"))

import crew_life
from crew_life import Life

from hub import rotation
from hub.keystore import KeyStore, KeyStoreError, SigningKeys
from hub.rotation import LogKeyChange, rotate, take_up
from ledger.aggregates.base import DomainError
from ledger.application import Ledger
from ledger.audit import audit
from ledger.checkpoint import Checkpoint
from ledger.note import VerifierKey
from ledger.services import crew
from ledger.tlog.publisher import Publisher

ORIGIN = "hub.example/crew"
SOON_US = 10_000_000


class Died(BaseException):
    pass


@dataclass
class Hub:
    """What of a hub has to do with keys: its folder, and its processes, which start anew."""

    life: Life
    keys: Path
    log: Path

    @property
    def ledger(self) -> Ledger:
        return self.life.ledger

    def start(self) -> "Running":
        take_up(self.ledger, self.keys, at_us=self.life.tick())
        return Running(self, KeyStore.open(self.keys))

    def states(self, purpose: str) -> dict[bytes, bool]:
        """Whether each key is retired, in the order of the log."""
        return {k.public_key: k.retired for k in crew.crew(self.ledger).public_keys(purpose)}

    def audited(self) -> None:
        report = audit(self.log)
        assert report.problem is None, report.problem

    def vkey(self) -> VerifierKey:
        return VerifierKey.parse((self.log / "vkey").read_text().strip())


class Running:
    def __init__(self, hub: Hub, keys: KeyStore) -> None:
        self.hub, self.keys = hub, keys
        self._change = LogKeyChange(hub.ledger, hub.keys, both_sign_us=SOON_US)
        self._publisher = Publisher(hub.ledger, hub.log, keys.log, ORIGIN)

    def publish(self, seconds: int = 1) -> None:
        """As hub.worker does."""
        at_us = self.hub.life.tick(seconds)
        self._publisher.former_key = self._change.former(at_us=at_us)
        self._publisher.publish(at_us=at_us)
        self._change.published(at_us=at_us)


@pytest.fixture
def hub(ledger: Ledger, tmp_path: Path) -> Hub:
    life = Life(ledger)
    crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3_600, at_us=life.now_us)
    (tmp_path / "keys").mkdir()
    return Hub(life, tmp_path / "keys", tmp_path / "log")


def test_the_next_start_signs_tickets_with_the_new_key_and_the_old_ones_are_paid(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = hub.start()
    first = running.keys.ticket
    monkeypatch.setattr(crew_life, "HUB", first)
    hub.life.found()
    hub.life.join("ada")
    hub.life.go_live()
    old = hub.life.ticket("ada", "vera")
    made = rotate(hub.ledger, hub.keys, "ticket", at_us=hub.life.tick())
    assert KeyStore.open(hub.keys).ticket.public_key == first.public_key  # until the start
    assert rotate(hub.ledger, hub.keys, "ticket", at_us=hub.life.tick()).public_key == made.public_key
    running = hub.start()
    assert running.keys.ticket.public_key == made.public_key
    states = hub.states("ticket")
    assert (states[first.public_key], states[made.public_key]) == (True, False)
    assert not SigningKeys(hub.keys, "ticket").former()
    monkeypatch.setattr(crew_life, "HUB", made)
    hub.life.tick(120)  # what was in force a minute ago excuses nothing
    new = hub.life.ticket("ada", "vera")
    receipts = [hub.life.receipt(ticket, "vera", [n]) for ticket, n in ((old, 0), (new, 1))]
    assert hub.life.batch("ada", *receipts) == ["accepted", "accepted"]
    hub.life.tick(2 * 3_600)
    assert hub.life.settle()
    running.publish()
    hub.audited()


def test_both_keys_sign_until_everybody_had_time_to_read_the_new_one(hub: Hub) -> None:
    running = hub.start()
    running.publish()
    old = hub.vkey()
    kept = (hub.log / "checkpoint").read_text()
    rotate(hub.ledger, hub.keys, "log", at_us=hub.life.tick())
    running.publish()
    assert hub.vkey() == old
    hub.audited()
    running = hub.start()
    running.publish()
    note, new = (hub.log / "checkpoint").read_bytes(), hub.vkey()
    assert new != old
    assert Checkpoint.open(note, old) == Checkpoint.open(note, new)
    hub.audited()
    with pytest.raises(DomainError, match="not retired yet"):
        rotate(hub.ledger, hub.keys, "log", at_us=hub.life.tick())
    running.publish(seconds=11)
    running.publish()
    note = (hub.log / "checkpoint").read_bytes()
    with pytest.raises(ValueError, match="known key"):
        Checkpoint.open(note, old)
    assert hub.states("log")[old.public_key] is True
    report = audit(hub.log, vkey=str(new), since=kept)
    assert (report.problem, report.consistent_with) == (None, Checkpoint.open(kept.encode(), old).size)
    assert rotate(hub.ledger, hub.keys, "log", at_us=hub.life.tick()).public_key != new.public_key


def _dies(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """From the `at`th step on everything fails: files that change places, events, published files."""
    steps = 0

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > at:
                raise Died
            return real(*arguments, **named)

        return call

    for owner, name in (
        (rotation.crew, "add_key"),
        (rotation.crew, "retire_key"),
        (SigningKeys, "_sync"),
        (SigningKeys, "make_next"),
        (SigningKeys, "drop_former"),
        (SigningKeys, "turn"),
        (Publisher, "_put"),
    ):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.parametrize("purpose", ["ticket", "log"])
def test_a_hub_that_dies_between_any_two_steps_goes_on_and_every_checkpoint_passes(
    hub: Hub, purpose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.start().publish()
    for at in range(200):
        with monkeypatch.context() as dying:
            _dies(dying, at)
            try:
                rotate(hub.ledger, hub.keys, purpose, at_us=hub.life.tick())
                running = hub.start()
                for _ in range(4):
                    running.publish(seconds=6)
                died = False
            except Died:
                died = True
        hub.audited()
        signing = SigningKeys(hub.keys, purpose)
        assert hub.states(purpose)[signing.current().public_key] is False
        running = hub.start()
        for _ in range(4):
            running.publish(seconds=6)
            hub.audited()
        assert list(hub.states(purpose).values()).count(False) == 1
        assert hub.states(purpose)[signing.current().public_key] is False
        if not died:
            assert at > 5
            return
    raise AssertionError("it never came to its end")


def test_an_older_backup_of_the_keys_is_told_as_what_it_is(hub: Hub) -> None:
    hub.start()
    backup = (hub.keys / "ticket.seed").read_bytes()
    rotate(hub.ledger, hub.keys, "ticket", at_us=hub.life.tick())
    hub.start()
    (hub.keys / "ticket.seed").write_bytes(backup)
    with pytest.raises(KeyStoreError, match="older than the last rotation"):
        hub.start()
    (hub.keys / "ticket.seed").unlink()
    made = hub.start().keys.ticket.public_key
    assert hub.states("ticket")[made] is False
