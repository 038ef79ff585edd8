"""The router's port: both protocols against a router on loopback, over real sockets, and every byte they may get."""

import asyncio
import struct
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.node.mapping import natpmp, pcp
from relay.node.mapping.gateway import Gateway, find_gateway
from relay.node.mapping.keeper import PortKeeper
from relay.node.mapping.lease import Lease, MappingError, SilentError

NONCE = bytes(range(12))
CLIENT = IPv4Address("192.168.1.7")
OUTSIDE = IPv4Address("93.184.216.34")


class Router(asyncio.DatagramProtocol):
    """Written from the RFCs a second time: fixed offsets in place of the structs under test."""

    def __init__(self, *, speaks: frozenset[str], result: int = 0, address: IPv4Address = OUTSIDE) -> None:
        self.speaks, self.result, self.address = speaks, result, address
        self.mappings: dict[int, int] = {}  # internal port -> external
        self.garbage = b""
        self.asked = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked += 1
        if self.garbage:
            self.transport.sendto(self.garbage, addr)
        answer = self._pcp(data) if data[0] == 2 else self._natpmp(data)
        if answer is not None:
            self.transport.sendto(answer, addr)

    def _pcp(self, data: bytes) -> bytes | None:
        if "PCP" not in self.speaks:
            return bytes((0, data[1] | 128, 0, 1)) + bytes(4) if "NAT-PMP" in self.speaks else None
        assert len(data) == 60
        lifetime = data[4:8]
        internal = int.from_bytes(data[40:42])
        external = self._map(internal, int.from_bytes(lifetime))
        head = bytes((2, 0x81, 0, self.result)) + lifetime + bytes(16)
        return head + data[24:42] + external.to_bytes(2) + bytes(10) + b"\xff\xff" + self.address.packed

    def _natpmp(self, data: bytes) -> bytes | None:
        if "NAT-PMP" not in self.speaks:
            return None
        if data == b"\0\0":
            return b"\0\x80\0\0" + bytes(4) + self.address.packed
        internal, lifetime = int.from_bytes(data[4:6]), int.from_bytes(data[8:12])
        external = self._map(internal, lifetime)
        return struct.pack(">BBHIHHI", 0, 130, self.result, 0, internal, external, lifetime)

    def _map(self, internal: int, lifetime_s: int) -> int:
        if self.result == 0 and lifetime_s:
            self.mappings[internal] = internal + 1
        elif self.result == 0:
            self.mappings.pop(internal, None)
        return self.mappings.get(internal, 0)


async def start(router: Router) -> Gateway:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: router, local_addr=("127.0.0.1", 0)
    )
    return Gateway(
        IPv4Address("127.0.0.1"), IPv4Address("127.0.0.1"), transport.get_extra_info("sockname")[1]
    )


@pytest.mark.parametrize("speaks", ["PCP", "NAT-PMP"])
def test_a_port_is_opened_kept_and_closed_behind(speaks: str) -> None:
    async def scenario() -> None:
        router = Router(speaks=frozenset({speaks}))
        router.garbage = b"\x02\x81garbage"
        gateway = await start(router)
        keeper = PortKeeper(8100, find=lambda: gateway, use_upnp=False)
        assert keeper.port == 8100
        stop = asyncio.Event()
        task = asyncio.create_task(keeper.run(stop))
        async with asyncio.timeout(20):
            while keeper.lease is None:
                await asyncio.sleep(0.005)
        assert keeper.lease == Lease(speaks, 8101, 3_600, OUTSIDE)
        assert (keeper.port, keeper.problem) == (8101, "")
        assert router.mappings == {8100: 8101}
        stop.set()
        await task
        assert router.mappings == {}
        assert keeper.port == 8100
        router.transport.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("speaks", ["PCP", "NAT-PMP"])
def test_a_refusal_is_told_plainly_and_the_node_keeps_its_own_port(speaks: str) -> None:
    async def scenario() -> None:
        router = Router(speaks=frozenset({speaks}), result=2)
        gateway = await start(router)
        keeper = PortKeeper(8100, find=lambda: gateway, use_upnp=False)
        await keeper.renew()
        assert keeper.port == 8100
        assert keeper.problem == (
            "the router opens no port: it is not allowed to: "
            "forward TCP port 8100 to this computer in your router by hand"
        )
        router.result = 0  # its owner switched it on
        await keeper.renew()
        assert (keeper.port, keeper.problem) == (8101, "")
        router.transport.close()

    asyncio.run(scenario())


def test_a_router_behind_another_router_is_named() -> None:
    async def scenario() -> None:
        router = Router(speaks=frozenset({"PCP"}), address=IPv4Address("100.64.3.2"))
        gateway = await start(router)
        keeper = PortKeeper(8100, find=lambda: gateway, use_upnp=False)
        await keeper.renew()
        assert "100.64.3.2" in keeper.problem
        assert "public IPv4 address" in keeper.problem
        router.transport.close()

    asyncio.run(scenario())


