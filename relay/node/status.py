"""What a node says of itself: a little to anyone, all of it to its owner. See docs/friends.md for the owner's part.

Invariant: receipts and earnings are told only to who signs with the node's key, and to the page on loopback.
"""

import functools
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec

from ledger.keys import KeyPair
from ledger.request import RequestAuthError, verify_request
from relay.node.app import LEAVING
from relay.node.cache import SegmentCache
from relay.node.heartbeat import Heartbeat
from relay.node.identity import Profile
from relay.node.mapping.keeper import PortKeeper
from relay.node.sender import Sender
from relay.node.spool import Spool
from relay.node.traffic import Traffic

ALONE_S: Final = 30  # without an answer of the hub for so long


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    key: KeyPair
    profile: Profile
    port: int
    ports: PortKeeper | None
    traffic: Traffic
    cache: SegmentCache
    spool: Spool
    sender: Sender
    heartbeat: Heartbeat

    def health(self, authorization: bytes | None) -> dict[str, Any]:
        """For `GET /health` with that Authorization header."""
        return self.owner() if self._is_mine(authorization) else self.public()

    def public(self) -> dict[str, Any]:
        ago_s = self.heartbeat.answered_ago_s()
        here = "ok" if ago_s is not None and ago_s < ALONE_S else "alone"
        return {
            "status": LEAVING if self.heartbeat.away else here,
            "node_id": self.profile.node_id,
            "version": _version(),
            "viewers": self.traffic.viewers(),
        }

    def owner(self) -> dict[str, Any]:
        ago_s, earned = self.heartbeat.answered_ago_s(), self.heartbeat.earned
        return self.public() | {
            "name": self.profile.name,
            "hub": {
                "url": self.profile.hub_url,
                "node_status": self.heartbeat.status,
                "reason": self.heartbeat.reason,
                "heartbeat_ago_s": None if ago_s is None else round(ago_s, 1),
                "error": self.heartbeat.error or self.sender.error,
                "clock_ahead_s": self.heartbeat.hub_ahead_s,
            },
            "traffic": {
                "uploaded_bytes": self.traffic.uploaded_bytes,
                "segments": self.traffic.segments,
                "refused": self.traffic.refused,
            },
            "port": self._port(),
            "cache": {
                "segments": len(self.cache),
                "bytes": self.cache.kept_bytes,
                "pulled_bytes": self.cache.pulled_bytes,
                "corrupt": self.cache.corrupt,
            },
            "receipts": {
                "waiting": self.spool.pending,
                "spool_bytes": self.spool.file_bytes,
                "batches": self.sender.batches,
                "verdicts": dict(self.sender.verdicts),
                "units": self.sender.units,
                "credited_bytes": self.sender.credited_bytes,
                "recent": list(self.sender.history),
            },
            "earned": None if earned is None else msgspec.to_builtins(earned),
        }

    def _port(self) -> dict[str, Any]:
        lease = self.ports.lease if self.ports else None
        return {
            "listening": self.port,
            "public": self.ports.port if self.ports else self.port,
            "opened_by": lease.protocol if lease else None,
            "problem": self.ports.problem if self.ports else "",
        }

    def _is_mine(self, authorization: bytes | None) -> bool:
        if authorization is None:
            return False
        try:
            text = authorization.decode("latin-1")
            signer = verify_request(text, "GET", "/health", b"", now_s=int(time.time()))
        except RequestAuthError:
            return False
        return signer == self.key.public_key


@functools.cache
def _version() -> str:
    """Asked for with each `/health`; reading the files that say it took milliseconds on a busy machine."""
    try:
        return version("streamrp2p")
    except PackageNotFoundError:
        return "unknown"
