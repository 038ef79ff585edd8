"""Delivery digests on a real database: the same after a restart, nothing for a strange nonce."""

import hashlib
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from hub.digests import SegmentDigests
from hub.keystore import NONCES, KeyStore
from ledger.application import Unavailable
from ledger.store.database import connect_pool


def test_a_digest_is_that_of_the_published_bytes_under_each_nonce_also_after_a_restart(
    tmp_path: Path, database_url: str
) -> None:
    keys = KeyStore.open(tmp_path)
    rendition = uuid4()
    nonces = keys.nonces(rendition)
    assert len(set(nonces)) == NONCES
    with connect_pool(database_url) as pool:
        before = SegmentDigests(pool, keys)
        before.put(rendition, 7, b"segment")
        before.put(rendition, 7, b"segment")
        after = SegmentDigests(pool, KeyStore.open(tmp_path))
        for nonce in nonces:
            expected = hashlib.sha256(nonce + b"segment").digest()
            assert before.get(rendition, nonce, 7) == after.get(rendition, nonce, 7) == expected
        assert after.get(rendition, b"x" * 16, 7) is None
        assert after.get(rendition, nonces[0], 8) is None
        assert after.get(uuid4(), nonces[0], 7) is None


def test_keys_are_made_once_private_and_never_shown(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    keys = KeyStore.open(folder)
    again = KeyStore.open(folder)
    assert (keys.ticket.public_key, keys.log.public_key) == (again.ticket.public_key, again.log.public_key)
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    for path in folder.iterdir():
        assert path.read_bytes().hex() not in repr(keys)
        assert repr(path.read_bytes()) not in repr(keys)


def test_a_database_that_is_away_is_a_matter_of_waiting(tmp_path: Path) -> None:
    with connect_pool(f"postgresql://nobody@/nothing?host={tmp_path}") as pool, pytest.raises(Unavailable):
        SegmentDigests(pool, KeyStore.open(tmp_path)).put(uuid4(), 7, b"segment")


def test_the_first_digest_after_a_restart_of_the_database_is_kept(
    tmp_path: Path, postgres_url: str, database_url: str
) -> None:
    keys = KeyStore.open(tmp_path)
    rendition = uuid4()
    with connect_pool(database_url) as pool:
        digests = SegmentDigests(pool, keys)
        digests.put(rendition, 7, b"segment")
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                (urlsplit(database_url).path[1:],),
            )
        digests.put(rendition, 8, b"another")
        assert digests.get(rendition, keys.nonces(rendition)[0], 8)
