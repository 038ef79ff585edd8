"""Ed25519 keys (RFC 8032). PyNaCl is the only verifier, everywhere: libraries differ on edge cases (ADR 0002).

Invariant: `verify(public, sign(secret, m), m)` holds, and a signature is bound to a domain line, so a message of
one kind can never be presented as another.
"""

import hashlib
from dataclasses import dataclass, field

from nacl._sodium import ffi, lib  # type: ignore[import-not-found]
from nacl.signing import SigningKey

SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 32
SEED_BYTES = 32
KEY_ID_BYTES = 8


def key_id(public_key: bytes) -> bytes:
    """First 8 bytes of SHA-256 of the 32-byte public key: names a key, proves nothing."""
    return hashlib.sha256(public_key).digest()[:KEY_ID_BYTES]


def verify(public_key: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
    """True when `signature` (64 bytes) is `public_key`'s over `domain + body`. Never raises for bad input."""
    if len(signature) != SIGNATURE_BYTES or len(public_key) != PUBLIC_KEY_BYTES:
        return False
    signed = signature + domain + body
    # PyNaCl's wrapper of this function also makes a copy of the message, which nobody here wants: 4 % of the price.
    return bool(lib.crypto_sign_open(ffi.NULL, ffi.NULL, signed, len(signed), public_key) == 0)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A secret key from a 32-byte seed. `repr` shows the public half only, so that it may stand in a log line."""

    seed: bytes = field(repr=False)
    # Made of the seed once: deriving it costs as much as a signature.
    _signing: SigningKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise ValueError("an Ed25519 seed is 32 bytes")
        object.__setattr__(self, "_signing", SigningKey(self.seed))

    @property
    def public_key(self) -> bytes:
        return bytes(self._signing.verify_key)

    @property
    def key_id(self) -> bytes:
        return key_id(self.public_key)

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """64-byte signature over `domain + body`."""
        return self._signing.sign(domain + body).signature
