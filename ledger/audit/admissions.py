"""Sessions and tickets by the bundle: the rules of ledger.audit.delivery on columns, where nothing is unusual.

Invariant: `take` says yes only where event by event each of them would be found right, whatever stands between them;
then all that is known afterwards is the same. It says no, and has changed nothing, to everything else, right or wrong:
that is taken event by event. A property test holds the two together.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Final
from uuid import UUID

import numpy as np

from ledger.audit.crew import Crew
from ledger.audit.dues import Dues
from ledger.audit.facts import Facts
from ledger.audit.facts import Session as KnownSession
from ledger.audit.facts import Ticket as KnownTicket
from ledger.audit.report import Counts
from ledger.audit.signatures import Signatures
from ledger.audit.store import Table
from ledger.checks import Check, Signed
from ledger.events import Event
from ledger.layout import SESSIONS, TICKETS, Admitted
from ledger.served import Delivery
from ledger.services.credit_index import DAY_US
from ledger.ticket import BODY_BYTES, DOMAIN, SIGNED_BYTES, ViewerClass

FEWEST: Final = 4  # so many are worth columns
_LIMIT: Final = np.uint64(1 << 62)
Entries = Sequence[bytes | memoryview]


class Admissions:
    def __init__(
        self,
        crew: Crew,
        facts: Facts,
        dues: Dues,
        versions: Table[int],
        counts: Counts,
        signatures: Signatures,
    ) -> None:
        self._crew = crew
        self._facts = facts
        self._dues = dues
        self._versions = versions
        self._counts = counts
        self._verify = signatures.verify
        self._later: deque[tuple[int, Check]] = deque()  # signatures of tickets, and where they stand

    def due(self, position: int) -> Iterable[tuple[int, Check]]:
        """The signatures of tickets before `position`: checks are made in the order of the log."""
        while self._later and self._later[0][0] < position:
            yield self._later.popleft()

    def take(
        self, start: int, entries: Entries, admitted: Admitted, between: list[tuple[int, Event | Delivery]]
    ) -> bool:
        """Sessions and tickets of some entries, the first of which is at `start`; `between` are the other events."""
        sessions, times = self._sessions(start, entries, admitted.sessions)
        rows = TICKETS.read([entries[i] for i in admitted.tickets])
        at_us = rows["at_us"].astype(np.int64)
        positions = [start + i for i in admitted.tickets]
        ids = {key: s.position for key, s in sessions.items()}
        records = rows["originator"].tolist()
        ids.update(zip(records, positions, strict=True))
        if len(ids) < len(admitted.sessions) + len(positions):
            return False
        if self._versions.any(ids) or self._facts.any_opened(ids):
            return False
        if any(ids.get(event.originator_id.bytes, -1) > position for position, event in between):
            return False
        times += [event.at_us for _, event in between] + at_us.tolist()
        if not self._dues.in_this_epoch(times):
            return False
        if positions:
            kept = self._tickets(rows, at_us, positions, sessions)
            if kept is None:
                return False
            self._facts.tickets.put_all(dict(zip(records, kept, strict=True)))
            self._counts.tickets += len(kept)
        self._facts.sessions.put_all(sessions)
        return True

    # --- sessions

    def _sessions(
        self, start: int, entries: Entries, which: bytes
    ) -> tuple[dict[bytes, KnownSession], list[int]]:
        """By id, and when they were opened."""
        sessions: dict[bytes, KnownSession] = {}
        times: list[int] = []
        by_size: dict[int, list[int]] = {}
        for i in which:
            by_size.setdefault(len(entries[i]), []).append(i)
        for size, some in by_size.items():
            viewer_class, layout = SESSIONS[size]
            rows = layout.read([entries[i] for i in some])
            names = layout.rows.names or ()
            columns = zip(
                rows["session"].tolist(),
                rows["stream"].tolist(),
                rows["viewer_key"].tolist() if "viewer_key" in names else repeat(b""),
                rows["network"].tolist(),
                rows["account"].tolist() if "account" in names else repeat(b""),
                some,
                strict=False,
            )
            for key, stream, viewer_key, network, account, i in columns:
                sessions[key] = KnownSession(
                    stream, int(viewer_class), viewer_key, network, account, start + i
                )
            times += rows["at_us"].tolist()
        return sessions, times

    # --- tickets

    def _tickets(
        self,
        rows: "np.ndarray[tuple[int], np.dtype[np.void]]",
        at_us: "np.ndarray[tuple[int], np.dtype[np.int64]]",
        positions: list[int],
        sessions: dict[bytes, KnownSession],
    ) -> list[KnownTicket] | None:
        """What is to be known of each, when all are right. Then their credits have a pool, and signatures are due."""
        tickets = rows["ticket"]
        numbers = {
            name: tickets[name].astype(np.uint64) for name in ("first", "last", "settle_by_s", "byte_budget")
        }
        if any((column >= _LIMIT).any() for column in numbers.values()):
            return None
        settings = self._crew.settings.now
        now_s = at_us.astype(np.uint64) // np.uint64(1_000_000)
        limits = (settings.ticket_segments, settings.settle_by_s, settings.ticket_bytes_max)
        if not 0 <= min(limits) <= max(limits) < _LIMIT:
            return None
        segments, settle, budget = np.array(limits, np.uint64)
        within = (
            (numbers["last"] - numbers["first"] < segments)
            & (numbers["settle_by_s"] == now_s + settle)
            & (numbers["byte_budget"] == budget)
        )
        if not within.all():
            return None
        broadcasts, nodes = rows["broadcast"].tolist(), rows["node"].tolist()
        streams, hub_keys = tickets["stream"].tolist(), tickets["hub_key_id"].tolist()
        node_keys, viewer_keys = tickets["node_key"].tolist(), tickets["viewer_key"].tolist()
        common = zip(
            broadcasts, streams, tickets["rendition"].tolist(), nodes, node_keys, hub_keys, strict=True
        )
        if not all(self._allowed(*each) for each in set(common)):
            return None
        classes, of = tickets["viewer_class"].tolist(), tickets["session"].tolist()
        get = self._facts.sessions.get
        for session, stream, kind, viewer_key, node_key, position in zip(
            of, streams, classes, viewer_keys, node_keys, positions, strict=True
        ):
            known = sessions.get(session) or get(session)
            if (
                known is None
                or known.position > position
                or known.stream_id != stream
                or known.viewer_class != kind
                or viewer_key != (known.viewer_key if kind == ViewerClass.SIGNING else node_key)
            ):
                return None
        settle_by_s = numbers["settle_by_s"].tolist()
        pools = self._pools(streams, nodes, (at_us // DAY_US).tolist(), settle_by_s)
        signed = tickets.tobytes()
        bodies = [signed[i : i + BODY_BYTES] for i in range(0, len(signed), SIGNED_BYTES)]
        if ViewerClass.PLAIN in classes:
            for n in [n for n, kind in enumerate(classes) if kind == ViewerClass.PLAIN]:
                self._dues.issued_plain(
                    of[n],
                    first=int(numbers["first"][n]),
                    last=int(numbers["last"][n]),
                    settle_by_s=settle_by_s[n],
                    pool=pools[n],
                    position=positions[n],
                )
        if self._verify:
            keys = {k: self._crew.state.keys["ticket", k].public_key for k in set(hub_keys)}
            signatures = tickets["signature"].tolist()
            self._later += [
                (position, Signed(keys[key], DOMAIN, body, signature))
                for position, key, body, signature in zip(
                    positions, hub_keys, bodies, signatures, strict=True
                )
            ]
        return list(map(KnownTicket, bodies, broadcasts, positions, pools))

    def _allowed(
        self, broadcast: bytes, stream: bytes, rendition: bytes, node: bytes, node_key: bytes, hub_key: bytes
    ) -> bool:
        """Whether the hub may issue such a ticket, by what is in force now and was a moment ago."""
        known = self._facts.broadcast(broadcast)
        at = self._crew.state.nodes.get(UUID(bytes=node))
        key = self._crew.state.keys.get(("ticket", hub_key))
        return (
            known is not None
            and known.stream_id.bytes == stream
            and known.rendition_id.bytes == rendition
            and at is not None
            and at.now.public_key == node_key
            and key is not None
            and key.retired_us is None
        )

    def _pools(
        self, streams: list[bytes], nodes: list[bytes], days: list[int], settle_by_s: list[int]
    ) -> list[int]:
        keys = list(zip(streams, nodes, days, settle_by_s, strict=True))
        pools: dict[tuple[bytes, bytes, int, int], int] = {}
        for key in dict.fromkeys(keys):
            stream, node, day, by_s = key
            nid = UUID(bytes=node)
            pools[key] = self._dues.issued(
                stream_id=UUID(bytes=stream),
                node_id=nid,
                friend_id=self._crew.node(nid).now.friend_id,
                at_us=day * DAY_US,
                settle_by_s=by_s,
            )
        return [pools[key] for key in keys]
