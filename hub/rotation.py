"""A new key for tickets or checkpoints in place of one that signs: three files, two events, and an order.

Invariant: nothing is ever signed by a key that the log does not name, or has called retired; whoever dies between two
steps, the next start goes on with the one that is missing. The order: `P.seed.next` is on disk, the log names it
(`rotate`); nothing of the hub runs and signs, `P.seed` becomes `P.seed.old` and `.next` takes its place (`take_up`);
the old key is retired, its secret deleted (`retire_former`). A ticket key is retired at once, since from now on nobody
signs with it; a log key only when everybody had time to read the new one (`LogKeyChange`).
"""

from pathlib import Path
from typing import Final

import structlog

from hub.keystore import KeyStoreError, SigningKeys
from ledger.aggregates.base import DomainError
from ledger.aggregates.crew import PURPOSES
from ledger.application import Ledger
from ledger.keys import KeyPair
from ledger.services import crew

log = structlog.get_logger("hub.rotation")

BOTH_SIGN_US: Final = (
    300 * 1_000_000
)  # auditors that read the old verifier key have come to their end by then


def rotate(ledger: Ledger, folder: Path, purpose: str, *, at_us: int) -> KeyPair:
    """Make the key that signs from the hub's next start on, and name it in the log. Repeated before, the same one.

    Raises DomainError while the last rotation is not over, KeyStoreError, Unavailable.
    """
    keys = SigningKeys(folder, purpose)
    if not keys.path.exists():
        raise KeyStoreError(f"there is no {keys.path}: run this where the hub runs, with its data directory")
    if keys.former() is not None:
        raise DomainError(
            f"the {purpose} key was changed a moment ago and the one before is not retired yet: try again in ten "
            "minutes, with the hub running"
        )
    try:
        made = keys.make_next()
    except OSError as error:
        raise KeyStoreError(f"cannot make a key in {folder}: {error.strerror}") from error
    crew.add_key(ledger, purpose, made.public_key, at_us=at_us)
    return made


def take_up(ledger: Ledger, folder: Path, *, at_us: int) -> None:
    """At the hub's start, before anything signs: from now on the keys that `rotate` made do.

    Raises KeyStoreError, OSError, Unavailable.
    """
    for purpose in PURPOSES:
        keys = SigningKeys(folder, purpose)
        waiting = keys.next()
        if waiting is not None:
            crew.add_key(ledger, purpose, waiting.public_key, at_us=at_us)
            if keys.turn():
                log.info("another key signs", purpose=purpose, key=waiting.key_id.hex())
        try:
            crew.add_key(ledger, purpose, keys.current().public_key, at_us=at_us)
        except DomainError as error:
            raise KeyStoreError(
                f"{keys.path} was retired: it is from a backup older than the last rotation. Restore the newer one, "
                "or move it away, and the next start makes a new key"
            ) from error
    retire_former(ledger, folder, "ticket", at_us=at_us)


def retire_former(ledger: Ledger, folder: Path, purpose: str, *, at_us: int) -> None:
    """Retire the key that signed before, when there is one, and delete its secret: what it signed stays verifiable."""
    keys = SigningKeys(folder, purpose)
    former = keys.former()
    if former is None:
        return
    if former.public_key != keys.current().public_key:  # else the process died while the files changed places
        if _is_named(ledger, purpose, former):
            crew.retire_key(ledger, purpose, former.key_id, at_us=at_us)
        log.info("a key is retired", purpose=purpose, key=former.key_id.hex())
    keys.drop_former()


def _is_named(ledger: Ledger, purpose: str, key: KeyPair) -> bool:
    """Not in a database that was restored from before."""
    return any(k.key_id == key.key_id for k in crew.crew(ledger).public_keys(purpose))


class LogKeyChange:
    """The end of a rotation of the log's key, in the process that publishes: for a while both sign each checkpoint.

    Before each publication `former` says which key signs too, after it comes `published`. The old key is retired only
    after a publication that did not use it: whatever fails in between, no checkpoint that has its end is signed by it.
    """

    def __init__(self, ledger: Ledger, folder: Path, *, both_sign_us: int = BOTH_SIGN_US) -> None:
        """Raises KeyStoreError, OSError, Unavailable."""
        self._ledger = ledger
        self._folder = folder
        self._both_sign_us = both_sign_us
        self._since_us: int | None = None  # when the first checkpoint with both was out, in this process
        self._alone = False
        keys = SigningKeys(folder, "log")
        self._former = keys.former()
        if self._former is not None and not self._in_force(self._former):
            keys.drop_former()  # a process died after it had retired the key, or the database was restored
            self._former = None

    def former(self, *, at_us: int) -> KeyPair | None:
        if self._since_us is not None and at_us - self._since_us >= self._both_sign_us:
            self._alone = True
        return None if self._alone else self._former

    def published(self, *, at_us: int) -> None:
        """A checkpoint is out. Raises Unavailable, Conflict, OSError: repeated after the next."""
        if self._former is None:
            return
        if self._alone:
            retire_former(self._ledger, self._folder, "log", at_us=at_us)
            self._former = None
        elif self._since_us is None or at_us < self._since_us:  # or this computer's clock was set
            self._since_us = at_us

    def _in_force(self, key: KeyPair) -> bool:
        known = crew.crew(self._ledger).public_keys("log")
        return any(k.key_id == key.key_id and not k.retired for k in known)
