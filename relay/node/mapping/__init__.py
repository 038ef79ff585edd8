"""A port of the home router that leads to this node, asked for and kept.

PCP (RFC 6887) is tried first, then NAT-PMP (RFC 6886), then UPnP. Nothing here can stop the node: a router that does
not answer is told to the friend in plain words, and the node serves whoever reaches it anyway.
"""
