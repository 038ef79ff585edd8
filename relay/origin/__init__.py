"""Origin: RTMP in; HLS and HTTP-FLV out. One event loop, no threads; the ledger is behind `relay.ports`.

`Origin` is all that the hub needs to know.
"""

from relay.origin.service import LiveStats, Origin, OriginStats
from relay.origin.settings import OriginSettings

__all__ = ["LiveStats", "Origin", "OriginSettings", "OriginStats"]
