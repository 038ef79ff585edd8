"""Where a node says it can be reached: an address that the hub connects to and sends everybody's players to.

Invariant: nobody far away is sent, and no hub connects, to a machine of somebody's own network (loopback, private,
link-local) on the word of a node that is not in a private network itself. What a name resolves to is not looked at.
"""

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from api.problems import Problem, ProblemType

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAME: Final = re.compile(
    r"(?=.{1,253}$)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_-]{1,63}\.?", re.I
)
_NUMBER: Final = re.compile(
    r"(?:\d+|0x[0-9a-f]*)$", re.I
)  # resolvers read 2130706433 and 0x7f.1 as 127.0.0.1
_OWN_NETWORK: Final = ("localhost", "local", "lan", "internal", "home", "arpa")


def node_address(url: str | None, peer_ip: str, port: int) -> str:
    """The node's base URL: `url`, or the peer's own address and `port`. Raises Problem for one it may not name."""
    if url is None:
        return _own(peer_ip, port)
    host = urlsplit(url).hostname or ""
    address = _parse(host)
    if address is None and not _is_name(host):
        raise _refused("its host is neither an address nor a name")
    if address is not None and (address.is_link_local or address.is_multicast or address.is_unspecified):
        raise _refused("no player can be sent to that address")
    if _is_own_network(host, address) and not is_near(peer_ip):
        raise _refused("it is in a private network, and this request did not come from one")
    return url


def literal_address(url: str) -> str | None:
    """The IP address that the URL names, None when its host is a name."""
    address = _parse(urlsplit(url).hostname or "")
    return None if address is None else str(address)


def _own(peer_ip: str, port: int) -> str:
    address = _parse(peer_ip)
    if address is None:
        return f"http://{peer_ip}:{port}"
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def _parse(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.version == 6 and address.ipv4_mapped) or address


def _is_name(host: str) -> bool:
    return _NAME.fullmatch(host) is not None and not _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2])


def _is_own_network(host: str, address: _Address | None) -> bool:
    if address is not None:
        return not address.is_global
    name = host.rstrip(".").lower()
    return "." not in name or name.rpartition(".")[2] in _OWN_NETWORK


def is_near(peer_ip: str) -> bool:
    peer = _parse(peer_ip)
    return peer is not None and not peer.is_global


def _refused(why: str) -> Problem:
    detail = f"the node's url cannot be used: {why}"
    return Problem(
        ProblemType.INVALID_FIELDS, detail, extra={"fields": [{"field": "body.url", "reason": why}]}
    )
