"""RFC 6962 Merkle tree hashing (section 2.1): SHA-256, leaves prefixed 0x00, nodes 0x01.

Invariant: `root(leaves)` depends on every byte and on the order of the leaves, and on nothing else.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of_hashes(hashes: Sequence[bytes]) -> bytes:
    """Merkle tree hash over leaf hashes: pairs are joined level by level, an odd last one moves up as it is."""
    if not hashes:
        return EMPTY_ROOT
    level = list(hashes)
    while len(level) > 1:
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def root(leaves: Sequence[bytes]) -> bytes:
    """Merkle tree hash over leaf data."""
    return root_of_hashes([leaf_hash(d) for d in leaves])
