"""Tiles against the specification's own examples, and against the tree they stand for."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import merkle
from ledger.tlog.tiles import (
    ENTRIES,
    WIDTH,
    Tile,
    TileBuilder,
    TileError,
    decode_bundle,
    decode_tile,
    encode_bundle,
    tile_of,
)


def build(entries: list[bytes]) -> tuple[TileBuilder, dict[str, bytes]]:
    files: dict[str, bytes] = {}
    builder = TileBuilder(lambda tile, data: files.__setitem__(tile.path, data))
    for e in entries:
        builder.append(e)
    files.update({tile.path: data for tile, data in builder.partials()})
    return builder, files


def test_paths_are_those_of_the_specification() -> None:
    assert Tile(0, 1234067).path == "tile/0/x001/x234/067"
    assert Tile(3, 5, 17).path == "tile/3/005.p/17"
    assert Tile(ENTRIES, 1000).path == "tile/entries/x001/000"
    assert tile_of(1, 1, 70_000) == Tile(1, 1, 17)
    assert Tile(1, 1).first_entry == 65_536


def test_a_tree_of_70000_has_the_tiles_of_the_specifications_example() -> None:
    builder, files = build([i.to_bytes(3) for i in range(70_000)])
    full0 = [p for p in files if p.startswith("tile/0/") and ".p/" not in p]
    assert len(full0) == 273
    assert {p: len(d) // 32 for p, d in files.items() if ".p/" in p and "entries" not in p} == {
        "tile/0/273.p/112": 112,
        "tile/1/001.p/17": 17,
        "tile/2/000.p/1": 1,
    }
    assert len(files["tile/1/000"]) == 8192
    assert builder.root() == merkle.root([i.to_bytes(3) for i in range(70_000)])


@settings(max_examples=30)
@given(st.integers(0, 600))
def test_tiles_hold_the_leaves_and_the_roots_of_the_tiles_below(size: int) -> None:
    entries = [i.to_bytes(2) * (i % 3) for i in range(size)]
    builder, files = build(entries)
    assert builder.root() == merkle.root(entries)
    seen: list[bytes] = []
    for n in range(-(-size // WIDTH)):
        tile = tile_of(0, n, size)
        bundle = tile_of(ENTRIES, n, size)
        hashes = decode_tile(files.pop(tile.path), tile.width)
        part = decode_bundle(files.pop(bundle.path), bundle.width)
        assert hashes == [merkle.leaf_hash(e) for e in part]
        seen += part
    assert seen == entries
    for n in range(size // WIDTH):
        above = tile_of(1, 0, size)
        assert decode_tile(files[above.path], above.width)[n] == merkle.root(
            entries[n * WIDTH : (n + 1) * WIDTH]
        )
    assert len(files) == (1 if size >= WIDTH else 0)


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_a_bundle_decodes_to_what_was_encoded(entries: list[bytes]) -> None:
    data = encode_bundle(entries)
    assert decode_bundle(data, len(entries)) == entries
    if entries:
        assert decode_bundle(data, len(entries) - 1) == entries[:-1]
        for cut in (data[:-1], data + b"\x00"):
            with pytest.raises(TileError):
                decode_bundle(cut, len(entries))
    with pytest.raises(TileError):
        decode_bundle(data, len(entries) + 1)


@given(st.binary(max_size=600), st.integers(0, 256))
def test_arbitrary_bytes_never_raise_anything_but_a_tile_error(data: bytes, width: int) -> None:
    for decode in (decode_bundle, decode_tile):
        with contextlib.suppress(TileError):
            assert len(decode(data, width)) == width


def test_what_cannot_be_a_tile_is_refused() -> None:
    for level, index, width in ((64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257), (-2, 0, 1)):
        with pytest.raises(TileError):
            Tile(level, index, width)
    with pytest.raises(TileError):
        tile_of(0, 1, 256)
    with pytest.raises(TileError, match="at most"):
        encode_bundle([b"x" * 65_536])
