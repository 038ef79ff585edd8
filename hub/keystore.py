"""The hub's secrets on disk: one file of 32 random bytes each, mode 0600, made once and never overwritten.

Invariant: a secret that was ever used is never replaced: a crash while making one leaves either no file or the whole
file. Separate secrets for tickets, the log, the network commitments and the delivery nonces.
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
