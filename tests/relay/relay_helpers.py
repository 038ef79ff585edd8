"""Small things several relay tests share."""

from collections.abc import Iterable


def cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """`data` in pieces of the given sizes, the rest last."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]
