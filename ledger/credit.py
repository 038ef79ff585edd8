"""Credits: which segments of which session are already paid for. Grow-only sets, merged by union.

Invariant: a (session, sequence) unit is credited at most once, in whatever order and however often its receipts
arrive; and of one viewer network at most `limit` sessions are credited for the same sequence.
"""

from uuid import UUID

Units = int  # a set of sequences as bits: bit s is set when sequence s is in it, relative to the broadcast's first


def count(units: Units) -> int:
    return units.bit_count()


class CreditSet:
    """Credits of one broadcast. `first_sequence` is the origin of the bitmaps, so that they stay small."""

    def __init__(self) -> None:
        self._by_session: dict[UUID, Units] = {}
        self._by_network: dict[bytes, list[Units]] = {}  # [k]: credited for at least k + 1 sessions

    @classmethod
    def of(cls, by_session: dict[UUID, Units], by_network: dict[bytes, list[Units]]) -> "CreditSet":
        """One that holds what is given: of a network, what is credited for at least 1, 2, ... of its sessions."""
        credits = cls()
        credits._by_session, credits._by_network = by_session, by_network
        return credits

    def copy_of(self, sessions: set[UUID], networks: set[bytes]) -> "CreditSet":
        """A scratch copy of the parts named, to try receipts on without touching the real thing."""
        scratch = CreditSet()
        scratch._by_session = {s: self._by_session[s] for s in sessions if s in self._by_session}
        scratch._by_network = {n: list(self._by_network[n]) for n in networks if n in self._by_network}
        return scratch

    def restore(self, scratch: "CreditSet", sessions: set[UUID], networks: set[bytes]) -> None:
        """Take the parts named back to what they were when `scratch` was made of them."""
        for session_id in sessions:
            self._by_session.pop(session_id, None)
        for network in networks:
            self._by_network.pop(network, None)
        self._by_session |= scratch._by_session
        self._by_network |= {n: list(levels) for n, levels in scratch._by_network.items()}

    def credited(self, session_id: UUID) -> Units:
        """What the session is credited for so far."""
        return self._by_session.get(session_id, 0)

    def missing(self, session_id: UUID, units: Units) -> Units:
        """The part of `units` that is not credited to the session yet."""
        return units & ~self._by_session.get(session_id, 0)

    def within_network_limit(self, network: bytes, units: Units, limit: int) -> Units:
        """The part of `units` for which the viewer network has fewer than `limit` credited sessions."""
        levels = self._by_network.get(network, [])
        return units & ~levels[limit - 1] if len(levels) >= limit else units

    def credit(self, session_id: UUID, network: bytes, units: Units) -> None:
        """Add `units`, all of which must be `missing`."""
        before = self._by_session.get(session_id, 0)
        if units & before:
            raise ValueError("a unit may be credited only once")
        self._by_session[session_id] = before | units
        if not network:
            return
        levels = self._by_network.setdefault(network, [])
        carry = units
        for k, level in enumerate(levels):
            levels[k], carry = level | carry, level & carry
        if carry:
            levels.append(carry)
