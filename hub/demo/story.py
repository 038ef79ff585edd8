"""The acts of the demo, in order, each with what it shows.

Invariant: nothing is staged. Every figure in the final table is read from the hub's API, the payout's CSV file or the
audit; a step that does not come true ends the demo with an error.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx2

from api.directory import Directory, Role
from hub.clock import now_us
from hub.demo.cast import STREAMRP2P, Actor, DemoError, free_ports, run_command, wait_for_http
from hub.demo.mallory import Mallory
from hub.settings import Settings
from ledger.application import Ledger
from ledger.services.crew import change_settings
from ledger.store.database import connect_pool
from relay.viewers import PlainViewer, SigningViewer
from relay.viewers.player import LIVE_EDGE, Player

SLUG: Final = "demo"
FRIENDS: Final = ("ana", "ben", "cleo", "mallory")  # cleo's laptop is closed in the middle; mallory cheats
SIGNING: Final = 8
PLAIN: Final = 4
EPOCH_S: Final = 5
LIVE_S: Final = 40
KILL_AFTER_S: Final = 22
CHEAT_AFTER_S: Final = 16
EARLY_S: Final = 30.0  # within which the first segments are there
BUDGET_MICRO: Final = 20_000_000
RATE_MICRO_PER_GB: Final = 5_000_000


@dataclass
class Friend:
    name: str
    friend_id: str
    token: str
    folder: Path
    node_id: UUID | None = None
    actor: Actor | None = None


@dataclass
class Outcome:
    """What the table at the end is made of."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    viewers: list[tuple[str, Player]] = field(default_factory=list)
    tricks: dict[str, int] = field(default_factory=dict)
    paid: list[dict[str, Any]] = field(default_factory=list)
    earned: dict[str, int] = field(default_factory=dict)  # friend -> the sum of their statement's earnings
    balances: dict[str, int] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    friends: list[Friend] = field(default_factory=list)
    unit: str = ""


