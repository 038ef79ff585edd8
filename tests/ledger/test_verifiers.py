"""Signatures verified by processes of their own: the answer is that of `ledger.keys.verify`, whatever happens."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ledger import receipt, verifiers
from ledger.keys import KeyPair, verify
from ledger.verifiers import Signed, Verifiers


def signed(number: int) -> Signed:
    """Every third is not what its key signed."""
    key = KeyPair(number.to_bytes(32, "big"))
    body = number.to_bytes(receipt.BODY_BYTES, "big")
    signature = key.sign(receipt.DOMAIN, body)
    if number % 3 == 0:
        signature = bytes([signature[0] ^ 1]) + signature[1:]
    return key.public_key, body + signature


MANY = [signed(n) for n in range(100)]
RIGHT = [n % 3 != 0 for n in range(100)]


@pytest.fixture
def two() -> Iterator[Verifiers]:
    found = Verifiers(2)
    yield found
    found.close()


def processes(of: Verifiers) -> list[int]:
    return [p._process.pid for p in of._idle.queue if p is not None]


def test_what_a_process_knows_of_a_receipt_is_what_a_receipt_is() -> None:
    assert (verifiers.DOMAIN, verifiers.BODY_BYTES) == (receipt.DOMAIN, receipt.BODY_BYTES)
    key, data = MANY[1]
    assert verify(key, receipt.DOMAIN, data[: receipt.BODY_BYTES], data[receipt.BODY_BYTES :])


def test_a_few_are_verified_where_they_are_asked_and_many_by_every_process(two: Verifiers) -> None:
    assert two.hold([]) == []
    assert two.hold(MANY[:3]) == RIGHT[:3]
    assert processes(two) == []
    assert two.hold(MANY) == RIGHT
    assert len(processes(two)) == 2


def test_many_threads_get_the_answers_to_what_they_asked(two: Verifiers) -> None:
    starts = [n * 7 % 60 for n in range(80)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda start: two.hold(MANY[start : start + 40]), starts))
    assert answers == [RIGHT[start : start + 40] for start in starts]


def test_a_process_that_died_costs_no_verdict_and_is_replaced(two: Verifiers) -> None:
    two.hold(MANY)
    before = processes(two)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert two.hold(MANY) == RIGHT
    assert two.hold(MANY) == RIGHT
    assert len(processes(two)) == 2
    assert not set(before) & set(processes(two))


def test_a_process_that_does_not_answer_is_given_up(two: Verifiers) -> None:
    two.hold(MANY)
    silent = two._idle.queue[0]
    assert silent is not None
    silent._socket.settimeout(0.2)
    os.kill(silent._process.pid, signal.SIGSTOP)
    assert two.hold(MANY) == RIGHT
    assert silent not in two._idle.queue


def test_without_processes_and_after_the_end_all_is_verified_where_it_is_asked(two: Verifiers) -> None:
    assert Verifiers(0).hold(MANY) == RIGHT
    two.hold(MANY)
    two.close()
    assert two.hold(MANY) == RIGHT
    assert processes(two) == []
