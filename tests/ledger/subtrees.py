"""A tree in memory, as the proofs of ledger.merkle ask for it."""

from collections.abc import Sequence

from ledger import merkle


def subtrees_of(hashes: Sequence[bytes]) -> merkle.Subtree:
    """Full subtrees over leaf hashes, computed when asked for."""

    def subtree(level: int, index: int) -> bytes:
        return merkle.root_of_hashes(hashes[index << level : (index + 1) << level])

    return subtree
