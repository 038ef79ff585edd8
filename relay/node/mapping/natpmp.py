"""NAT-PMP (RFC 6886): the router's address and a TCP mapping. Bytes in, bytes out; big-endian.

Invariant: an answer is taken only when it is of the kind and for the port that were asked for.
"""

import struct
from ipaddress import IPv4Address
from typing import Final

from relay.node.mapping.lease import Lease, MappingError

ADDRESS_REQUEST: Final = bytes(2)

_MAP_TCP: Final = 2
_ANSWER: Final = 128
_REQUEST: Final = struct.Struct(">BBHHHI")
_MAPPED: Final = struct.Struct(">BBHIHHI")
_ADDRESS: Final = struct.Struct(">BBHI4s")
_WHY: Final = {  # section 3.5
    1: "it knows another version of NAT-PMP",
    2: "it is not allowed to",
    3: "it has no connection itself",
    4: "it has no free ports",
    5: "it cannot",
}


def request(port: int, external_port: int, lifetime_s: int) -> bytes:
    """Ask for a mapping to `port`; `external_port` is a wish. A lifetime and a wish of 0 take it back."""
    return _REQUEST.pack(0, _MAP_TCP, 0, port, external_port, lifetime_s)


def answer(data: bytes, port: int) -> Lease | None:
    """The lease, without an address; None when the bytes answer something else. Raises MappingError."""
    if len(data) < 4 or data[0] != 0 or data[1] != _MAP_TCP | _ANSWER:
        return None
    result = int.from_bytes(data[2:4])
    if result:
        raise MappingError(f"the router opens no port: {_WHY.get(result, f'NAT-PMP result {result}')}")
    if len(data) < _MAPPED.size:
        return None
    _, _, _, _, internal, external, lifetime_s = _MAPPED.unpack_from(data)
    if internal != port or not external or not lifetime_s:
        return None
    return Lease("NAT-PMP", external, lifetime_s, None)


def address(data: bytes) -> IPv4Address | None:
    """The router's own address; None when the bytes answer something else or say that it has none."""
    if len(data) < _ADDRESS.size or data[:4] != bytes((0, _ANSWER, 0, 0)):
        return None
    return IPv4Address(_ADDRESS.unpack_from(data)[4])
