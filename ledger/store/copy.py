"""Rows of the log in the binary format of COPY (PostgreSQL documentation, "COPY", file format).

Invariant: the rows are exactly the events given, in their order, at positions that follow each other.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Final
from uuid import UUID

from eventsourcing.persistence import StoredEvent

ROWS_PER_PART: Final = 256  # the server takes in one part while the next is made
_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"


def copy_rows(first: int, stored_events: Sequence[StoredEvent]) -> Iterator[bytes]:
    """(position, originator_id, originator_version, topic, state) of each event, in parts."""
    parts = [_HEADER]
    for position, event in enumerate(stored_events, first):
        originator_id, state = event.originator_id, event.state
        pack, topic = _fixed_columns(event.topic)
        id_ = originator_id if isinstance(originator_id, UUID) else UUID(originator_id)
        parts.append(
            pack(5, 8, position, 16, id_.bytes, 8, event.originator_version, len(topic), topic, len(state))
        )
        parts.append(state)
        if len(parts) >= 2 * ROWS_PER_PART:
            yield b"".join(parts)
            parts.clear()
    parts.append(_TRAILER)
    yield b"".join(parts)


@lru_cache(1_024)
def _fixed_columns(topic: str) -> tuple[Callable[..., bytes], bytes]:
    """Packs the number of columns, then each column after its length in bytes; of the state only the length."""
    encoded = topic.encode()
    return struct.Struct(f">hiqi16siqi{len(encoded)}si").pack, encoded
