"""Signed HTTP requests: how a node proves to the hub that it is itself.

Wire format `restream/request/v1` (docs/protocol.md): the header `Authorization: Node KEY:TIME:SIGNATURE` (hex, Unix
seconds, hex), signed over domain, method, target (path and query), time and SHA-256 of the body.
Invariant: a header verifies for exactly the request it was made for, within `MAX_SKEW_S` of its time. The skew bounds
replays; it decides nothing about money.
"""

import hashlib
from typing import Final

from ledger.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, KeyPair, verify

DOMAIN: Final = b"restream/request/v1\n"
MAX_SKEW_S: Final = 300


class RequestAuthError(ValueError):
    """The header is missing, malformed, out of time or not signed by the key it names."""


def _message(method: str, target: str, at_s: int, body: bytes) -> bytes:
    return f"{method.upper()} {target}\n{at_s}\n{hashlib.sha256(body).hexdigest()}\n".encode()


def sign_request(key: KeyPair, method: str, target: str, body: bytes, *, now_s: int) -> str:
    """The value of the Authorization header. `target` is the path with its query, as sent."""
    signature = key.sign(DOMAIN, _message(method, target, now_s, body))
    return f"Node {key.public_key.hex()}:{now_s}:{signature.hex()}"


def verify_request(header: str | None, method: str, target: str, body: bytes, *, now_s: int) -> bytes:
    """The 32-byte public key that signed the request. Raises RequestAuthError."""
    if not header or not header.startswith("Node ") or len(header) > 300:
        raise RequestAuthError("this request must be signed by a node")
    try:
        key_hex, at, signature_hex = header[5:].split(":")
        key, at_s, signature = bytes.fromhex(key_hex), int(at), bytes.fromhex(signature_hex)
    except ValueError as e:
        raise RequestAuthError("malformed Authorization header") from e
    if len(key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        raise RequestAuthError("malformed Authorization header")
    if abs(now_s - at_s) > MAX_SKEW_S:
        raise RequestAuthError(
            f"the node's clock is {at_s - now_s:+d} s off; at most {MAX_SKEW_S} s is allowed"
        )
    if not verify(key, DOMAIN, _message(method, target, at_s, body), signature):
        raise RequestAuthError("the signature does not match the request")
    return key
