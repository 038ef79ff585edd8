"""Segments by ticket: who gets them, what is refused, how often the hub is asked."""

import asyncio
import base64
import hashlib
import secrets
import socket
from uuid import uuid4

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in_hub import StandInHub, segment_bytes

from ledger.keys import KeyPair
from ledger.ticket import SignedTicket
from relay.node.cache import SegmentCache, digest_of
from relay.node.hub_client import HubError, Pulled
from relay.node.service import Options
from relay.node.tickets import TicketGate, TicketRefused
from relay.viewers.cheat import claim

EMPTY = f"sha-256=:{base64.b64encode(hashlib.sha256().digest()).decode()}:"
VIEWER = KeyPair(bytes(31) + b"\x07")


def path(hub: StandInHub, sequence: int, ticket: SignedTicket) -> str:
    return f"/segments/{hub.rendition}/{sequence}.ts?t={ticket.encode_url()}"


def node_key(hub: StandInHub) -> bytes:
    return next(iter(hub.nodes))


def test_a_ticket_gets_its_segment_with_open_cors(hub, running, tmp_path):
    async def main() -> None:
        async with running(hub, tmp_path) as client:
            ticket = hub.issue(node_key(hub), VIEWER.public_key)
            answer = await client.get(path(hub, 100, ticket))
            assert answer.status_code == 200
            assert answer.content == hub.media[100]
            assert answer.headers["access-control-allow-origin"] == "*"
            assert answer.headers["content-type"] == "video/mp2t"
            head = await client.head(path(hub, 100, ticket))
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == str(hub.size)
            preflight = await client.options("/receipts")
            assert preflight.status_code == 204
            assert "POST" in preflight.headers["access-control-allow-methods"]

    asyncio.run(main())


def test_every_wrong_ticket_is_refused_with_its_reason(hub, running, tmp_path):
    async def main() -> None:
        async with running(hub, tmp_path) as client:
            key, viewer = node_key(hub), VIEWER.public_key
            good = hub.issue(key, viewer)
            other_hub = KeyPair(secrets.token_bytes(32))
            forged = SignedTicket(good.ticket, bytes(64))
            stranger = good.ticket.sign(other_hub)
            unknown = hub.issue(key, viewer, hub_key_id=other_hub.key_id).ticket.sign(other_hub)
            cases = [
                (path(hub, 100, forged), 403, "bad-signature"),
                (path(hub, 100, stranger), 403, "bad-signature"),
                (path(hub, 100, unknown), 403, "unknown-hub-key"),
                (path(hub, 100, hub.issue(other_hub.public_key, viewer)), 403, "wrong-node"),
                (path(hub, 99, good), 403, "out-of-range"),
                (path(hub, 400, good), 403, "out-of-range"),
                (path(hub, 100, hub.issue(key, viewer, rendition_id=uuid4())), 403, "wrong-rendition"),
                (f"/segments/{hub.rendition}/100.ts", 400, "malformed-ticket"),
                (f"/segments/{hub.rendition}/100.ts?t=abc", 400, "malformed-ticket"),
                (f"/segments/{hub.rendition}/100.ts?t=" + "A" * 3000, 400, "malformed-ticket"),
                (path(hub, 150, good), 404, "no-such-segment"),
                ("/segments/nonsense/1.ts", 404, "not-found"),
                ("/../../etc/passwd", 404, "not-found"),
            ]
            for target, status, reason in cases:
                answer = await client.get(target)
                assert (answer.status_code, answer.json()["type"].rsplit(":", 1)[1]) == (status, reason), (
                    target
                )
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.headers["access-control-allow-origin"] == "*"
            assert hub.key_requests == 1  # an unknown key id asks the hub, but not each time

    asyncio.run(main())


def test_a_hundred_viewers_of_one_segment_are_one_pull(hub, running, tmp_path):
    hub.pull_delay_s = 0.2

    async def main() -> None:
        async with running(hub, tmp_path) as client:
            tickets = [hub.issue(node_key(hub), VIEWER.public_key) for _ in range(100)]
            answers = await asyncio.gather(*(client.get(path(hub, 102, t)) for t in tickets))
            assert {a.content for a in answers} == {hub.media[102]}
            assert hub.pulls.count(102) == 1

    asyncio.run(main())


