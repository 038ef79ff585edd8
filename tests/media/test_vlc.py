"""The real VLC: plays through a friend's node, and goes on when that node, or the hub, is killed."""

import asyncio
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

import pytest
from house import House
from programs import H264, encode, picture, plain_source, pushing, vlc

from hub.probes import Prober
from ledger.keys import KeyPair
from ledger.ticket import Ticket, ViewerClass

pytestmark = [pytest.mark.vlc, pytest.mark.ffmpeg, pytest.mark.slow]


def wait(condition, timeout_s: float, what: str) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, what
        time.sleep(0.1)
    return time.monotonic() - began


def test_vlc_goes_on_when_its_node_and_then_the_hub_are_killed(hub: House, folder: Path) -> None:
    key = hub.add_stream("for-vlc")
    with pushing(plain_source(folder), f"rtmp://127.0.0.1:{hub.rtmp_port}/live/{key}", folder / "push.log"):
        wait(lambda: hub.ask("GET", "/live/for-vlc.m3u8").status_code == 200, 15, "the stream is live")
        with vlc(f"{hub.base}/live/for-vlc.flv", folder / "vlc-flv") as player:
            wait(lambda: player.displayed() > 30, 15, "HTTP-FLV is shown")
        with vlc(f"{hub.base}/live/for-vlc.m3u8", folder / "vlc-hls") as player:
            wait(lambda: player.displayed() > 60, 15, "HLS is shown")
            crew = hub.call("GET", "/api/streams/for-vlc")["crew"]
            carrier = max(crew, key=lambda node: node["viewers"])["name"]
            friend = next(f for f in hub.friends if f.name == carrier)
            assert friend.actor is not None
            friend.actor.kill()
            assert player.longest_gap_s(10) < 3, "a segment at most is missing when a node dies"
            hub.start_node(friend)
            assert hub.kill("origin")
            shown = player.displayed()
            wait(lambda: player.displayed() > shown + 240, 45, "it plays on with the hub that started again")
            assert player.process.poll() is None


@contextmanager
def heard(segment: bytes, ticket: str) -> Iterator[tuple[str, list[bytes]]]:
    """A hub and a node in one: its address, and the head of every request that comes for a node's segment."""
    heads: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    began = time.monotonic()

    def body(path: str) -> bytes:
        if path.endswith("index.m3u8"):
            last = 6 + int((time.monotonic() - began) / 2)
            lines = [
                f"#EXTINF:2.0,\n{base}/segments/{UUID(int=1)}/{n}.ts?t={ticket}"
                for n in range(last - 6, last)
            ]
            head = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:{last - 6}\n"
            return (head + "\n".join(lines) + "\n").encode()
        if path.endswith(".m3u8"):
            return b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000000\n/live/x/s/index.m3u8\n"
        return segment

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while head := connection.recv(65_536):
                path = head.split()[1].decode().partition("?")[0]
                heads.extend([head] if path.startswith("/segments/") else [])
                kind = b"application/vnd.apple.mpegurl" if path.endswith("m3u8") else b"video/mp2t"
                data = body(path)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(data))
                    + data
                )

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield base, heads
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_a_node_hears_from_a_probe_exactly_what_it_hears_from_vlc(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = KeyPair(b"k" * 32)
    ids = {name: UUID(int=1) for name in ("ticket_id", "session_id", "stream_id", "rendition_id")}
    keys = {
        "hub_key_id": key.key_id,
        "viewer_key": key.public_key,
        "node_key": key.public_key,
        "nonce": bytes(16),
    }
    numbers = {
        "first_sequence": 0,
        "last_sequence": 299,
        "settle_by_s": 1,
        "tariff_version": 1,
        "byte_budget": 1,
    }
    ticket = Ticket(viewer_class=ViewerClass.PLAIN, **ids, **keys, **numbers).sign(key).encode_url()
    source = encode(folder / "segment.ts", 2, *picture("320x180", "25"), *H264, "-g", "50")
    monkeypatch.setattr(Prober, "_published", lambda *_: b"")

    def of(heads: list[bytes], base: str) -> list[str]:
        texts = [re.sub(r"VLC/[0-9.]+", "VLC/3", head.decode().replace(base[7:], "HOST")) for head in heads]
        return [re.sub(r"/\d+\.ts", "/N.ts", text) for text in texts]

    with (
        heard(source.read_bytes(), ticket) as (base, heads),
        vlc(f"{base}/live/x.m3u8", folder / "vlc-heard"),
    ):
        wait(lambda: len(heads) >= 3, 20, "VLC plays")
        from_vlc = of(heads[:3], base)
    with heard(source.read_bytes(), ticket) as (base, heads):
        asyncio.run(Prober(None, base, random.Random(1))._watch("x"))  # type: ignore[arg-type]
        from_probe = of(heads, base)
    assert set(from_probe) == set(from_vlc)
