"""Tickets and receipts that are unknown, expired, forged, replayed, moved or too large, over real HTTP."""

import asyncio
import contextlib
import random
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID, uuid4

import httpx2
import pytest
from audience import Offer, offers
from disks import fill, small_disk
from fold import fold
from house import SLUG, Friend, House, until

from hub import probes
from hub.clock import now_us
from hub.demo.cast import STREAMRP2P, free_ports
from hub.demo.mallory import Mallory
from hub.keystore import KeyStore
from hub.probes import Prober
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node, NodeStatus
from ledger.aggregates.stream import Stream
from ledger.events import NodeProbed, SessionOpened
from ledger.ids import stream_id
from ledger.keys import KeyPair
from ledger.receipt import SignedReceipt
from ledger.services.delivery import DeliveryDesk
from ledger.ticket import SignedTicket, ViewerClass
from relay.viewers.cheat import claim, forged


@pytest.fixture(scope="module")
def live(hub: House) -> Iterator[House]:
    """The hub while `main` is live and two nodes carry it."""

    async def begin() -> None:
        for name in ("ana", "ben"):
            hub.start_node(hub.invite(name))
        await until(lambda: hub.nodes_online() == 2, 30, "both nodes are online")
        hub.publish()
        await until(lambda: offered(hub, KeyPair(bytes(32))), 30, "a playlist offers segments at nodes")

    asyncio.run(begin())
    return hub


def offered(house: House, viewer: KeyPair) -> list[Offer]:
    with contextlib.suppress(AssertionError):
        return offers(house, viewer)
    return []


def get(url: str) -> httpx2.Response:
    return httpx2.get(url, timeout=10, trust_env=False)


def post(url: str, data: bytes) -> httpx2.Response:
    return httpx2.post(
        url, content=data, headers={"content-type": "application/octet-stream"}, timeout=10, trust_env=False
    )


def bought(house: House, viewer: KeyPair) -> tuple[Offer, bytes]:
    """A segment really fetched from a node."""
    offer = offers(house, viewer)[-1]
    answer = get(offer.with_ticket())
    assert answer.status_code == 200, answer.text
    return offer, answer.content


def test_a_node_serves_nothing_without_a_good_ticket(live: House) -> None:
    viewer = KeyPair(secrets.token_bytes(32))
    offer, _ = bought(live, viewer)
    text = offer.signed.encode_url()
    other = next(f for f in live.friends if f"127.0.0.1:{f.port}" not in offer.url)
    forged_ticket = replace(offer.signed.ticket, byte_budget=2**40).sign(viewer)
    beyond = offer.url.replace(f"/{offer.sequence}.ts", f"/{offer.signed.ticket.last_sequence + 1}.ts")
    cases = {
        offer.url: 400,
        offer.with_ticket("nonsense"): 400,
        offer.with_ticket(text[:-10] + "AAAAAAAAAA"): 403,  # another signature
        offer.with_ticket(forged_ticket.encode_url()): 403,  # signed by somebody else
        f"{beyond}?t={text}": 403,
        offer.with_ticket().replace(offer.node_url, f"http://127.0.0.1:{other.port}"): 403,  # moved
        offer.with_ticket(text * 40): 400,
    }
    for url, status in cases.items():
        answer = get(url)
        assert answer.status_code == status, (url[-60:], answer.text)
        assert answer.json()["title"]


def test_a_node_takes_only_receipts_of_its_own_viewers(live: House) -> None:
    viewer = KeyPair(secrets.token_bytes(32))
    offer, data = bought(live, viewer)
    good = claim(offer.signed, {offer.sequence: data}, viewer)
    receipts = f"{offer.node_url}/receipts"
    assert post(receipts, b"").status_code == 400
    assert post(receipts, b"x" * 205).status_code == 400
    assert post(receipts, b"x" * 100_000).status_code == 413
    assert (
        post(receipts, forged(offer.signed, {offer.sequence: data}, KeyPair(bytes(32))).encode()).status_code
        == 403
    )
    unknown = claim(invented(offer.signed, viewer), {offer.sequence: data}, viewer)
    assert post(receipts, unknown.encode()).status_code == 404
    assert post(receipts, good.encode()).status_code == 204


def invented(like: SignedTicket, viewer: KeyPair) -> SignedTicket:
    return replace(like.ticket, ticket_id=uuid4()).sign(viewer)