def test_segments_to_come_are_pulled_ahead_while_somebody_watches(hub, running, tmp_path):
    async def main() -> None:
        async with running(hub, tmp_path) as client:
            await client.get(path(hub, 100, hub.issue(node_key(hub), VIEWER.public_key)))
            async with asyncio.timeout(5):
                while 105 not in hub.pulls:
                    await asyncio.sleep(0.02)
            health = (await client.get("/health")).json()
            assert health["viewers"] == 1
            assert "earned" not in health  # not for everybody

    asyncio.run(main())


def test_the_same_ticket_again_and_again_gets_the_same_answers(hub, running, tmp_path):
    async def main() -> None:
        async with running(hub, tmp_path) as client:
            signing = hub.issue(node_key(hub), VIEWER.public_key)
            plain = hub.issue(node_key(hub), None)
            for sequence in (100, 101, 100, 101, 100, 100):
                for ticket in (signing, plain):
                    answer = await client.get(path(hub, sequence, ticket))
                    assert (answer.status_code, answer.content) == (200, hub.media[sequence])
                    sha256 = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
                    assert answer.headers["repr-digest"] == f"sha-256=:{sha256}:"
                    assert answer.headers["access-control-allow-origin"] == "*"
                assert (await client.head(path(hub, sequence, signing))).status_code == 200
                assert (await client.get(path(hub, 99, signing))).status_code == 403
                assert (await client.get(path(hub, sequence, signing) + "A")).status_code in (400, 403)
            assert hub.pulls.count(100) == hub.pulls.count(101) == 1

    asyncio.run(main())


def test_a_corrupt_segment_is_pulled_again_and_never_served(hub, running, tmp_path):
    async def main() -> None:
        async with running(hub, tmp_path) as client:
            ticket = hub.issue(node_key(hub), VIEWER.public_key)
            hub.corrupt_pulls = 1
            assert (await client.get(path(hub, 105, ticket))).content == hub.media[105]
            hub.publish(1)
            hub.corrupt_pulls = 10**6
            answer = await client.get(path(hub, 106, ticket))
            assert answer.status_code == 502
            assert answer.json()["type"].endswith("corrupt-segment")

    asyncio.run(main())


def test_a_ticket_of_a_rotated_key_is_honoured(hub, running, tmp_path):
    async def main() -> None:
        async with running(hub, tmp_path) as client:
            old = hub.issue(node_key(hub), VIEWER.public_key)
            hub.retired, hub.key = [hub.key], KeyPair(secrets.token_bytes(32))
            new = hub.issue(node_key(hub), VIEWER.public_key)
            assert (await client.get(path(hub, 100, new))).status_code == 200
            assert (await client.get(path(hub, 100, old))).status_code == 200

    asyncio.run(main())


