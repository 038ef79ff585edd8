"""What a batch that claims as much as it can costs the hub."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from hub import digests as module
from hub.digests import SegmentDigests
from hub.keystore import KeyStore
from ledger.receipt import segment_digest
from ledger.store.database import connect_pool


def test_many_claims_cost_a_few_queries_and_no_cryptography(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, rendition = KeyStore.open(tmp_path), uuid4()
    nonce = keys.nonces(rendition)[3]
    with connect_pool(database_url) as pool:
        before = SegmentDigests(pool, keys)
        for n in range(600):
            before.put(rendition, n, b"%d" % n)
        digests = SegmentDigests(pool, keys)  # after a restart
        queries, read = [0], digests._read

        def counted(*args: Any) -> dict[int, bytes]:
            queries[0] += 1
            return read(*args)

        monkeypatch.setattr(digests, "_read", counted)
        for _ in range(3):
            for n in range(600):
                assert digests.get(rendition, nonce, n) == segment_digest(nonce, b"%d" % n)
            monkeypatch.setattr(KeyStore, "nonces", lambda *_: pytest.fail("nonces are made once"))
        assert queries[0] == 3


def test_memory_is_bounded_in_renditions_and_segments(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CACHED_RENDITIONS", 2)
    monkeypatch.setattr(module, "CACHED_SEGMENTS", 3)
    keys = KeyStore.open(tmp_path)
    with connect_pool(database_url) as pool:
        digests = SegmentDigests(pool, keys)
        renditions = [uuid4() for _ in range(4)]
        for rendition in renditions:
            for n in range(6):
                digests.put(rendition, n, b"%d" % n)
        assert len(digests._cache) == 2
        assert {len(r.digests) for r in digests._cache.values()} == {3}
        for rendition in renditions:
            for n in range(6):
                nonce = keys.nonces(rendition)[n % 4]
                assert digests.get(rendition, nonce, n) == segment_digest(nonce, b"%d" % n)
