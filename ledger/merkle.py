"""RFC 6962 Merkle trees (section 2.1): SHA-256, leaves prefixed 0x00, nodes 0x01.

Invariants: `root(leaves)` depends on every byte and on the order of the leaves, and on nothing else; a proof that
this module makes verifies, and one changed anywhere does not.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def leaf_hashes(leaves: Iterable[bytes | memoryview]) -> list[bytes]:
    prefix, hashes = hashlib.sha256(b"\x00"), []
    for data in leaves:  # long ones are not copied
        one = prefix.copy()
        one.update(data)
        hashes.append(one.digest())
    return hashes


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of_hashes(hashes: Sequence[bytes]) -> bytes:
    """Merkle tree hash over leaf hashes: pairs are joined level by level, an odd last one moves up as it is."""
    if not hashes:
        return EMPTY_ROOT
    sha256 = hashlib.sha256  # this loop is most of a tree's cost
    level = list(hashes)
    while len(level) > 1:
        pairs = iter(level)
        paired = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def root(leaves: Sequence[bytes]) -> bytes:
    """Merkle tree hash over leaf data."""
    return root_of_hashes(leaf_hashes(leaves))


# A full subtree: (level, index) -> hash of leaves [index * 2^level, (index + 1) * 2^level).
Subtree = Callable[[int, int], bytes]


class Frontier:
    """The right edge of a growing tree: enough to append leaves and to know the root, in O(log n) memory.

    Invariant: after appending h_0 .. h_{n-1}, `root()` is `root_of_hashes([h_0 .. h_{n-1}])`.
    """

    __slots__ = ("_peaks", "size")

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[tuple[int, bytes]] = []  # (level, hash), levels strictly falling

    def append(self, hash_: bytes, level: int = 0) -> None:
        """Add a leaf hash, or the hash of a full subtree of 2^level leaves.

        Raises ValueError when the tree so far is not a whole number of such subtrees.
        """
        if self.size & ((1 << level) - 1):
            raise ValueError(f"a subtree of level {level} cannot follow {self.size} leaves")
        self.size += 1 << level
        while self._peaks and self._peaks[-1][0] == level:
            hash_ = node_hash(self._peaks.pop()[1], hash_)
            level += 1
        self._peaks.append((level, hash_))

    def root(self) -> bytes:
        if not self._peaks:
            return EMPTY_ROOT
        acc = self._peaks[-1][1]
        for _, peak in reversed(self._peaks[:-1]):
            acc = node_hash(peak, acc)
        return acc

    def peaks(self) -> list[tuple[int, bytes]]:
        """(level, hash) of the full subtrees, the largest first: appended in this order they are this frontier."""
        return list(self._peaks)

    def copy(self) -> "Frontier":
        twin = Frontier()
        twin.size, twin._peaks = self.size, list(self._peaks)
        return twin


def _range_root(subtree: Subtree, start: int, end: int) -> bytes:
    """Hash of leaves [start, end) where start is aligned to the largest power of two in the range."""
    edge: list[bytes] = []
    while start < end:
        level = (end - start).bit_length() - 1
        edge.append(subtree(level, start >> level))
        start += 1 << level
    acc = edge.pop()
    while edge:
        acc = node_hash(edge.pop(), acc)
    return acc


def _split(size: int) -> int:
    """The largest power of two smaller than `size` (RFC 6962 section 2.1)."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(subtree: Subtree, index: int, size: int) -> list[bytes]:
    """PATH(index, D[size]) of RFC 6962 section 2.1.1: sibling hashes from the leaf up.

    Raises ValueError unless 0 <= index < size.
    """
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    start, end = 0, size
    path: list[bytes] = []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_range_root(subtree, middle, end))
            end = middle
        else:
            path.append(_range_root(subtree, start, middle))
            start = middle
    return path[::-1]


def consistency_proof(subtree: Subtree, old: int, new: int) -> list[bytes]:
    """PROOF(old, D[new]) of RFC 6962 section 2.1.2. Empty when the trees are the same or `old` is empty.

    Raises ValueError unless 0 <= old <= new.
    """
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} leaves cannot follow one of {old}")
    if old in (0, new):
        return []
    start, end = 0, new
    whole = True  # the subtree in view is a whole prefix: the verifier knows its hash when it is the old tree
    path: list[bytes] = []
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            path.append(_range_root(subtree, middle, end))
            end = middle
        else:
            path.append(_range_root(subtree, start, middle))
            start, whole = middle, False
    if not whole:
        path.append(_range_root(subtree, start, end))
    return path[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root_: bytes) -> bool:
    """RFC 9162 section 2.1.3.2. `leaf` is a leaf hash. True only when `proof` leads from it to `root_`."""
    if not 0 <= index < size:
        return False
    fn, sn, acc = index, size - 1, leaf
    for p in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            acc = node_hash(p, acc)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            acc = node_hash(acc, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and acc == root_


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """RFC 9162 section 2.1.4.2. True only when the first `old` leaves of the new tree are the old tree.

    Two trees of one size are consistent when their roots are equal; the empty tree is a prefix of every tree.
    """
    if not 0 <= old <= new:
        return False
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    steps = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not steps:
        return False
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = steps[0]
    for c in steps[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == old_root and sr == new_root
