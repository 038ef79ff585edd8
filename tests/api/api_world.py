"""What the tests of the API and of the pages stand on: the real services put together as the hub does it.

Only steering is a stand-in (a dict), because it lives in the hub.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec

from api.app import create_app
from api.deps import ApiSettings, Audience, Services
from api.directory import Directory, Role
from api.estimates import Estimates
from api.liveness import Liveness
from api.ratelimit import RateLimiter, Rules
from api.valkey import connect
from ledger.aggregates.book import Book
from ledger.aggregates.broadcast import Broadcast
from ledger.aggregates.node import Node
from ledger.application import Ledger
from ledger.events import Posting, Segment, SettlementLine, Transfer
from ledger.ids import BOOK_ID
from ledger.keys import KeyPair
from ledger.money import budget_account, friend_account
from ledger.receipt import Receipt, fold_digests, segment_digest, to_bitmap
from ledger.request import sign_request
from ledger.services import broadcasts, budgets, crew
from ledger.services.delivery import DeliveryDesk
from ledger.services.nodes import prefix_commitment
from ledger.settlement import Page as SettlementPage
from ledger.store.database import connect_pool, create_sql_engine
from ledger.ticket import SignedTicket, ViewerClass
from projections.queries import Queries
from projections.runner import Runner

T0 = 1_800_000_000_000_000
HUB = KeyPair(b"hub ticket key..................")
LOG = KeyPair(b"hub log key.....................")
NONCE = b"n" * 16


def new_key() -> KeyPair:
    return KeyPair(os.urandom(32))


class World:
    def __init__(
        self,
        ledger: Ledger,
        database_url: str,
        redis_url: str | None,
        log_folder: Path,
        rules: Rules | None = None,
    ) -> None:
        self.ledger = ledger
        self.now_us = T0
        self.media: dict[int, bytes] = {}
        self.watching: dict[str, Audience] = {}
        self.sessions: dict[UUID, str] = {}
        self.log_folder = log_folder
        log_folder.mkdir(exist_ok=True)
        self._pool = connect_pool(database_url)
        self._engine = create_sql_engine(database_url)
        self.directory = Directory(self._pool)
        self.reads = Queries(self._engine)
        self.runner = Runner(ledger, self._engine)
        self.runner.prepare()
        self.valkey = connect(redis_url) if redis_url else None
        if self.valkey:
            self.valkey.flushall()
        self.liveness = Liveness(self.valkey)
        self.estimates = Estimates(self.valkey)
        self.desk = DeliveryDesk(ledger, digest_of=self._digest)
        crew.found_crew(ledger, name="crew", unit="EUR", epoch_length_s=3600, at_us=T0)
        crew.add_key(ledger, "ticket", HUB.public_key, at_us=T0)
        crew.add_key(ledger, "log", LOG.public_key, at_us=T0)
        self.services = Services(
            settings=ApiSettings(
                crew_name="The crew", rtmp_url="rtmp://hub.test:1935/live", public_url="http://hub.test"
            ),
            ledger=ledger,
            desk=self.desk,
            reads=self.reads,
            directory=self.directory,
            liveness=self.liveness,
            estimates=self.estimates,
            limiter=RateLimiter(redis_url, rules),
            log_folder=log_folder,
            now_us=lambda: self.now_us,
            open_signing_session=self._open_signing_session,
            audience=lambda slug: self.watching.get(slug, Audience(0, {})),
            commit_network=lambda ip, unique: prefix_commitment(b"salt", ip, unique=unique),
            ingest_ready=lambda: True,
        )
        self.app = create_app(self.services)
        self.operator = self.token(Role.OPERATOR)

    def close(self) -> None:
        self._engine.dispose()
        self._pool.close()
        if self.valkey:
            self.valkey.close()

    # --- the hub's side

    def token(self, role: Role, subject_id: UUID | None = None) -> dict[str, str]:
        """Headers."""
        text = self.directory.create_token(role, subject_id, "test", at_us=self.now_us)
        return {"Authorization": f"Bearer {text}"}

    def project(self) -> None:
        self.runner.catch_up()

    def earn(self, friend_id: UUID, node_id: UUID, amount_micro: int, *, epoch: int = 0) -> None:
        """One settled line for the friend, and the read models that show it."""
        budgets.deposit(
            self.ledger,
            self.stream_id,
            amount_micro=50_000_000,
            reference=f"deposit {epoch}",
            at_us=self.now_us,
        )
        line = SettlementLine(
            self.stream_id, node_id, friend_id, "delivery", 30, 123_456_789, 10_000, 1, amount_micro
        )
        postings = (
            Posting(budget_account(self.stream_id), -amount_micro),
            Posting(friend_account(friend_id, "pending"), amount_micro),
        )
        book = self.ledger.load(Book, BOOK_ID)
        pages = [SettlementPage(lines=(line,), transfers=(Transfer("settlement", postings),))]
        book.settle_epoch(epoch, log_to=self.ledger.size(), pages=pages, at_us=self.now_us)
        self.ledger.save(book)
        self.project()

    async def _open_signing_session(
        self, slug: str, viewer_key: bytes, peer_ip: str, account_id: UUID | None
    ) -> UUID | None:
        return self.open_session(slug, viewer_key, peer_ip, account_id)

    def open_session(
        self, slug: str, viewer_key: bytes, peer_ip: str = "198.51.100.9", account_id: UUID | None = None
    ) -> UUID:
        session_id = uuid4()
        self.desk.open_session(
            session_id=session_id,
            stream_id=self.stream_id,
            viewer_class=ViewerClass.SIGNING if viewer_key else ViewerClass.PLAIN,
            viewer_key=viewer_key,
            prefix_commitment=prefix_commitment(b"salt", peer_ip, unique=session_id.bytes),
            account_id=account_id,
            at_us=self.now_us,
        )
        self.sessions[session_id] = slug
        return session_id

    def go_live(self, stream_id: UUID) -> Broadcast:
        self.stream_id = stream_id
        self.broadcast, _ = broadcasts.start_or_resume(
            self.ledger,
            stream_id,
            new_broadcast_id=uuid4(),
            new_rendition_id=uuid4(),
            video_codec="avc1",
            audio_codec="mp4a",
            grace_s=15,
            at_us=self.now_us,
        )
        return self.broadcast

    def publish(self, media: Mapping[int, bytes], duration_us: int = 2_000_000) -> None:
        self.media.update(media)
        segments = [
            Segment(n, duration_us, len(data), hashlib.sha256(data).digest(), self.now_us)
            for n, data in sorted(media.items())
        ]
        broadcasts.publish_segments(self.ledger, self.broadcast.id, segments, at_us=self.now_us)

    def issue(self, session_id: UUID, node_key: KeyPair, first_sequence: int) -> SignedTicket:
        from ledger.ids import node_id

        return self.desk.issue_ticket(
            hub_key=HUB,
            ticket_id=uuid4(),
            session_id=session_id,
            node=self.ledger.load(Node, node_id(node_key.public_key)),
            broadcast=self.ledger.load(Broadcast, self.broadcast.id),
            first_sequence=first_sequence,
            nonce=NONCE,
            tariff_version=1,
            at_us=self.now_us,
        )

    def _digest(self, _rendition: UUID, nonce: bytes, sequence: int) -> bytes | None:
        return segment_digest(nonce, self.media[sequence]) if sequence in self.media else None

    # --- the node's and the viewer's side

    def receipt(self, ticket: SignedTicket, viewer: KeyPair, sequences: list[int], counter: int = 1) -> bytes:
        base = ticket.ticket.first_sequence
        return (
            Receipt(
                ticket_hash=ticket.ticket.hash,
                counter=counter,
                base_sequence=base,
                bitmap=to_bitmap(base, sequences),
                digest=fold_digests(segment_digest(ticket.ticket.nonce, self.media[s]) for s in sequences),
            )
            .sign(viewer)
            .encode()
        )

    def signed(self, key: KeyPair, method: str, target: str, body: Any = None) -> dict[str, Any]:
        """Keyword arguments for the client: body and the node's signature over it."""
        content = b"" if body is None else msgspec.json.encode(body)
        header = sign_request(key, method, target, content, now_s=self.now_us // 1_000_000)
        return {"content": content, "headers": {"Authorization": header, "Content-Type": "application/json"}}