class Story:
    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._rtmp, self._http_port, *self._node_ports = free_ports(2 + len(FRIENDS))
        self._base = f"http://127.0.0.1:{self._http_port}"
        self._environment = {
            "STREAMRP2P_DATA_DIR": str(folder / "hub"),
            "STREAMRP2P_RTMP_PORT": str(self._rtmp),
            "STREAMRP2P_HTTP_PORT": str(self._http_port),
            "STREAMRP2P_HTTP_HOST": "127.0.0.1",
            "STREAMRP2P_RTMP_HOST": "127.0.0.1",
            "STREAMRP2P_PUBLIC_URL": self._base,
            "STREAMRP2P_EPOCH_LENGTH_S": str(EPOCH_S),
            "STREAMRP2P_CHECKPOINT_INTERVAL_S": "2",
            "STREAMRP2P_CREW_NAME": "demo-crew",
        }
        self._actors: list[Actor] = []
        self._token = ""  # of the operator, when the house is open
        self._http = httpx2.AsyncClient(timeout=10.0, trust_env=False)
        self.outcome = Outcome()

    async def tell(self) -> Outcome:
        """All of it. Raises DemoError."""
        try:
            async with self._http:
                await self._open_house()
                friends = [await self._invite(name) for name in FRIENDS]
                self.outcome.friends = friends
                await self._friends_join(friends)
                await self._live(friends)
                await self._settle()
                await self._pay()
                await self._audit()
        finally:
            for actor in reversed(self._actors):
                await asyncio.to_thread(actor.stop)
        return self.outcome

    # --- act one: the house

    async def _open_house(self) -> None:
        self._say("The hub starts: Postgres, Valkey, RTMP, HLS, API, worker")
        hub = self._start("hub", (*STREAMRP2P, "up"), {})
        await asyncio.to_thread(wait_for_http, f"{self._base}/api/ready", hub, 45.0)
        settings = Settings(data_dir=self._folder / "hub")
        self.outcome.unit = settings.unit
        await asyncio.to_thread(self._become_operator, settings)
        stream = await self._call("POST", "/api/streams", {"slug": SLUG})
        self._stream_key = str(stream["stream_key"])
        await self._call("POST", f"/api/streams/{SLUG}/tariff", {"rate_micro_per_gb": RATE_MICRO_PER_GB})
        budget = {"amount_micro": BUDGET_MICRO, "reference": "demo"}
        await self._call("POST", f"/api/streams/{SLUG}/budget", budget)
        self._say(f"A creator registers the stream {SLUG!r} and funds it")

    def _become_operator(self, settings: Settings) -> None:
        """A token of our own, and rules for people in a hurry: no hold, payouts from the first cent."""
        url = settings.resolved_database_url()
        ledger = Ledger(url)
        try:
            change_settings(ledger, {"hold_s": 0, "payout_threshold_micro": 1}, at_us=now_us())
            with connect_pool(url) as pool:
                self._token = Directory(pool).create_token(Role.OPERATOR, None, "demo", at_us=now_us())
        finally:
            ledger.close()

    # --- act two: friends

    async def _invite(self, name: str) -> Friend:
        made = await self._call("POST", "/api/invites", {"friend_name": name})
        friend = Friend(name, made["friend_id"], made["friend_token"], self._folder / name)
        port = self._node_ports[FRIENDS.index(name)]
        joined = await asyncio.to_thread(
            run_command,
            *("node", "join", self._base, str(made["code"]), "--name", name, "--json"),
            *("--port", str(port), "--public-url", f"http://127.0.0.1:{port}"),
            *("--data-dir", str(friend.folder)),
            environment=self._environment,
        )
        friend.node_id = UUID(json.loads(joined)["node_id"])
        return friend

    async def _friends_join(self, friends: list[Friend]) -> None:
        for friend in friends:
            command = ("node", "run", "--data-dir", str(friend.folder), "--send-interval", "2")
            friend.actor = self._start(friend.name, (*STREAMRP2P, *command), {})
        self._say(f"Four friends join with one command each: {', '.join(FRIENDS)}")
        async with asyncio.timeout(30):
            while len([n for n in await self._nodes() if n["state"] == "online"]) < len(friends):
                await asyncio.sleep(0.2)

    # --- act three: live

    async def _live(self, friends: list[Friend]) -> None:
        push = {"DEMO_PUSH_URL": f"rtmp://127.0.0.1:{self._rtmp}/live/{self._stream_key}"}
        creator = self._start("creator", (sys.executable, "-m", "hub.demo.publisher", str(LIVE_S)), push)
        async with asyncio.timeout(20):
            while (await self._call("GET", f"/api/streams/{SLUG}"))["state"] != "LIVE":
                creator.must_live()
                await asyncio.sleep(0.2)
        self._say("The creator is live: H.264 and AAC over RTMP, cut into segments, never transcoded")
        began = time.monotonic()
        # Who starts with the very first segment has nothing in hand, and waits for the next. The audience comes when
        # the playlist is as long as players want it: from then on, a stall is one.
        async with PlainViewer(self._base, SLUG) as early:
            await early.wait_for_segments(LIVE_EDGE, EARLY_S)
        async with AsyncExitStack() as audience:
            signing = [
                await self._seat(audience, "page", SigningViewer(self._base, SLUG, receipt_interval_s=2.0))
                for _ in range(SIGNING)
            ]
            for _ in range(PLAIN):
                await self._seat(audience, "VLC-like", PlainViewer(self._base, SLUG))
            self._say(f"{SIGNING} viewers with signing pages and {PLAIN} like VLC watch")
            await asyncio.sleep(max(0.0, CHEAT_AFTER_S - (time.monotonic() - began)))
            await self._cheat(friends[-1], signing)
            await asyncio.sleep(max(0.0, KILL_AFTER_S - (time.monotonic() - began)))
            cleo = next(f for f in friends if f.name == "cleo")
            if cleo.actor is not None:
                cleo.actor.kill()
            self._say("Cleo closes her laptop (kill -9). Her viewers go on with others")
            while creator.process.poll() is None:
                await asyncio.sleep(0.2)
            await asyncio.sleep(3)  # the players play out what is listed
        for kind, viewer in self.outcome.viewers:
            if not viewer.stats.segments:
                raise DemoError(f"a {kind} viewer saw nothing")
        self._say("The creator stops; the last receipts are on their way")

    async def _seat(self, audience: AsyncExitStack, kind: str, viewer: Any) -> Any:
        await audience.enter_async_context(viewer)
        self.outcome.viewers.append((kind, viewer))
        return viewer

    async def _cheat(self, friend: Friend, viewers: list[SigningViewer]) -> None:
        mallory = await asyncio.to_thread(Mallory.of, self._base, SLUG, friend.folder)
        self._say("Mallory cheats: forged, moved, inflated and repeated receipts")
        await mallory.cheat()
        mine = [
            (tally, viewer)
            for viewer in viewers
            for tally in viewer.tallies.all()
            if tally.ticket.ticket.node_key == mallory.key.public_key
        ]
        # One is a dozen batches: the hub takes sixty a minute from a node, its own among them.
        for tally, viewer in mine[:1]:
            receipt = tally.receipt(viewer.key)
            await mallory.replay([receipt])
            await mallory.inflate(receipt, tally.ticket, viewer.key)
        self.outcome.tricks = dict(mallory.verdicts)

    # --- act four: money

    async def _settle(self) -> None:
        """Wait until the epoch of the last receipts is settled and its hold is over."""
        await asyncio.sleep(3)  # the nodes' last batches
        ends_s = (time.time() // EPOCH_S + 1) * EPOCH_S
        self._say(f"The epoch ends in {ends_s - time.time():.0f} s; then it is settled")
        async with asyncio.timeout(40):
            await asyncio.sleep(max(0.0, ends_s - time.time()) + 1)
            while True:
                balances = await self._balances()
                pending = sum(v for a, v in balances.items() if a.endswith(":pending"))
                if not pending and any(v for a, v in balances.items() if a.endswith(":available")):
                    break
                await asyncio.sleep(0.3)
        self._say("Settled: what was delivered is now available to be paid out")
        self.outcome.nodes = await self._nodes()

    async def _pay(self) -> None:
        for friend in self.outcome.friends:
            await self._streamrp2p("payout", "destination", friend.friend_id, f"account of {friend.name}")
        planned = json.loads(await self._streamrp2p("payout", "plan", "--rail", "csv", "--json"))
        batch = str(planned["batch_id"])
        await self._streamrp2p("payout", "approve", batch, "--operator", "demo")
        await self._streamrp2p("payout", "run", batch)
        shown = json.loads(await self._streamrp2p("payout", "show", batch, "--json"))
        self.outcome.paid = shown["lines"]
        for friend in self.outcome.friends:
            self.outcome.earned[friend.friend_id] = await self._earned(friend)
        self._say("Payout: planned, approved, paid into a CSV file")

    async def _earned(self, friend: Friend) -> int:
        headers = {"Authorization": f"Bearer {friend.token}"}
        url = f"{self._base}/api/friends/me/statement?limit=1000"
        lines = (await self._http.get(url, headers=headers)).json()["lines"]
        return sum(line["amount_micro"] for line in lines if line["kind"] == "earned")

    async def _audit(self) -> None:
        rows = (await self._call("GET", "/api/balances"))["balances"]
        last_transfer = max(row["last_position"] for row in rows)
        async with asyncio.timeout(30):
            while await self._published_size() <= last_transfer:
                await asyncio.sleep(0.3)
        self._say("An auditor replays the published log, believing nobody")
        self.outcome.balances = {row["account"]: row["amount_micro"] for row in rows}
        answer = await self._http.get(f"{self._base}/log/vkey")
        vkey = answer.text.strip()
        audited = await self._streamrp2p("audit", f"{self._base}/log", "--vkey", vkey, "--json", ok=(0, 5))
        self.outcome.audit = json.loads(audited)

    async def _published_size(self) -> int:
        """How many events the last checkpoint covers (its second line)."""
        answer = await self._http.get(f"{self._base}/log/checkpoint")
        return int(answer.text.splitlines()[1]) if answer.status_code == 200 else 0

    # --- helpers

    def _start(self, name: str, command: tuple[str, ...], more: dict[str, str]) -> Actor:
        actor = Actor.start(name, command, self._folder, {**self._environment, **more})
        self._actors.append(actor)
        return actor

    async def _streamrp2p(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
        return await asyncio.to_thread(run_command, *arguments, environment=self._environment, ok=ok)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        answer = await self._http.request(method, self._base + path, json=body, headers=headers)
        if answer.status_code >= 400:
            raise DemoError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        found: dict[str, Any] = answer.json()
        return found

    async def _nodes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._call("GET", "/api/nodes"))["nodes"]
        return found

    async def _balances(self) -> dict[str, int]:
        rows = (await self._call("GET", "/api/balances"))["balances"]
        return {row["account"]: row["amount_micro"] for row in rows}
