"""RTMP 1.0, the server's side, without IO: see `connection`."""

from relay.rtmp.connection import (
    Audio,
    Event,
    Metadata,
    PublishRequested,
    ServerConnection,
    Unpublished,
    Video,
    Violation,
)

__all__ = [
    "Audio",
    "Event",
    "Metadata",
    "PublishRequested",
    "ServerConnection",
    "Unpublished",
    "Video",
    "Violation",
]
