"""The bytes of every event are frozen: what was written once reads the same forever, and is written the same.

A new event gets its file from `python tests/ledger/test_golden_events.py`, which never touches a file that exists.
A file is never changed and never removed: some log holds such an event.
"""

from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints
from uuid import UUID, uuid5

import msgspec
import pytest

from ledger.event_codec import (
    EVENT_TYPES,
    MAX_EVENT_BYTES,
    UPCASTERS,
    UnknownEventError,
    check_tag,
    decode,
    decode_stored,
    encode,
    encode_each,
)
from ledger.events import Event, SegmentsServed
from ledger.judged import Judged, pack

GOLDEN = Path(__file__).parents[1] / "golden" / "events"
FILES = sorted(GOLDEN.glob("*.bin"))
_SEED = UUID("00000000-0000-5000-8000-000000000000")


def sample(kind: Any, name: str) -> Any:
    """A fixed value of any type that an event may hold, different for every field name."""
    origin, args = get_origin(kind), get_args(kind)
    number = int.from_bytes(uuid5(_SEED, name).bytes[:4]) % 70_000 - 500
    if origin in (Union, UnionType):
        return sample(next(a for a in args if a is not type(None)), name)
    if origin is tuple:
        return tuple(sample(args[0], f"{name}.{i}") for i in range(2))
    if origin is dict:
        return {f"{name}_{i}": sample(args[1], f"{name}.{i}") for i in range(2)}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind)
        return kind(**{field: sample(hints[field], f"{name}.{field}") for field in kind.__struct_fields__})
    values = {
        UUID: uuid5(_SEED, name),
        bytes: name.encode() * 3,
        str: f"{name} ä€",
        bool: True,
        int: {"at_us": 1_764_547_200_000_000, "originator_version": 1}.get(name, number),
    }
    return values[kind]


def sample_event(cls: type[Event]) -> Event:
    hints = get_type_hints(cls)
    if cls is SegmentsServed:  # its fields must fit together
        return segments_served(hints)
    return cls(**{field: sample(hints[field], field) for field in cls.__struct_fields__})


def segments_served(hints: dict[str, Any]) -> Event:
    sessions = [uuid5(_SEED, name) for name in ("one", "two", "one")]
    networks = [b"network 16 bytes", b"", b"network 16 bytes"]
    judged = [Judged("accepted", 512, 2**40), Judged("capped", cap="own_account"), Judged("duplicate")]
    fields = {"receipts": bytes(range(205)) * 3, **pack([0, 7, 199], sessions, networks, judged)}
    return SegmentsServed(**{f: sample(hint, f) for f, hint in hints.items() if f not in fields}, **fields)


@pytest.mark.parametrize("tag", sorted(EVENT_TYPES))
def test_every_event_is_written_as_its_golden_file(tag: str) -> None:
    event = sample_event(EVENT_TYPES[tag])
    assert encode(event) == (GOLDEN / f"{tag}.bin").read_bytes()


def test_events_written_together_are_written_as_each_alone() -> None:
    every = [sample_event(cls) for cls in EVENT_TYPES.values()]
    assert [bytes(data) for data in encode_each(every)] == [encode(event) for event in every]
    assert encode_each([]) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_event_ever_written_can_be_read(path: Path) -> None:
    data = path.read_bytes()
    event = decode_stored(data)
    assert decode_stored(data, path.stem) == event
    assert event == sample_event(EVENT_TYPES[path.stem])
    assert encode(event) == data
    if type(event) not in UPCASTERS:
        assert decode(data) == event


def test_a_tag_that_is_not_the_events_own_is_refused() -> None:
    data = (GOLDEN / "crew.founded.v1.bin").read_bytes()
    with pytest.raises(UnknownEventError):
        decode(data, "crew.key_added.v1")


def test_the_first_bytes_tell_each_type_from_every_other() -> None:
    golden = {path.stem: path.read_bytes() for path in FILES}
    for name, data in golden.items():
        for tag in golden:
            if tag == name:
                check_tag(data, tag)
            else:
                with pytest.raises(UnknownEventError):
                    check_tag(data, tag)
    with pytest.raises(UnknownEventError, match="older than the log"):
        check_tag(golden["crew.founded.v1"], "crew.founded.v9")


def test_the_largest_event_fits_a_log_entry_and_the_next_byte_does_not() -> None:
    event = sample_event(EVENT_TYPES["node.suspended.v1"])
    room = MAX_EVENT_BYTES - len(encode(msgspec.structs.replace(event, reason="x" * 300))) + 300
    assert len(encode(msgspec.structs.replace(event, reason="x" * room))) == MAX_EVENT_BYTES
    with pytest.raises(ValueError, match="at most 65535"):
        encode(msgspec.structs.replace(event, reason="x" * (room + 1)))
    with pytest.raises(ValueError, match="at most 65535"):
        encode_each([event, msgspec.structs.replace(event, reason="x" * (room + 1))])


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for tag, cls in EVENT_TYPES.items():
        if not (path := GOLDEN / f"{tag}.bin").exists():
            path.write_bytes(encode(sample_event(cls)))
