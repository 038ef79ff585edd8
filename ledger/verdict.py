"""The closed list of answers to a receipt, in order of precedence: the first that applies is the verdict.

Invariant: exactly one verdict per receipt, and only ACCEPTED carries credit.
"""

from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    MALFORMED = "malformed"  # not a receipt of a known version
    UNKNOWN_TICKET = "unknown_ticket"  # the hub never issued the ticket it names
    WRONG_NODE = "wrong_node"  # the ticket was for another node than the one that sent the batch
    BAD_SIGNATURE = "bad_signature"  # not signed by the viewer the ticket names
    LATE = "late"  # after the ticket's settle-by
    OUT_OF_RANGE = "out_of_range"  # claims segments the ticket does not cover or that were never published
    DIGEST_MISMATCH = "digest_mismatch"  # the digest is not that of the published bytes
    DUPLICATE = "duplicate"  # nothing in it that is not credited already
    CAPPED = "capped"  # a rule of the crew forbids paying for it (see `capped_by`)
    ACCEPTED = "accepted"


class Cap(StrEnum):
    """Why a receipt was capped."""

    NONE = ""
    BYTE_BUDGET = "byte_budget"  # more bytes than the ticket allows
    OWN_ACCOUNT = "own_account"  # viewer and friend are the same person
    SAME_NETWORK = "same_network"  # viewer and node share an IPv4 /24 or IPv6 /48
    PREFIX_SESSIONS = "prefix_sessions"  # too many paid sessions from one viewer network
    NODE_SUSPENDED = "node_suspended"


# Events hold these indices: frozen, new ones at the end.
VERDICTS: Final = (
    Verdict.MALFORMED,
    Verdict.UNKNOWN_TICKET,
    Verdict.WRONG_NODE,
    Verdict.BAD_SIGNATURE,
    Verdict.LATE,
    Verdict.OUT_OF_RANGE,
    Verdict.DIGEST_MISMATCH,
    Verdict.DUPLICATE,
    Verdict.CAPPED,
    Verdict.ACCEPTED,
)
CAPS: Final = (
    Cap.NONE,
    Cap.BYTE_BUDGET,
    Cap.OWN_ACCOUNT,
    Cap.SAME_NETWORK,
    Cap.PREFIX_SESSIONS,
    Cap.NODE_SUSPENDED,
)
