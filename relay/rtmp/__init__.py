"""RTMP 1.0, the server's side, without IO: see `connection`."""

from relay.rtmp.chunks import AUDIO, VIDEO, Message
from relay.rtmp.connection import (
    Event,
    Metadata,
    PublishRequested,
    ServerConnection,
    Unpublished,
    Violation,
)

__all__ = [
    "AUDIO",
    "VIDEO",
    "Event",
    "Message",
    "Metadata",
    "PublishRequested",
    "ServerConnection",
    "Unpublished",
    "Violation",
]
