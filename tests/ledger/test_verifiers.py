"""Verifying processes answer as this process does, or not at all."""

from collections.abc import Iterator

import pytest
from crew_life import make_key
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.verifiers import VerifierDied, Verifiers, first_failure

KEY, OTHER = make_key("one"), make_key("other")
GOOD, BAD = KEY.sign(b"domain", b"body"), OTHER.sign(b"domain", b"body")
CHECKS = [
    (KEY.public_key, b"domain", b"body", signature, holds)
    for signature in (GOOD, BAD, b"", bytes(64))
    for holds in (True, False)
]


@pytest.fixture(scope="module")
def verifiers() -> Iterator[Verifiers]:
    made = Verifiers()
    yield made
    made.close()


@settings(deadline=None)
@given(st.lists(st.sampled_from(CHECKS), max_size=300))
def test_a_process_finds_the_same_first_failure(
    verifiers: Verifiers, checks: list[tuple[bytes, bytes, bytes, bytes, bool]]
) -> None:
    expected = next((i for i, c in enumerate(checks) if (c[3] == GOOD) is not c[4]), -1)
    assert first_failure(checks) == verifiers.first_failure(checks) == expected


def test_a_process_that_died_says_nothing_holds() -> None:
    verifiers = Verifiers()
    assert verifiers.first_failure(CHECKS[:1]) == -1
    verifiers._all[0].kill()
    verifiers._all[0].wait()
    with pytest.raises(VerifierDied):
        verifiers.first_failure(CHECKS[:1])
    verifiers.close()
    with pytest.raises(VerifierDied):
        Verifiers.first_failure(verifiers, CHECKS[:1])
