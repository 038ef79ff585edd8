"""Commands on nodes and invites, and the commitment that stands for a network in the log.

Invariant: joining again with the same key gives the same node; an invite admits one node.
"""

import hashlib
import ipaddress
from collections.abc import Callable
from typing import Final
from uuid import UUID

from ledger.aggregates.base import DomainError
from ledger.aggregates.node import Invite, Node, NodeStatus
from ledger.application import Ledger, NotFound
from ledger.ids import invite_id, node_id
from ledger.networks import is_news
from ledger.services.retry import until_saved

COMMITMENT_BYTES: Final = 16


def prefix_commitment(salt: bytes, ip: str, *, unique: bytes) -> bytes:
    """16 bytes that stand for the IPv4 /24 or IPv6 /48 of `ip`: equal for equal networks, worthless without the salt.

    A loopback or unreadable address is no network that two people could share: it is mixed with `unique` (a session
    or node id), so that it equals nothing else.
    """
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        address = ipaddress.ip_address("127.0.0.1")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_loopback:
        material = b"unique:" + unique
    else:
        bits = 24 if address.version == 4 else 48
        material = str(ipaddress.ip_network((address, bits), strict=False)).encode()
    return hashlib.sha256(b"restream/prefix/v1\n" + salt + material).digest()[:COMMITMENT_BYTES]


def create_invite(ledger: Ledger, *, friend_id: UUID, code: str, expires_us: int, at_us: int) -> UUID:
    """`code` is random text of at least 80 bits; only its hash is kept."""
    digest = code_hash(code)

    def attempt() -> UUID:
        invite = ledger.load_or_new(Invite, invite_id(digest))
        if not invite.version:
            invite.create(friend_id=friend_id, code_sha256=digest, expires_us=expires_us, at_us=at_us)
            ledger.save(invite)
        return invite.id

    return until_saved(attempt)


def join_node(
    ledger: Ledger, *, code: str, public_key: bytes, prefix_commitment: bytes, at_us: int
) -> tuple[Node, bool]:
    """The node and whether it is new. Raises DomainError for a code that is unknown, used or expired."""

    def attempt() -> tuple[Node, bool]:
        node = ledger.load_or_new(Node, node_id(public_key))
        if node.version:
            return node, False
        try:
            invite = ledger.load(Invite, invite_id(code_hash(code)))
        except NotFound as e:
            raise DomainError("this invite code is not known") from e
        invite.use(node.id, at_us=at_us)
        node.join(
            public_key=public_key,
            friend_id=invite.friend_id,
            invite_id=invite.id,
            prefix_commitment=prefix_commitment,
            at_us=at_us,
        )
        ledger.save(invite, node)
        return node, True

    return until_saved(attempt)


def change_node(ledger: Ledger, nid: UUID, change: Callable[[Node], None]) -> Node:
    """Load, `change`, save. Raises NotFound for a node that never joined."""

    def attempt() -> Node:
        node = ledger.load(Node, nid)
        change(node)
        ledger.save(node)
        return node

    return until_saved(attempt)


def see_at(ledger: Ledger, node: Node, prefix_commitment: bytes, *, at_us: int) -> Node:
    """The node is at this network; written down when that is news of a node in good standing."""
    if node.status is not NodeStatus.ACTIVE or not is_news(node.networks, prefix_commitment, at_us):
        return node
    return change_node(ledger, node.id, lambda n: n.see_at(prefix_commitment, at_us=at_us))


def suspend(ledger: Ledger, nid: UUID, *, reason: str, at_us: int) -> Node:
    """No more tickets for it from now on. Raises NotFound, DomainError when it is retired; again changes nothing."""
    return change_node(ledger, nid, lambda n: n.suspend(reason=reason, at_us=at_us))


def reinstate(ledger: Ledger, nid: UUID, *, reason: str, at_us: int) -> Node:
    """A suspended node gets viewers again with its next heartbeat. Raises NotFound, DomainError when it is retired."""
    return change_node(ledger, nid, lambda n: n.reinstate(reason=reason, at_us=at_us))


def retire(ledger: Ledger, nid: UUID, *, reason: str, at_us: int) -> Node:
    """For good: its key never comes back. What it earned stays. Raises NotFound."""
    return change_node(ledger, nid, lambda n: n.retire(reason=reason, at_us=at_us))


def code_hash(code: str) -> bytes:
    return hashlib.sha256(code.strip().encode()).digest()
