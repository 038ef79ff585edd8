"""Signed HTTP requests: how a node proves to the hub that it is itself.

Wire format `restream/request/v1` (docs/protocol.md): the header `Authorization: Node KEY:TIME:SIGNATURE` (hex, Unix
seconds, hex), signed over domain, method, target (path and query), time and SHA-256 of the body.
Invariant: a header verifies for exactly the request it was made for, within `MAX_SKEW_S` of its time. The skew bounds
replays; it decides nothing about money.
"""

import hashlib
import re
from typing import Final

from ledger.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, KeyPair, verify

DOMAIN: Final = b"restream/request/v1\n"
MAX_SKEW_S: Final = 300
# One way to write it, so that a request sent again is known by its header.
_HEADER: Final = re.compile(
    rf"Node ([0-9a-f]{{{2 * PUBLIC_KEY_BYTES}}}):(0|[1-9][0-9]{{0,11}}):([0-9a-f]{{{2 * SIGNATURE_BYTES}}})"
)


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
    if not header or not header.startswith("Node "):
        raise RequestAuthError("this request must be signed by a node")
    match = _HEADER.fullmatch(header)
    if match is None:
        raise RequestAuthError("malformed Authorization header")
    key, at_s, signature = bytes.fromhex(match[1]), int(match[2]), bytes.fromhex(match[3])
    if abs(now_s - at_s) > MAX_SKEW_S:
        raise RequestAuthError(
            f"the node's clock is {at_s - now_s:+d} s off; at most {MAX_SKEW_S} s is allowed"
        )
    if not verify(key, DOMAIN, _message(method, target, at_s, body), signature):
        raise RequestAuthError("the signature does not match the request")
    return key
