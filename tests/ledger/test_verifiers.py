"""Signatures verified by processes of their own: the answer is that of `ledger.keys.verify`, whatever happens."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ledger import receipt, verifiers
from ledger.keys import KeyPair, verify
from ledger.verifiers import Verifiers


def signed(number: int) -> tuple[bytes, bytes]:
    """Every third is not what its key signed."""
    key = KeyPair(number.to_bytes(32, "big"))
    body = number.to_bytes(receipt.BODY_BYTES, "big")
    signature = key.sign(receipt.DOMAIN, body)
    if number % 3 == 0:
        signature = bytes([signature[0] ^ 1]) + signature[1:]
    return key.public_key, body + signature


MANY = [signed(n) for n in range(100)]
RIGHT = [n % 3 != 0 for n in range(100)]


def hold(by: Verifiers, which: slice = slice(None)) -> list[bool]:
    return [held == 1 for held in by.hold(b"".join(key + data for key, data in MANY[which]))]


@pytest.fixture
def two() -> Iterator[Verifiers]:
    found = Verifiers(2)
    yield found
    found.close()


def processes(of: Verifiers) -> list[int]:
    return [p.process.pid for p in of._processes]


def test_what_a_process_knows_of_a_receipt_is_what_a_receipt_is() -> None:
    assert (verifiers.DOMAIN, verifiers.BODY_BYTES) == (receipt.DOMAIN, receipt.BODY_BYTES)
    key, data = MANY[1]
    assert verify(key, receipt.DOMAIN, data[: receipt.BODY_BYTES], data[receipt.BODY_BYTES :])


def test_a_few_are_verified_where_they_are_asked_and_many_by_every_process(two: Verifiers) -> None:
    assert two.hold(b"") == b""
    assert hold(two, slice(3)) == RIGHT[:3]
    assert processes(two) == []
    assert hold(two) == RIGHT
    assert len(processes(two)) == 2


def test_many_threads_get_the_answers_to_what_they_asked(two: Verifiers) -> None:
    starts = [n * 7 % 60 for n in range(80)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda start: hold(two, slice(start, start + 40)), starts))
    assert answers == [RIGHT[start : start + 40] for start in starts]


def test_a_process_that_died_costs_no_verdict_and_is_replaced(two: Verifiers) -> None:
    hold(two)
    before = processes(two)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert hold(two) == RIGHT
    assert hold(two) == RIGHT
    assert len(processes(two)) == 2
    assert not set(before) & set(processes(two))


def test_a_process_that_does_not_answer_is_given_up(two: Verifiers) -> None:
    hold(two)
    silent = two._processes[0]
    silent.patience(0.2)
    os.kill(silent.process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(8) as pool:  # those who wait behind the one that finds out, too
        assert list(pool.map(lambda _: hold(two), range(8))) == [RIGHT] * 8
    assert silent not in two._processes
    assert silent.socket.fileno() == -1


def test_a_thread_that_is_interrupted_spoils_nobody_s_answer(
    two: Verifiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(two)
    before = processes(two)
    answer, interrupted = verifiers._Question.answer, threading.Event()

    def interrupt_once(question: verifiers._Question) -> bytes | None:
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt
        return answer(question)

    monkeypatch.setattr(verifiers._Question, "answer", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        hold(two)
    assert not set(before) & set(processes(two))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: hold(two), range(8))) == [RIGHT] * 8


def test_without_processes_and_after_the_end_all_is_verified_where_it_is_asked(two: Verifiers) -> None:
    assert hold(Verifiers(0)) == RIGHT
    hold(two)
    two.close()
    assert hold(two) == RIGHT
    assert processes(two) == []
