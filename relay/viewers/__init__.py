"""Viewers without a screen, for the demo, tests and benches: one that signs receipts, one that behaves like VLC.

They verify nothing but what a real player verifies, print nothing, and bound everything they keep.
"""

from relay.viewers.plain import PlainViewer
from relay.viewers.player import Stats, ViewerError
from relay.viewers.signing import SigningViewer

__all__ = ["PlainViewer", "SigningViewer", "Stats", "ViewerError"]