def test_the_hub_credits_a_receipt_once_however_often_and_wherever_it_is_sent(live: House) -> None:
    viewer = KeyPair(secrets.token_bytes(32))
    offer, data = bought(live, viewer)
    good = claim(offer.signed, {offer.sequence: data}, viewer).encode()
    first = post(f"{live.base}/api/receipts", good).json()
    assert (first["verdict"], first["units"]) == ("accepted", 1)
    for _ in range(3):
        again = post(f"{live.base}/api/receipts", good).json()
        # The verdict that stands in the log already, or a new one that credits nothing.
        assert again["verdict"] == "duplicate" or again["position"] == first["position"]
    assert post(f"{offer.node_url}/receipts", good).status_code == 204  # and through the node
    wrong = claim(offer.signed, {offer.sequence: data[:-1]}, viewer).encode()
    assert post(f"{live.base}/api/receipts", wrong).json()["verdict"] == "digest_mismatch"
    time.sleep(2)  # the node's batch
    with live.connect() as connection:
        told = fold(connection)
    session = offer.signed.ticket.session_id
    assert [key for key in told.credited if key[0] == session] == [(session, offer.sequence)]
    assert told.problems == []


def test_an_expired_ticket_earns_nothing(live: House) -> None:
    viewer = KeyPair(secrets.token_bytes(32))
    offer, data = bought(live, viewer)
    late = issued_days_ago(live, offer)
    receipt = claim(late, {offer.sequence: data}, viewer).encode()
    assert post(f"{live.base}/api/receipts", receipt).json()["verdict"] == "late"


def issued_days_ago(house: House, offer: Offer) -> SignedTicket:
    """A ticket as the hub would have issued it three days ago."""
    ticket = offer.signed.ticket
    with house.ledger() as ledger:
        broadcast_id = ledger.load(Stream, stream_id(SLUG)).broadcast_id
        assert broadcast_id is not None
        friend = next(f for f in house.friends if f"127.0.0.1:{f.port}" in offer.url)
        assert friend.node_id is not None
        return DeliveryDesk(ledger, digest_of=lambda *_: None).issue_ticket(
            hub_key=KeyStore.open(house.data_dir / "keys").ticket,
            ticket_id=uuid4(),
            session_id=ticket.session_id,
            node=ledger.load(Node, friend.node_id),
            broadcast=ledger.load(Broadcast, broadcast_id),
            first_sequence=ticket.first_sequence,
            nonce=ticket.nonce,
            tariff_version=ticket.tariff_version,
            at_us=now_us() - 3 * 86_400 * 1_000_000,
        )


def test_none_of_a_cheats_tricks_is_paid(live: House) -> None:
    async def cheat() -> dict[str, int]:
        mallory = await asyncio.to_thread(Mallory.of, live.base, SLUG, live.friends[0].folder)
        await mallory.cheat()
        viewer = KeyPair(secrets.token_bytes(32))
        offer, data = await asyncio.to_thread(bought, live, viewer)
        theirs = claim(offer.signed, {offer.sequence: data}, viewer)
        if offer.signed.ticket.node_key == mallory.key.public_key:
            await mallory.inflate(theirs, offer.signed, viewer)
        return dict(mallory.verdicts)

    tried = asyncio.run(cheat())
    assert tried
    assert not [line for line in tried if line.endswith(": accepted")]


@pytest.mark.parametrize(
    "path", ["/api/receipts", "/api/receipts/batches", "/api/sessions", "/api/nodes", "/api/streams"]
)
def test_a_body_that_is_too_large_is_refused_in_words(live: House, path: str) -> None:
    answer = live.ask(
        "POST", path, content=b"x" * 5_000_000, headers={"Authorization": f"Bearer {live.token}"}
    )
    assert answer.status_code == 413
    assert answer.json()["type"] == "/problems/too-large"


def test_what_is_no_receipt_is_refused_in_words(live: House) -> None:
    for path, data in (
        ("/api/receipts", b"x" * 205),
        ("/api/receipts/batches", b"x" * 400),
        ("/api/receipts", b""),
    ):
        answer = post(live.base + path, data)
        assert answer.status_code == 400
        assert answer.json()["type"] == "/problems/malformed-body"


class Liar:
    """Between viewers and a real node: from the moment it is told to, it changes the last byte of every answer."""

    def __init__(self, port: int, node_port: int) -> None:
        self.lying = False
        self._node_port = node_port
        self._listener = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._pass_on, args=self._listener.accept()[:1], daemon=True).start()

    def _pass_on(self, viewer: socket.socket) -> None:
        with viewer, contextlib.suppress(OSError):
            with socket.create_connection(("127.0.0.1", self._node_port)) as node:
                head, _, body = viewer.recv(65_536).partition(b"\r\n\r\n")
                node.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
                answer = b"".join(iter(lambda: node.recv(65_536), b""))
            if self.lying and not answer.endswith(
                b"\r\n\r\n"
            ):  # an answer of a head alone has nothing to lie about
                answer = answer[:-1] + bytes([answer[-1] ^ 1])
            viewer.sendall(answer)


