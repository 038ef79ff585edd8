"""Names of aggregates: the same inputs give the same id on every machine, forever.

Invariant: an id that is derived (crew, book, delivery, invite, tree) depends only on its arguments, so a replay
needs no lookup table and two hubs can never disagree on where an event belongs.
"""

from functools import lru_cache
from typing import Final
from uuid import UUID, uuid5

NAMESPACE: Final = UUID("5e1f0d1e-7a53-5c0e-9f43-737265616d72")

SLUG: Final = r"[a-z0-9][a-z0-9-]{1,38}"  # a stream's name, as a regular expression

CREW_ID: Final = uuid5(NAMESPACE, "crew")
BOOK_ID: Final = uuid5(NAMESPACE, "book")
TREE_ID: Final = uuid5(NAMESPACE, "tree")


def ordered_id(at_us: int, randomness: bytes) -> UUID:
    """A new id, UUID version 7 (RFC 9562, section 5.7): 48 bits of milliseconds, 74 of `randomness`, ten bytes.

    What is named so in one hour stands together in the index of the events; random ids touch a page each.
    """
    if len(randomness) != 10:
        raise ValueError("an id takes ten random bytes")
    value = (at_us // 1_000 << 80) | int.from_bytes(randomness)
    return UUID(int=value & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62)


@lru_cache(1_024)
def delivery_id(broadcast_id: UUID) -> UUID:
    """The aggregate that holds sessions, tickets and credits of one broadcast."""
    return uuid5(broadcast_id, "delivery")


@lru_cache(1_024)
def node_id(public_key: bytes) -> UUID:
    """A node is its Ed25519 public key (32 bytes)."""
    if len(public_key) != 32:
        raise ValueError("a node's public key is 32 bytes")
    return uuid5(NAMESPACE, "node:" + public_key.hex())


def invite_id(code_sha256: bytes) -> UUID:
    """An invite is known by the SHA-256 of its code; the code itself is never stored."""
    return uuid5(NAMESPACE, "invite:" + code_sha256.hex())


def ticket_record_id(ticket_hash: bytes) -> UUID:
    """The aggregate of one issued ticket: a receipt names the hash, so no index is needed to find it."""
    return uuid5(NAMESPACE, "ticket:" + ticket_hash.hex())


def stream_id(slug: str) -> UUID:
    """A stream's slug is unique because its id follows from it."""
    return uuid5(NAMESPACE, "stream:" + slug)
