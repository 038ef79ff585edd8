"""A journal of keyed records: whoever writes and wherever they die, a key has one record, which never changes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.rails.journal import Journal

WRITERS = 3
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, WRITERS - 1), st.integers(0, 6)),
        st.tuples(st.just("die"), st.integers(0, WRITERS - 1), st.integers(0, 6)),
        st.tuples(st.just("tear"), st.integers(1, 20), st.just(0)),
    ),
    max_size=30,
)


class Made:
    """Makes a record, and remembers what it was told of the others."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.known: dict[str, Any] | None = None

    def __call__(self, known: Mapping[str, Any]) -> dict[str, Any]:
        self.known = dict(known)
        return {"n": self.number}


@given(steps)
def test_each_key_has_the_record_of_who_was_first(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[str, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    journals = [Journal(path) for _ in range(WRITERS)]
    model: dict[str, dict[str, int]] = {}

    def dies(_: object) -> dict[str, int]:
        raise KeyboardInterrupt

    for number, (what, who, key) in enumerate(script):
        if what == "tear":  # somebody died in the middle of a line
            with path.open("ab") as file:
                file.write(b'{"key": "torn", "n": 12345'[:who])
        elif what == "add":
            made = Made(number)
            new = journals[who].add(str(key), made)
            assert new is (str(key) not in model)
            assert made.known == (model if new else None)
            model.setdefault(str(key), {"n": number})
        elif str(key) not in model:
            with pytest.raises(KeyboardInterrupt):
                journals[who].add(str(key), dies)
    for reader in (*journals, Journal(path)):
        assert dict(reader.all()) == model


def test_another_file_under_the_same_name_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "j"
    kept = Journal(path)
    kept.add("a", lambda _: {})
    path.rename(tmp_path / "backup")
    assert Journal(path).get("a") is None
    Journal(path).add("b", lambda _: {})
    assert list(kept.all()) == ["b"]


def test_what_is_read_of_a_writer_that_died_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    synced: list[int] = []

    def dies(_descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dies)
        with pytest.raises(KeyboardInterrupt):
            Journal(path).add("a", lambda _: {})
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    assert Journal(path).get("a") == {}
    assert synced == [path.stat().st_ino, tmp_path.stat().st_ino]
