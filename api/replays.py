"""Signed requests that somebody overheard and sends again.

Invariant: a request that a node signed is taken from one address only, for as long as its signature is in time; so a
heartbeat that was overheard cannot move the node to the eavesdropper. Memory only, bounded: the newest `SEEN_MAX`.
"""

import hashlib
import threading
from collections import OrderedDict
from typing import Final

SEEN_MAX: Final = 50_000


class Replays:
    """Thread-safe. One process: the hub has one that takes heartbeats."""

    def __init__(self) -> None:
        self._from: OrderedDict[bytes, str] = OrderedDict()  # hash of the header -> peer
        self._lock = threading.Lock()

    def is_replayed(self, authorization: str, peer_ip: str) -> bool:
        """Whether this very header came from another address before."""
        name = hashlib.sha256(authorization.encode("latin-1")).digest()
        with self._lock:
            known = self._from.setdefault(name, peer_ip)
            if len(self._from) > SEEN_MAX:
                self._from.popitem(last=False)
        return known != peer_ip
