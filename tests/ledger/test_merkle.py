"""Merkle proofs against an independent, recursive reading of RFC 6962 and against published vectors."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from subtrees import subtrees_of

from ledger import merkle

# The eight leaves and their roots from the certificate-transparency reference tests.
LEAVES = [
    bytes.fromhex(h)
    for h in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def mth(d: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    n = len(d)
    if n == 0:
        return hashlib.sha256().digest()
    if n == 1:
        return hashlib.sha256(b"\x00" + d[0]).digest()
    k = largest_power_below(n)
    return hashlib.sha256(b"\x01" + mth(d[:k]) + mth(d[k:])).digest()


def largest_power_below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def path(m: int, d: list[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1, word for word."""
    if len(d) == 1:
        return []
    k = largest_power_below(len(d))
    if m < k:
        return [*path(m, d[:k]), mth(d[k:])]
    return [*path(m - k, d[k:]), mth(d[:k])]


def subproof(m: int, d: list[bytes], b: bool) -> list[bytes]:
    """RFC 6962 section 2.1.2, word for word."""
    n = len(d)
    if m == n:
        return [] if b else [mth(d)]
    k = largest_power_below(n)
    if m <= k:
        return [*subproof(m, d[:k], b), mth(d[k:])]
    return [*subproof(m - k, d[k:], False), mth(d[:k])]


leaves = st.lists(st.binary(max_size=12), min_size=1, max_size=70)


@pytest.mark.parametrize("size", range(9))
def test_roots_match_the_reference_vectors(size: int) -> None:
    assert merkle.root(LEAVES[:size]).hex() == ROOTS[size]


def test_proofs_match_the_reference_vectors() -> None:
    subtree = subtrees_of([merkle.leaf_hash(d) for d in LEAVES])
    assert [h.hex() for h in merkle.inclusion_proof(subtree, 0, 8)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    assert [h.hex() for h in merkle.consistency_proof(subtree, 6, 8)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


@given(leaves)
def test_root_and_frontier_match_the_recursive_definition(data: list[bytes]) -> None:
    frontier = merkle.Frontier()
    for i, d in enumerate(data):
        assert frontier.root() == mth(data[:i])
        frontier.append(merkle.leaf_hash(d))
    assert frontier.size == len(data)
    assert frontier.root() == merkle.root(data) == mth(data)
    assert merkle.root_of_hashes([merkle.leaf_hash(d) for d in data]) == mth(data)


@given(st.data())
def test_a_frontier_takes_whole_subtrees_in_place_of_their_leaves(data: st.DataObject) -> None:
    blocks = data.draw(st.integers(0, 9))
    level = data.draw(st.integers(0, 3))
    rest = data.draw(st.integers(0, 5))
    hashes = [merkle.leaf_hash(bytes([i])) for i in range((blocks << level) + rest)]
    frontier = merkle.Frontier()
    subtree = subtrees_of(hashes)
    for b in range(blocks):
        frontier.append(subtree(level, b), level)
    twin = frontier.copy()
    for h in hashes[blocks << level :]:
        frontier.append(h)
    assert frontier.root() == merkle.root_of_hashes(hashes)
    assert twin.root() == merkle.root_of_hashes(hashes[: blocks << level])


def test_a_frontier_refuses_a_subtree_that_does_not_fit() -> None:
    frontier = merkle.Frontier()
    frontier.append(merkle.leaf_hash(b"a"))
    with pytest.raises(ValueError, match="cannot follow"):
        frontier.append(merkle.EMPTY_ROOT, 1)


@given(leaves, st.data())
def test_inclusion_proofs_match_the_recursive_definition_and_verify(
    data: list[bytes], draw: st.DataObject
) -> None:
    index = draw.draw(st.integers(0, len(data) - 1))
    hashes = [merkle.leaf_hash(d) for d in data]
    proof = merkle.inclusion_proof(subtrees_of(hashes), index, len(data))
    assert proof == path(index, data)
    assert merkle.verify_inclusion(hashes[index], index, len(data), proof, mth(data))


@given(leaves, st.data())
def test_consistency_proofs_match_the_recursive_definition_and_verify(
    data: list[bytes], draw: st.DataObject
) -> None:
    old = draw.draw(st.integers(1, len(data)))
    subtree = subtrees_of([merkle.leaf_hash(d) for d in data])
    proof = merkle.consistency_proof(subtree, old, len(data))
    assert proof == subproof(old, data, True)
    assert merkle.verify_consistency(old, len(data), proof, mth(data[:old]), mth(data))


@given(leaves, st.data())
def test_a_proof_changed_anywhere_does_not_verify(data: list[bytes], draw: st.DataObject) -> None:
    n = len(data)
    index = draw.draw(st.integers(0, n - 1))
    old = draw.draw(st.integers(0, n))
    hashes = [merkle.leaf_hash(d) for d in data]
    subtree = subtrees_of(hashes)
    root, old_root = mth(data), mth(data[:old])
    inclusion = merkle.inclusion_proof(subtree, index, n)
    consistency = merkle.consistency_proof(subtree, old, n)
    assert merkle.verify_consistency(old, n, consistency, old_root, root)
    junk = hashlib.sha256(b"junk").digest()
    for proof in _mangled(inclusion, draw):
        assert not merkle.verify_inclusion(hashes[index], index, n, proof, root)
    assert not merkle.verify_inclusion(junk, index, n, inclusion, root)
    assert not merkle.verify_inclusion(hashes[index], index, n, inclusion, junk)
    assert not merkle.verify_inclusion(hashes[index], n, n, inclusion, root)
    for proof in _mangled(consistency, draw):
        assert not merkle.verify_consistency(old, n, proof, old_root, root)
    assert not merkle.verify_consistency(old, n, consistency, junk, root)
    assert not merkle.verify_consistency(old, n, consistency, old_root, junk) or old == 0
    assert not merkle.verify_consistency(n + 1, n, consistency, root, root)


def _mangled(proof: list[bytes], draw: st.DataObject) -> list[list[bytes]]:
    junk = hashlib.sha256(b"more junk").digest()
    versions = [[*proof, junk], [junk, *proof]]
    if proof:
        at = draw.draw(st.integers(0, len(proof) - 1))
        versions += [proof[:at] + proof[at + 1 :], [*proof[:at], junk, *proof[at + 1 :]]]
    return versions


def test_proofs_outside_the_tree_are_refused() -> None:
    subtree = subtrees_of([])
    with pytest.raises(ValueError, match="no leaf"):
        merkle.inclusion_proof(subtree, 0, 0)
    with pytest.raises(ValueError, match="cannot follow"):
        merkle.consistency_proof(subtree, 2, 1)
