"""What a router granted, and why one did not."""

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

LIFETIME_S: Final = 3_600  # what is asked for; a node that vanishes leaves no door open for longer


class MappingError(Exception):
    """No mapping. The message is for the friend."""


class SilentError(MappingError):
    """Nothing that speaks this protocol answered."""


@dataclass(frozen=True, slots=True)
class Lease:
    """`external_port` of the router leads to this node for `lifetime_s` seconds."""

    protocol: str  # "PCP" | "NAT-PMP" | "UPnP"
    external_port: int
    lifetime_s: int
    external_address: IPv4Address | None  # None when the router did not say

    @property
    def reachable(self) -> bool:
        """False when the router's own address is not one of the internet: another router stands before it."""
        address = self.external_address
        return address is None or address.is_global
