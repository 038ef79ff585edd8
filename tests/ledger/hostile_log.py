"""A hub that owns every key: it changes one fact of one event, encodes and hashes everything anew, and signs that.

`changes` gives other values for every field of an event, by its type: each field, and each field of what is in it.
`replayed` is what an audit says of entries once their files hold, without the files.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
import numpy as np
from crew_life import make_id

from ledger.audit.helpers import Helpers
from ledger.audit.replay import Replay
from ledger.audit.report import AuditFailure
from ledger.audit.store import Store
from ledger.audit.stream import Entries
from ledger.checks import SLOT_BYTES, read_entries, told_in
from ledger.events import Event
from ledger.receipt import SIGNED_BYTES
from ledger.tlog.tiles import WIDTH

MOST: Final = 3  # elements of a sequence that are changed one by one
_US: Final = 1_000_000
_TIMES: Final = (1, -1, 90, -90, 3_600, -3_600, 4 * 86_400, -4 * 86_400)

Change = tuple[str, Any]  # what is changed ("lines[].amount_micro"), and the event as it is then


def changes(event: Event, ids: Sequence[UUID], dice: random.Random) -> Iterator[Change]:
    """Everything that can be said otherwise in one place. `ids` are those that the log knows."""
    for name in event.__struct_fields__:
        for path, value in _of(name, getattr(event, name), ids, dice):
            try:
                yield path, msgspec.structs.replace(event, **{name: value})
            except ValueError:  # columns that do not fit together cannot be written
                continue


def _of(path: str, value: Any, ids: Sequence[UUID], dice: random.Random) -> Iterator[Change]:
    match value:
        case bool():
            yield path, not value
        case int():
            yield from ((path, other) for other in _ints(path, value) if other != value)
        case str():
            others = ["", value + "x", value.upper(), "confirmed", "failed", "delivery", "\x1b[2Jé"]
            yield from ((path, other) for other in others if other != value)
        case bytes():
            yield from ((path, other) for other in _bytes(path, value, dice) if other != value)
        case UUID():
            yield path, make_id("nobody")
            yield from ((path, other) for other in dice.sample(ids, 2) if other != value)
        case None:
            yield path, make_id("nobody")
            yield path, dice.choice(ids)
        case tuple():
            yield from _tuples(path, value, ids, dice)
        case dict():
            for key, each in value.items():
                yield f"{path}[{key}]", {k: v for k, v in value.items() if k != key}
                for _, other in _of(path, each, ids, dice):
                    yield f"{path}[{key}]", value | {key: other}
            yield f"{path}[]", value | {"unknown": 1}
        case msgspec.Struct():
            for name in value.__struct_fields__:
                for deeper, other in _of(f"{path}.{name}", getattr(value, name), ids, dice):
                    yield deeper, msgspec.structs.replace(value, **{name: other})
        case _:
            raise TypeError(f"{path}: {value!r}")
    if path == "account_id" and value is not None:
        yield path, None


def _ints(path: str, value: int) -> Iterator[int]:
    if path.endswith("_us"):
        yield from (value + s * _US for s in _TIMES)
    yield from (value + 1, value - 1, 0, -1, 2 * value, (1 << 63) - 1, (1 << 64) - 1, -(1 << 63))


def _bytes(path: str, value: bytes, dice: random.Random) -> Iterator[bytes]:
    yield from (b"", value + b"\0", value[:-1], bytes(len(value)))
    for at in {0, len(value) - 1, dice.randrange(len(value) or 1)} if value else ():
        yield value[:at] + bytes([value[at] ^ 1 << dice.randrange(8)]) + value[at + 1 :]
    if path == "receipts" and len(value) > SIGNED_BYTES:
        yield value[SIGNED_BYTES:] + value[:SIGNED_BYTES]


def _tuples(path: str, value: tuple[Any, ...], ids: Sequence[UUID], dice: random.Random) -> Iterator[Change]:
    yield from ((path, other) for other in (value[:-1], value[1:], value[::-1]) if other != value)
    if value:
        yield path, (*value, value[-1])
    else:
        yield path, (0,)
    for i in sorted({0, len(value) - 1, dice.randrange(len(value))})[:MOST] if value else ():
        for deeper, other in _of(f"{path}[]", value[i], ids, dice):
            yield deeper, (*value[:i], other, *value[i + 1 :])


def replayed(entries: Sequence[bytes]) -> AuditFailure | None:
    """The first thing that does not hold."""
    helpers, store = Helpers(0), Store()
    replay = Replay(store, helpers)
    room = np.empty(SLOT_BYTES // 8, np.int64)
    try:
        try:
            for start in range(0, len(entries), WIDTH):
                some = [memoryview(data) for data in entries[start : start + WIDTH]]
                read = read_entries(some, room)
                claims = told_in(room, read.claims, read.named)
                replay.apply_all(Entries(start, some, read.strange, read.admitted, read.deliveries, claims))
                replay.trim()
        except AuditFailure as failure:
            _earliest(replay, failure)
        replay.finish()
    except AuditFailure as failure:
        return failure
    finally:
        store.close()
        helpers.close()
    return None


def _earliest(replay: Replay, failure: AuditFailure) -> None:
    replay.signatures.finish()
    raise failure
