"""The hub's secrets on disk: one file of 32 random bytes each, mode 0600, made once and never overwritten.

Invariant: a secret that was ever used is never replaced but by a rotation, which keeps it until the log has retired its
key (hub.rotation): a crash while making or changing one leaves either the file as it was or the whole new one. Separate
secrets for tickets, the log, the network commitments and the delivery nonces.
"""

import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID

from ledger.keys import SEED_BYTES, KeyPair

NONCE_BYTES: Final = 16
NONCES: Final = 4  # different nonces in use for one rendition (ADR 0011)


class KeyStoreError(Exception):
    """A key file that cannot be used. The message is for the operator."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class KeyStore:
    ticket: KeyPair
    log: KeyPair
    network_salt: bytes = field(repr=False)
    nonce_secret: bytes = field(repr=False)
    steering_secret: bytes = field(repr=False)

    def nonces(self, rendition_id: UUID) -> tuple[bytes, ...]:
        """The delivery nonces of a rendition, 16 bytes each: a function of the secret, so nothing has to be stored."""
        return tuple(
            hmac.digest(self.nonce_secret, rendition_id.bytes + bytes([i]), "sha256")[:NONCE_BYTES]
            for i in range(NONCES)
        )

    @classmethod
    def open(cls, folder: Path) -> "KeyStore":
        """Read the secrets in `folder`, making those that are missing. Raises KeyStoreError."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls(
                ticket=KeyPair(read_or_make_secret(folder / "ticket.seed")),
                log=KeyPair(read_or_make_secret(folder / "log.seed")),
                network_salt=read_or_make_secret(folder / "network.salt"),
                nonce_secret=read_or_make_secret(folder / "nonce.secret"),
                steering_secret=read_or_make_secret(folder / "steering.secret"),
            )
        except OSError as e:
            raise KeyStoreError(f"cannot read or make the keys in {folder}: {e.strerror}") from e


class SigningKeys:
    """The key that signs tickets or checkpoints (`P.seed`), the one that will (`.next`), the one that did (`.old`)."""

    def __init__(self, folder: Path, purpose: str) -> None:
        """`purpose`: "ticket" or "log". Methods may raise KeyStoreError, OSError."""
        self.path = folder / f"{purpose}.seed"
        self._next = folder / f"{purpose}.seed.next"
        self._old = folder / f"{purpose}.seed.old"

    def current(self) -> KeyPair:
        return KeyPair(read_or_make_secret(self.path))

    def next(self) -> KeyPair | None:
        return KeyPair(read_or_make_secret(self._next)) if self._next.exists() else None

    def former(self) -> KeyPair | None:
        return KeyPair(read_or_make_secret(self._old)) if self._old.exists() else None

    def make_next(self) -> KeyPair:
        """Durable when this returns; made before, it is the same one."""
        made = KeyPair(read_or_make_secret(self._next))
        self._sync()
        return made

    def turn(self) -> bool:
        """The next key takes the place of the current one, which is kept. False while an older one is still kept."""
        if self._old.exists():
            if self._old.read_bytes() != self.path.read_bytes():
                return False
        else:
            os.link(self.path, self._old)
            self._sync()
        os.replace(self._next, self.path)
        self._sync()
        return True

    def drop_former(self) -> None:
        self._old.unlink(missing_ok=True)
        self._sync()

    def _sync(self) -> None:
        descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_or_make_secret(path: Path) -> bytes:
    """The 32 bytes in `path`, made when there is no such file. Raises KeyStoreError, OSError."""
    if not path.exists():
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SEED_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # fails where another process was first: then its secret stands
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    data = path.read_bytes()
    if len(data) != SEED_BYTES:
        raise KeyStoreError(
            f"{path} is damaged: {len(data)} bytes instead of {SEED_BYTES}; restore it from a backup"
        )
    return data