def test_a_router_that_is_not_there_is_no_error() -> None:
    def find() -> Gateway:
        raise SilentError("this computer has no router on IPv4")

    async def scenario() -> None:
        keeper = PortKeeper(8100, find=find, use_upnp=False)
        await keeper.renew()
        assert keeper.problem.startswith("this computer has no router on IPv4: forward TCP port 8100")

    asyncio.run(scenario())


def test_nobody_is_sent_to_their_router_when_the_hub_reaches_the_node() -> None:
    def find() -> Gateway:
        raise SilentError("this computer has no router on IPv4")

    asked: list[int] = []

    async def reached(port: int) -> bool:
        asked.append(port)
        return len(asked) > 1

    async def scenario() -> None:
        keeper = PortKeeper(8100, find=find, use_upnp=False, reached=reached)
        await keeper.renew()
        assert keeper.problem != ""
        await keeper.renew()
        assert (keeper.port, keeper.problem, asked) == (8100, "", [8100, 8100])

    asyncio.run(scenario())


def test_a_computer_between_two_networks_goes_on() -> None:
    def find() -> Gateway:
        raise OSError(101, "Network is unreachable")

    async def scenario() -> None:
        keeper = PortKeeper(8100, find=find, use_upnp=False)
        await keeper.renew()
        assert keeper.port == 8100
        assert "Network is unreachable" in keeper.problem

    asyncio.run(scenario())


def test_the_router_is_the_default_route_of_the_least_metric(tmp_path: Path) -> None:
    routes = tmp_path / "route"
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"

    def line(target: str, via: str, flags: int, metric: int) -> str:
        hexed = [f"{struct.unpack('=I', IPv4Address(a).packed)[0]:08X}" for a in (target, via)]
        return f"lan {hexed[0]} {hexed[1]} {flags:04X} 0 0 {metric} 00000000 0 0 0\n"

    routes.write_text(
        head
        + line("10.0.0.0", "10.9.9.9", 3, 0)
        + line("0.0.0.0", "127.0.0.3", 3, 600)
        + line("0.0.0.0", "127.0.0.2", 3, 100)
        + line("0.0.0.0", "127.0.0.4", 2, 1)
        + "torn line\n"
    )
    assert find_gateway(5351, routes).address == IPv4Address("127.0.0.2")
    routes.write_text(head)
    with pytest.raises(SilentError, match="no router"):
        find_gateway(5351, routes)
    with pytest.raises(SilentError, match="which router"):
        find_gateway(5351, tmp_path / "missing")


datagrams = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda head, rest: head + rest,
        st.sampled_from([b"\x02\x81\x00\x00", b"\x00\x82\x00\x00", b"\x00\x80\x00\x00", b"\x00\x81\x00\x01"]),
        st.binary(max_size=80),
    ),
)


@given(datagrams)
def test_no_datagram_does_more_than_be_refused(data: bytes) -> None:
    for parse in (lambda: pcp.answer(data, NONCE, 8100), lambda: natpmp.answer(data, 8100)):
        try:
            lease = parse()
        except MappingError:
            continue
        assert lease is None or (0 < lease.external_port < 65_536 and lease.lifetime_s > 0)
    natpmp.address(data)


@given(st.binary(min_size=12, max_size=12), st.integers(1, 65_535), st.integers(0, 59), st.integers(1, 255))
def test_an_answer_to_another_question_is_not_taken(nonce: bytes, port: int, at: int, flip: int) -> None:
    """RFC 6887, section 11.4: nonce, protocol and internal port must be those that were asked for."""
    asked = pcp.request(nonce, CLIENT, port, port, 3_600)
    answer = bytearray(asked)
    answer[1], answer[4:8] = 0x81, (3_600).to_bytes(4)
    answer[8:24] = bytes(16)
    assert pcp.answer(bytes(answer), nonce, port) is not None
    answer[at] ^= flip
    identity = {0, 1, *range(24, 37), 40, 41}
    try:
        lease = pcp.answer(bytes(answer), nonce, port)
    except MappingError:
        return
    assert (lease is None) == (at in identity) or at in range(4, 8)


def test_requests_are_as_the_rfcs_draw_them() -> None:
    asked = pcp.request(NONCE, CLIENT, 8100, 8100, 3_600)
    assert asked.hex() == (
        "02010000" "00000e10" "00000000000000000000ffffc0a80107"
        "000102030405060708090a0b" "06000000" "1fa41fa4" "00000000000000000000ffff00000000"
    )  # fmt: skip
    assert natpmp.request(8100, 8100, 3_600).hex() == "000200001fa41fa400000e10"
    assert natpmp.ADDRESS_REQUEST.hex() == "0000"
