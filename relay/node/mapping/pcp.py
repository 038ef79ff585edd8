"""PCP, the MAP opcode for TCP over IPv4 (RFC 6887, sections 7 and 11). Bytes in, bytes out; big-endian.

Invariant: an answer is taken only when it repeats the nonce, protocol and port that were asked for.
"""

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from relay.node.mapping.lease import Lease, MappingError, SilentError

PORT: Final = 5351  # UDP, NAT-PMP's too: a router of either kind answers either request
NONCE_BYTES: Final = 12
MAX_ANSWER_BYTES: Final = 1_100  # section 7

_VERSION: Final = 2
_MAP: Final = 1
_ANSWER: Final = 0x80
_TCP: Final = 6
_REQUEST: Final = struct.Struct(">BBHI16s 12sB3xHH16s")
_RESPONSE: Final = struct.Struct(">BBxBII12x 12sB3xHH16s")
_MAPPED: Final = bytes(10) + b"\xff\xff"
_WHY: Final = {  # section 7.4
    2: "it is not allowed to",
    7: "it has no connection itself",
    8: "it has no free ports",
    10: "too many ports are open for this computer already",
    12: "another router stands between it and this computer",
}


def request(nonce: bytes, client: IPv4Address, port: int, external_port: int, lifetime_s: int) -> bytes:
    """Ask for a mapping to `port`; `external_port` is a wish. A lifetime of 0 takes it back."""
    anywhere = _MAPPED + bytes(4)
    return _REQUEST.pack(
        _VERSION, _MAP, 0, lifetime_s, _MAPPED + client.packed, nonce, _TCP, port, external_port, anywhere
    )


def answer(data: bytes, nonce: bytes, port: int) -> Lease | None:
    """The lease; None when the bytes answer something else.

    Raises SilentError for a router that knows only NAT-PMP, MappingError when it refuses.
    """
    if len(data) >= 4 and data[0] == 0:
        raise SilentError("the router does not know PCP")
    if not _RESPONSE.size <= len(data) <= MAX_ANSWER_BYTES:
        return None
    version, opcode, result, lifetime_s, _, echoed, protocol, internal, external, address = (
        _RESPONSE.unpack_from(data)
    )
    if (version, opcode, echoed, protocol, internal) != (_VERSION, _MAP | _ANSWER, nonce, _TCP, port):
        return None
    if result == 1:
        raise SilentError("the router knows another version of PCP")
    if result or not lifetime_s or not external:
        raise MappingError(f"the router opens no port: {_WHY.get(result, f'PCP result {result}')}")
    return Lease("PCP", external, lifetime_s, IPv6Address(address).ipv4_mapped)