def test_only_complete_deliveries_to_a_plain_player_are_claimed(hub, running, tmp_path):
    hub.size = 12_000_000  # more than the sockets' buffers
    hub.media.clear()
    hub.publish(2)

    async def main() -> None:
        async with running(hub, tmp_path) as client:
            ticket = hub.issue(node_key(hub), None)
            assert (await client.get(path(hub, 100, ticket))).status_code == 200
            player = socket.socket()
            player.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            player.connect((client.base_url.host, client.base_url.port))
            reader, writer = await asyncio.open_connection(sock=player, limit=1)
            writer.write(f"GET {path(hub, 101, ticket)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await reader.readexactly(1000)
            writer.transport.abort()  # the player goes away in the middle
            async with asyncio.timeout(5):
                while not hub.credits:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            session = ticket.ticket.session_id
            assert hub.credits == {(session, hub.rendition, 100)}
            assert set(hub.verdicts) == {"accepted"}

    asyncio.run(main())


def test_the_upload_limit_holds(hub, running, tmp_path):
    hub.size = 500_000
    hub.media.clear()
    hub.publish(3)

    async def main() -> None:
        options = Options(host="127.0.0.1", port=0, upload_limit_mbit_s=8.0)  # 1 MB/s
        async with running(hub, tmp_path, options) as client:
            ticket = hub.issue(node_key(hub), VIEWER.public_key)
            started = asyncio.get_running_loop().time()
            for sequence in (100, 101, 102):
                assert (await client.get(path(hub, sequence, ticket))).content == hub.media[sequence]
            assert asyncio.get_running_loop().time() - started > 1.1

    asyncio.run(main())


def test_a_request_head_without_end_is_cut_off(hub, running, tmp_path):
    async def main() -> None:
        async with running(hub, tmp_path) as client:
            for head in (b"GET /" + b"a" * 100_000, b"GET /health HTTP/1.1\r\nX: " + b"b" * 100_000):
                reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
                writer.write(head)
                answer = await asyncio.wait_for(reader.read(100), 5)
                assert answer.split()[1] in (b"400", b"431")
                writer.close()

    asyncio.run(main())


def test_the_cache_never_holds_more_than_its_bound():
    async def main() -> None:
        async def fetch(rendition, sequence):
            data = segment_bytes(sequence, 1_000 + sequence % 7 * 300)
            sha256 = hashlib.sha256(data).digest()
            return Pulled(data, sha256, f"sha-256=:{base64.b64encode(sha256).decode()}:")

        cache, rendition = SegmentCache(fetch, max_bytes=10_000), uuid4()
        for sequence in [*range(40), *range(35, 60)]:
            await cache.get(rendition, sequence)
            assert cache.kept_bytes <= 10_000
        assert cache.kept_bytes == sum(len(c.body) for c in cache._kept.values())
        await cache.close()

    asyncio.run(main())


def test_a_pull_that_has_just_failed_is_nobody_elses_answer():
    async def main() -> None:
        rendition, answers = uuid4(), []

        def ask() -> None:  # after the pull's last step, before anybody has heard of its end
            asking = cache.get(rendition, 1)
            try:
                asking.send(None)
            except HubError as e:
                answers.append(e)
            else:
                answers.append("waits for a pull of its own")
                asking.close()

        async def fetch(rendition, sequence):
            if answers:
                return Pulled(b"", hashlib.sha256(b"").digest(), EMPTY)
            asyncio.get_running_loop().call_soon(ask)
            raise HubError("not there yet", status=404)

        cache = SegmentCache(fetch, max_bytes=10)
        with pytest.raises(HubError):
            await cache.get(rendition, 1)
        assert answers == ["waits for a pull of its own"]
        assert (await cache.get(rendition, 1)).body.data == b""
        await cache.close()

    asyncio.run(main())


@given(st.text(max_size=80))
def test_any_digest_header_is_read_or_refused(header):
    digest = digest_of(header)
    assert digest is None or len(digest) == 32


@given(text=st.one_of(st.text(max_size=700), st.binary(min_size=250, max_size=260).map(lambda b: b.hex())))
def test_any_ticket_text_is_refused_not_raised(text):
    async def no_keys() -> list[bytes]:
        raise HubError("away")

    gate = TicketGate(bytes(32), [], no_keys)
    with pytest.raises(TicketRefused) as refused:
        asyncio.run(gate.admit(text, uuid4(), 1))
    assert refused.value.status in (400, 403)


def test_any_receipt_body_is_answered_with_a_problem(hub, running, tmp_path):
    async def main() -> None:
        async with running(hub, tmp_path) as client:
            ticket = hub.issue(node_key(hub), VIEWER.public_key)
            await client.get(path(hub, 100, ticket))
            good = claim(ticket, {100: hub.media[100]}, VIEWER).encode()
            bodies = [b"", b"x", bytes(204), bytes(205), bytes(206), bytes(100_000), good[:-1], good + b"\0"]
            bodies += [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))]
            bodies += [secrets.token_bytes(205) for _ in range(100)]
            async with httpx2.AsyncClient(base_url=client.base_url, trust_env=False) as own:
                for body in bodies:
                    answer = await own.post("/receipts", content=body)
                    assert answer.status_code in (400, 403, 404, 413)
                    assert answer.json()["status"] == answer.status_code
                assert (await own.post("/receipts", content=good)).status_code == 204

    asyncio.run(main())
