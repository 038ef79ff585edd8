"""What an event says of each receipt, in columns of bytes: to write and read a verdict costs next to nothing.

Invariant: what `pack` was given can be read from its columns, and the same verdicts give the same bytes: sessions and
networks stand once each, in the order in which they are first met.
"""

import struct
from collections.abc import Hashable, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

from ledger.verdict import CAPS, VERDICTS

SESSION_BYTES: Final = 16
UNITS_BYTES: Final = 2
SIZE_BYTES: Final = 8
VERDICT_CODES: Final = {verdict.value: code for code, verdict in enumerate(VERDICTS)}
CAP_CODES: Final = {cap.value: code for code, cap in enumerate(CAPS)}
VERDICT_NAMES: Final = tuple(verdict.value for verdict in VERDICTS)
_NUMBERS: Final = bytes(range(256))
CAP_NAMES: Final = tuple(cap.value for cap in CAPS)
T = TypeVar("T", bound=Hashable)


class Judged(msgspec.Struct, frozen=True, array_like=True, gc=False):
    verdict: str  # ledger.verdict.Verdict
    units: int = 0  # newly credited segments
    credited_bytes: int = 0  # the published sizes of those
    cap: str = ""  # ledger.verdict.Cap, when capped


def pack(
    indices: Sequence[int], sessions: Sequence[UUID], networks: Sequence[bytes], judged: Sequence[Judged]
) -> dict[str, Any]:
    """The columns of `events.SegmentsServed`, from one value of each for every receipt.

    Raises ValueError for what has no place in them.
    """
    count = len(judged)
    try:
        known_sessions, session_of = _numbered(sessions)
        known_networks, network_of = _numbered(networks)
        return {
            "indices": bytes(indices),
            "sessions": b"".join([s.bytes for s in known_sessions]),
            "session_of": session_of,
            "networks": tuple(known_networks),
            "network_of": network_of,
            "verdicts": bytes([VERDICT_CODES[j.verdict] for j in judged]),
            "caps": bytes([CAP_CODES[j.cap] for j in judged]),
            "units": struct.pack(f">{count}H", *[j.units for j in judged]),
            "credited_bytes": struct.pack(f">{count}Q", *[j.credited_bytes for j in judged]),
        }
    except (KeyError, struct.error) as e:
        raise ValueError(f"a verdict that cannot be written: {e}") from e


def unpack(verdicts: bytes, caps: bytes, units: bytes, credited_bytes: bytes) -> tuple[Judged, ...]:
    """One verdict for each receipt."""
    count = len(verdicts)
    return tuple(
        [
            Judged(VERDICT_NAMES[verdict], n, size, CAP_NAMES[cap])
            for verdict, n, size, cap in zip(
                verdicts,
                struct.unpack(f">{count}H", units),
                struct.unpack(f">{count}Q", credited_bytes),
                caps,
                strict=True,
            )
        ]
    )


def fit(
    *,
    indices: bytes,
    sessions: bytes,
    session_of: bytes,
    networks: Sequence[bytes],
    network_of: bytes,
    verdicts: bytes,
    caps: bytes,
    units: bytes,
    credited_bytes: bytes,
) -> bool:
    """Whether the columns are of one length and point at nothing that is not there."""
    count = len(indices)
    return (
        count == len(session_of) == len(network_of) == len(verdicts) == len(caps)
        and count * UNITS_BYTES == len(units)
        and count * SIZE_BYTES == len(credited_bytes)
        and len(sessions) % SESSION_BYTES == 0
        and numbers_fit(len(sessions) // SESSION_BYTES, len(networks), session_of, network_of, verdicts, caps)
    )


def numbers_fit(
    sessions: int, networks: int, session_of: bytes, network_of: bytes, verdicts: bytes, caps: bytes
) -> bool:
    """Whether the columns point at nothing that is not there, of so many sessions and networks."""
    return (
        _all_below(sessions, session_of)
        and _all_below(networks, network_of)
        and _all_below(len(VERDICTS), verdicts)
        and _all_below(len(CAPS), caps)
    )


def in_order(sessions: bytes, session_of: bytes, networks: Sequence[bytes], network_of: bytes) -> bool:
    """Whether sessions and networks stand once each, in the order in which they are first met, as `pack` has them."""
    return as_first_met(
        len(sessions) // SESSION_BYTES, session_of, len(networks), network_of
    ) and all_different(sessions, networks)


def as_first_met(sessions: int, session_of: bytes, networks: int, network_of: bytes) -> bool:
    """Whether so many sessions and networks stand in the order in which they are first met, and no others."""
    return _ascending(sessions, session_of) and _ascending(networks, network_of)


def all_different(sessions: bytes, networks: Sequence[bytes]) -> bool:
    """Whether sessions and networks stand once each."""
    known = {sessions[i : i + SESSION_BYTES] for i in range(0, len(sessions), SESSION_BYTES)}
    return len(known) * SESSION_BYTES == len(sessions) and len(set(networks)) == len(networks)


def _ascending(count: int, of: bytes) -> bool:
    """Whether these begin with 0, and none is met before the one below it."""
    numbers = _NUMBERS[:count]
    return of == numbers or bytes(dict.fromkeys(of)) == numbers


def _all_below(limit: int, numbers: bytes) -> bool:
    return not numbers.translate(None, _NUMBERS[:limit])


def _numbered(values: Sequence[T]) -> tuple[list[T], bytes]:
    """The different values as they are first met, and for each value which of them it is."""
    numbers: dict[T, int] = {}
    of = bytes([numbers.setdefault(value, len(numbers)) for value in values])
    return list(numbers), of
