"""Memory for bundles on their way: bounded, and nobody's that somebody else has."""

import random
from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from ledger.audit.slots import MOST_BYTES, Slot, Slots
from ledger.checks import SLOT_BYTES

SIZES = [1, 4_096, 100_000, SLOT_BYTES // 2, SLOT_BYTES]


@given(st.integers(0, 10**9), st.integers(2, 8))
def test_all_together_are_bounded_and_what_is_taken_is_ones_own(seed: int, count: int) -> None:
    dice, number = random.Random(seed), 0
    with ExitStack() as stack:
        slots = Slots(stack, count)
        taken: list[tuple[Slot, int, int]] = []  # (slot, its number, bytes when known)
        for _ in range(40):
            what = dice.random()
            if what < 0.5:
                slot = slots.take()
                if slot is None:
                    assert taken  # one is always to be had
                    continue
                number += 1
                assert slot.path not in {of.path for of, _, _ in taken}
                slot.memory[:8] = slot.memory[-8:] = number.to_bytes(8)
                taken.append((slot, number, SLOT_BYTES))
            elif taken:
                at = dice.randrange(len(taken))
                slot, own, size = taken[at]
                if size == SLOT_BYTES:
                    size = dice.choice(SIZES)
                    slots.loaded(slot, size)
                    taken[at] = (slot, own, size - (size == SLOT_BYTES))
                else:
                    slots.give(slot)
                    del taken[at]
            for slot, own, _ in taken:
                assert slot.memory[:8] == slot.memory[-8:] == own.to_bytes(8)
            assert sum(size for _, _, size in taken) <= MOST_BYTES
            held = sum(max(size, slot.written) for slot, _, size in taken)
            assert held + sum(slot.written for slot in slots._free) <= MOST_BYTES
            for slot in slots._free:
                assert slot.written or slot.memory[:8] == bytes(8)  # nothing is left there