def test_a_node_that_serves_wrong_bytes_is_out_at_once_and_loses_only_its_bad_receipts(
    live: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "SEGMENTS_MAX", 1)
    friend = live.invite("dora")
    (behind,) = free_ports(1)
    liar = Liar(friend.port, behind)
    command = ("node", "run", "--data-dir", str(friend.folder), "--send-interval", "1", "--port", str(behind))
    friend.actor = live.start(friend.name, (*STREAMRP2P, *command))
    viewer = KeyPair(secrets.token_bytes(32))

    async def at_dora() -> Offer:
        found: list[Offer] = []
        await until(
            lambda: found.extend(o for o in offered(live, viewer) if f":{friend.port}/" in o.url) or found,
            30,
            "",
        )
        return found[-1]

    def status() -> str:
        return next(n["state"] for n in live.call("GET", "/api/nodes")["nodes"] if n["name"] == "dora")

    try:
        one, two = asyncio.run(at_dora()), asyncio.run(at_dora())
        honest = claim(one.signed, {one.sequence: get(one.with_ticket()).content}, viewer).encode()
        liar.lying = True
        wrong = claim(two.signed, {two.sequence: get(two.with_ticket()).content}, viewer).encode()
        with live.ledger() as ledger:
            prober = Prober(ledger, live.base, random.Random(1))
            assert friend.node_id is not None
            for _ in range(100):  # until it is this node's turn; the hub's own probes may come first
                if ledger.load(Node, friend.node_id).status is NodeStatus.SUSPENDED:
                    break
                prober.probe(SLUG, at_us=now_us())
            everything = [r.event for r in ledger.read(0, 50_000)]
            opened: set[UUID] = set()
            for event in everything:  # a probe's session is any plain player's, until it is over
                if isinstance(event, SessionOpened) and event.viewer_class == ViewerClass.PLAIN:
                    opened.add(event.session_id)
                assert not isinstance(event, NodeProbed) or event.session_id in opened
            events = [e for e in everything if e.originator_id == friend.node_id]
            probed = [e.outcome for e in events if isinstance(e, NodeProbed) and e.outcome != "ok"]
            assert probed == ["wrong_bytes"], "the first is the last"
        assert post(f"{live.base}/api/receipts", wrong).json()["verdict"] == "digest_mismatch"
        assert post(f"{live.base}/api/receipts", honest).json()["verdict"] == "accepted"
        assert not [o for _ in range(6) for o in offered(live, viewer) if f":{friend.port}/" in o.url]
        asyncio.run(until(lambda: status() == "suspended", 10, "everybody is told"))
    finally:
        liar.close()
        stop(friend)


def test_a_node_whose_disk_is_full_promises_nothing_and_recovers(live: House) -> None:
    friend = live.invite("cleo")
    shutil.copytree(friend.folder / "node", kept := friend.folder / "kept")
    with small_disk(friend.folder / "node") as filler:
        shutil.copytree(kept, friend.folder / "node", dirs_exist_ok=True)
        live.start_node(friend)
        viewer = KeyPair(secrets.token_bytes(32))

        async def scenario() -> None:
            found: list[Offer] = []

            def at_cleo() -> bool:
                found[:] = [o for o in offered(live, viewer) if f":{friend.port}/" in o.url]
                return bool(found)

            await until(at_cleo, 30, "a playlist offers a segment at the new node")
            data = get(found[-1].with_ticket()).content
            receipt = claim(found[-1].signed, {found[-1].sequence: data}, viewer)
            fill(filler)
            fill_last_page(found[-1], viewer)
            refused = post(f"{found[-1].node_url}/receipts", receipt.encode())
            assert refused.status_code == 507, refused.text
            assert get(found[-1].with_ticket()).status_code == 200  # it serves on
            filler.unlink()
            await until(lambda: spooled(found[-1], receipt), 10, "the receipt is taken when there is room")
            await until(lambda: judged(live, receipt), 20, "the hub judged it")

        try:
            asyncio.run(scenario())
        finally:
            stop(friend)


def fill_last_page(offer: Offer, viewer: KeyPair) -> None:
    """A full file system still has room in the last page of each file: receipts that say ever more take it."""
    data = {offer.sequence + 1 + i: b"never arrived" for i in range(40)}
    for count in range(1, 40):
        segments = dict(list(data.items())[:count])
        answer = post(f"{offer.node_url}/receipts", claim(offer.signed, segments, viewer).encode())
        if answer.status_code == 507:
            assert answer.json()["title"] == "Spool full"
            return
        assert answer.status_code == 204
    raise AssertionError("the disk is never full")


def spooled(offer: Offer, receipt: SignedReceipt) -> bool:
    return post(f"{offer.node_url}/receipts", receipt.encode()).status_code == 204


def judged(house: House, receipt: SignedReceipt) -> bool:
    with house.connect() as connection:
        return not fold(connection).unjudged([receipt.encode()])


def stop(friend: Friend) -> None:
    if friend.actor is not None:
        friend.actor.stop()
