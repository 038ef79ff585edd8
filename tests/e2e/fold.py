"""The ledger told again by dictionaries and loops, from the bytes in Postgres and the design documents alone.

Nothing of the ledger's own code is used: what both say independently is right. `Fold.problems` lists what does not
hold, each with the log position.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

import msgspec
import psycopg

RECEIPT_BYTES = 205
VERDICTS = (  # by the codes in protocol.md
    "malformed",
    "unknown_ticket",
    "wrong_node",
    "bad_signature",
    "late",
    "out_of_range",
    "digest_mismatch",
    "duplicate",
    "capped",
    "accepted",
)
Claims = tuple[bytes, frozenset[int]]  # ticket hash, sequences


def claims_of(receipt: bytes) -> Claims:
    """Ticket hash and sequences that the bytes of a receipt claim (3-receipts.md, protocol.md)."""
    base = int.from_bytes(receipt[37:45], "big")
    bits = int.from_bytes(receipt[45:109], "little")
    return receipt[1:33], frozenset(base + i for i in range(512) if bits >> i & 1)


@dataclass
class Fold:
    size: int = 0
    balances: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    credited: dict[tuple[UUID, int], int] = field(default_factory=dict)  # (session, sequence) -> position
    units: int = 0
    judged: dict[bytes, list[tuple[frozenset[int], str]]] = field(default_factory=lambda: defaultdict(list))
    verdicts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    settled_units: int = 0
    settled_to: int = 0  # credits before this position are settled
    last_credit: int = -1
    last_transfer: int = -1
    broadcasts: list[UUID] = field(default_factory=list)
    segments: int = 0
    kinds: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._session_of: dict[bytes, UUID] = {}  # by ticket hash
        self._versions: dict[UUID, int] = {}
        self._sizes: dict[tuple[UUID, int], int] = {}  # (delivery, sequence) -> bytes
        self._next: dict[UUID, int] = {}  # broadcast -> next sequence
        self._stream_of: dict[UUID, UUID] = {}
        self._stream_next: dict[UUID, int] = {}
        self._shas: dict[tuple[UUID, int], bytes] = {}

    def take(self, position: int, originator: UUID, version: int, topic: str, state: bytes) -> None:
        event: dict[str, Any] = msgspec.msgpack.decode(state)
        self._expect(position == self.size, position, f"follows {self.size - 1}: not dense")
        self.size = position + 1
        self._expect(event["type"] == topic, position, "topic is not the event's own")
        self._expect(UUID(bytes=event["originator_id"]) == originator, position, "another originator")
        self._expect(
            version == self._versions.get(originator, 0) + 1, position, f"version {version} is out of order"
        )
        self._versions[originator] = version
        self.kinds[topic] += 1
        for transfer in [*event.get("transfers", []), *([event["transfer"]] if "transfer" in event else [])]:
            self._transfer(position, transfer)
        handler = getattr(self, "_on_" + topic.replace(".", "_"), None)
        if handler is not None:
            handler(position, originator, event)

    def _transfer(self, position: int, transfer: list[Any]) -> None:
        postings = transfer[1]
        self._expect(sum(amount for _, amount in postings) == 0, position, "a transfer does not sum to zero")
        self.last_transfer = position
        for account, amount in postings:
            self.balances[account] += amount
        for account, _ in postings:
            owned = account not in ("external", "fees") and not account.endswith(":paid")
            self._expect(not owned or self.balances[account] >= 0, position, f"{account} is negative")

    def _on_broadcast_started_v1(self, position: int, originator: UUID, event: dict[str, Any]) -> None:
        stream, first = UUID(bytes=event["stream_id"]), event["first_sequence"]
        self._expect(first >= self._stream_next.get(stream, 0), position, "the media sequence went back")
        self._stream_of[originator] = stream
        self._next[originator] = first
        self._stream_next[stream] = first
        self.broadcasts.append(originator)

    def _on_broadcast_segments_published_v1(
        self, position: int, originator: UUID, event: dict[str, Any]
    ) -> None:
        delivery = uuid5(originator, "delivery")
        for sequence, _duration, size, sha, *_ in event["segments"]:
            self._expect(sequence == self._next[originator], position, f"sequence {sequence} is out of order")
            self._next[originator] = sequence + 1
            self._stream_next[self._stream_of[originator]] = sequence + 1
            self._sizes[delivery, sequence] = size
            self._shas[originator, sequence] = sha
            self.segments += 1

    def _on_delivery_segments_served_v2(self, position: int, originator: UUID, event: dict[str, Any]) -> None:
        receipts, sizes = event["receipts"], event["credited_bytes"]
        rows = [receipts[i : i + RECEIPT_BYTES] for i in range(0, len(receipts), RECEIPT_BYTES)]
        self._expect(len(rows) == len(event["verdicts"]), position, "counts differ")
        for i, receipt in enumerate(rows):
            verdict = VERDICTS[event["verdicts"][i]]
            units = int.from_bytes(event["units"][2 * i : 2 * i + 2], "big")
            credited_bytes = int.from_bytes(sizes[8 * i : 8 * i + 8], "big")
            at = 16 * event["session_of"][i]
            session = event["sessions"][at : at + 16]
            ticket, sequences = claims_of(receipt)
            self.judged[ticket].append((sequences, verdict))
            self._session_of[ticket] = UUID(bytes=session)
            self.verdicts[verdict] += 1
            fresh = {s for s in sequences if (UUID(bytes=session), s) not in self.credited}
            if verdict != "accepted":
                self._expect(units == credited_bytes == 0, position, f"{verdict}, but credited")
                continue
            self._expect(units == len(fresh), position, f"{units} units credited, {len(fresh)} are new")
            size = sum(self._sizes.get((originator, s), 0) for s in fresh)
            self._expect(
                size == credited_bytes, position, f"{credited_bytes} bytes credited, {size} published"
            )
            self.units += units
            self.last_credit = position
            for s in fresh:
                self.credited[UUID(bytes=session), s] = position

    def _on_node_receipts_refused_v1(self, _position: int, _originator: UUID, event: dict[str, Any]) -> None:
        receipts = event["receipts"]
        for i, (verdict, *_) in enumerate(event["judged"]):
            ticket, sequences = claims_of(receipts[i * RECEIPT_BYTES : (i + 1) * RECEIPT_BYTES])
            self.judged[ticket].append((sequences, verdict))
            self.verdicts[verdict] += 1

    def _on_book_epoch_settled_v1(self, position: int, _originator: UUID, event: dict[str, Any]) -> None:
        if event["page"] == 1:
            self._expect(
                event["log_from"] == self.settled_to, position, "an epoch does not begin where the last ended"
            )
        self.settled_to = event["log_to"]
        self.settled_units += sum(units for _, _, _, _, units, *_ in event["lines"])

    def _expect(self, holds: bool, position: int, what: str) -> None:
        if not holds:
            self.problems.append(f"position {position}: {what}")

    def unjudged(self, acknowledged: list[bytes]) -> list[bytes]:
        """Acknowledged receipts that claim something the log has no verdict on. (Receipts are cumulative, and one that
        brings nothing new is answered without an event.)"""
        missing = []
        for receipt in acknowledged:
            ticket, sequences = claims_of(receipt)
            said = self.judged.get(ticket, [])
            session = self._session_of.get(ticket)
            new = {s for s in sequences if session is None or (session, s) not in self.credited}
            if not any(sequences <= claimed for claimed, _ in said) and (new or not said):
                missing.append(receipt)
        return missing

    @property
    def money(self) -> dict[str, int]:
        """Balances that are not zero."""
        return {account: amount for account, amount in sorted(self.balances.items()) if amount}


def fold(connection: psycopg.Connection[Any]) -> Fold:
    """All events of the log, in the order of their positions."""
    told = Fold()
    query = "SELECT position, originator_id, originator_version, topic, state FROM crew_main.events ORDER BY position"
    for row in connection.execute(query):
        told.take(*row)
    if sum(told.balances.values()) != 0:
        told.problems.append("the accounts do not sum to zero")
    return told
