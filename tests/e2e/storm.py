"""A broadcast in a storm: real processes killed at seeded random moments, then every figure held against fold.py.

Invariant: the storm only does what the world may do (kill, flush, start again); it repairs nothing.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from fold import Fold, fold
from house import SLUG, Friend, House, until

from hub.demo.cast import Actor, DemoError
from relay.viewers import PlainViewer, SigningViewer
from relay.viewers.player import FetchError, Player, ViewerError
from relay.viewers.playlist import MediaPlaylist, PlaylistError, parse_media

FAULTS = ("postgres", "valkey", "flush", "origin", "worker", "node", "publisher", "supervisor")
SETTLE_S = 60.0
CALM_S = 30.0  # so long after the storm every viewer gets segments again


class Witness(SigningViewer):
    """A signing viewer that keeps every receipt somebody acknowledged."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.acknowledged: list[bytes] = []

    async def _post(self, url: str, receipt: bytes, patience_s: float) -> bool:
        taken = await super()._post(url, receipt, patience_s)
        if taken:
            self.acknowledged.append(receipt)
        return taken


@dataclass
class Seat:
    """One person who watches, and opens the stream again when the player gave up."""

    kind: str
    make: Callable[[], Player]
    segments: int = 0
    openings: int = 0
    last_s: float = field(default_factory=time.monotonic)
    longest_silence_s: float = 0.0
    calm_s: float | None = None  # when all processes were well again
    after_s: float | None = None  # from then to the first segment
    acknowledged: list[bytes] = field(default_factory=list)
    stop: bool = False

    async def watch(self) -> None:
        while not self.stop:
            viewer = self.make()
            self.openings += 1
            try:
                async with viewer:
                    await self._follow(viewer)
            except (ViewerError, FetchError, httpx2.HTTPError):
                await asyncio.sleep(0.5)
            finally:
                self.acknowledged += getattr(viewer, "acknowledged", [])

    async def _follow(self, viewer: Player) -> None:
        seen = 0
        while not self.stop and not viewer.ended:
            await asyncio.sleep(0.2)
            if viewer.stats.segments > seen:
                self.segments += viewer.stats.segments - seen
                seen = viewer.stats.segments
                self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        if self.calm_s is not None and self.after_s is None:
            self.after_s = now - self.calm_s
        self.longest_silence_s = max(self.longest_silence_s, now - self.last_s)
        self.last_s = now


@dataclass
class Injury:
    at_s: float
    fault: str
    listed_s: float | None = None  # until a segment was listed that was not before
    ready_s: float | None = None  # until the hub called itself ready


@dataclass
class Report:
    seed: int
    injuries: list[Injury] = field(default_factory=list)
    seats: list[Seat] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    fold: Fold | None = None
    settled_s: float = 0.0
    acknowledged: int = 0


class Storm:
    def __init__(
        self, house: House, seed: int, *, friends: int = 3, signing: int = 4, plain: int = 2
    ) -> None:
        self.house = house
        self.report = Report(seed)
        self._rng = random.Random(seed)
        self._friends = friends
        self._signing = signing
        self._plain = plain
        self._publisher: Actor | None = None
        self._off_air = False
        self._top = -1  # the highest sequence that any playlist listed
        self._tasks: list[asyncio.Task[Any]] = []

    async def blow(self, seconds: float, faults: tuple[str, ...], pause_s: tuple[float, float]) -> Report:
        """Kill things for `seconds` (each fault at least once, if there is time), let it calm down, check all."""
        await self._set_out()
        began = time.monotonic()
        order = self._rng.sample(faults, len(faults))
        while time.monotonic() - began < seconds:
            if not order:
                order = self._rng.sample(faults, len(faults))
            await asyncio.sleep(self._rng.uniform(*pause_s))
            await self._injure(order.pop())
        await self._calm_down()
        await self._check()
        return self.report

    # --- the broadcast

    async def _set_out(self) -> None:
        house = self.house
        house.open()
        for number in range(self._friends):
            house.start_node(house.invite(f"friend{number}"))
        await until(lambda: house.nodes_online() == self._friends, 30, "all nodes are online")
        self._spawn(self._keep_publishing())
        await until(lambda: house.state() == "LIVE", 30, "the stream is live")
        for _ in range(self._signing):
            self._seat(
                "page", lambda: Witness(house.base, SLUG, receipt_interval_s=1.0, hub_copy_interval_s=7.0)
            )
        for _ in range(self._plain):
            self._seat("VLC", lambda: PlainViewer(house.base, SLUG))
        self._spawn(self._watch_the_playlist())
        self._spawn(self._watch_the_supervisor())

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        return task

    def _seat(self, kind: str, make: Callable[[], Player]) -> None:
        seat = Seat(kind, make)
        self.report.seats.append(seat)
        self._spawn(seat.watch())

    async def _keep_publishing(self) -> None:
        """As OBS does: connects again a second after it was cut off."""
        while not self._off_air:
            self._publisher = self.house.publish()
            while self._publisher.process.poll() is None and not self._off_air:
                await asyncio.sleep(0.1)
            await asyncio.sleep(1.0)

    async def _watch_the_playlist(self) -> None:
        """Note when new segments are listed after each injury, and that the sequence never goes back."""
        async with httpx2.AsyncClient(timeout=3.0, trust_env=False) as http:
            while True:
                with contextlib.suppress(httpx2.HTTPError, PlaylistError, DemoError):
                    await self._look(await self._playlist(http))
                await asyncio.sleep(0.1)

    async def _playlist(self, http: httpx2.AsyncClient) -> MediaPlaylist:
        master = await http.get(f"{self.house.base}/live/{SLUG}.m3u8")
        media = [line for line in master.text.splitlines() if line and not line.startswith("#")]
        if master.status_code != 200 or not media:
            raise PlaylistError("no stream just now")
        url = str(master.url.join(media[0]))
        while True:
            answer = await http.get(url)
            if answer.status_code != 200:
                raise PlaylistError("the session is gone")
            await self._look(parse_media(answer.text, url))
            await asyncio.sleep(0.1)

    async def _look(self, playlist: MediaPlaylist) -> None:
        if not playlist.segments:
            return
        newest = playlist.segments[-1].sequence
        if newest < self._top and not playlist.ended:
            self.report.problems.append(f"the playlist went back from {self._top} to {newest}")
        if newest > self._top:
            self._top = newest
            for injury in self.report.injuries:
                if injury.listed_s is None:
                    injury.listed_s = time.monotonic() - injury.at_s

    # --- injuries

    async def _injure(self, fault: str) -> None:
        house = self.house
        injury = Injury(time.monotonic(), fault)
        if fault == "flush":
            await self._flush()
        elif fault == "node":
            friend = self._rng.choice(house.friends)
            assert friend.actor is not None
            friend.actor.kill()
            self._spawn(self._node_returns(friend))
        elif fault == "publisher":
            if self._publisher is not None:
                self._publisher.kill()
        elif fault == "supervisor":
            assert house.hub is not None
            house.hub.kill()
            await asyncio.sleep(self._rng.uniform(0.0, 1.5))
            house.launch_hub()
        elif not house.kill(fault):
            return  # it is dead already
        self.report.injuries.append(injury)
        self._spawn(self._until_ready(injury))

    async def _flush(self) -> None:
        from api.valkey import connect

        with contextlib.suppress(Exception):  # it may be down already
            await asyncio.to_thread(lambda: connect(self.house.redis_url).flushall())

    async def _node_returns(self, friend: Friend) -> None:
        await asyncio.sleep(self._rng.uniform(0.5, 4.0))
        self.house.start_node(friend)

    async def _watch_the_supervisor(self) -> None:
        """It ends when it is killed, and never of itself."""
        while True:
            hub = self.house.hub
            if hub is not None and hub.process.poll() not in (None, -signal.SIGKILL):
                self.report.problems.append(
                    f"the hub gave up with code {hub.process.returncode}: {hub.tail()[-300:]}"
                )
                self.house.launch_hub()
            await asyncio.sleep(0.2)

    async def _until_ready(self, injury: Injury) -> None:
        await asyncio.sleep(0.3)  # until the world has noticed

        def ready() -> bool:
            return self.house.ask("GET", "/api/ready").status_code == 200

        await until(ready, 60, f"ready after {injury.fault}", every_s=0.1)
        injury.ready_s = time.monotonic() - injury.at_s

    # --- afterwards

    async def _calm_down(self) -> None:
        house = self.house
        assert house.hub is not None
        try:
            await until(
                lambda: house.ask("GET", "/api/ready").status_code == 200, 60, "the hub is ready again"
            )
            await until(lambda: house.nodes_online() == self._friends, 60, "all nodes are online again")
            for seat in self.report.seats:
                seat.calm_s = time.monotonic()
            top = self._top
            await until(lambda: self._top > top + 1, 40, "segments are listed again")
            with contextlib.suppress(AssertionError):  # told by `_check`, for each seat
                await until(
                    lambda: all(s.after_s is not None for s in self.report.seats), CALM_S, "all watch again"
                )
        finally:
            for seat in self.report.seats:
                seat.stop = True
        await asyncio.sleep(1.5)
        self._off_air = True
        if self._publisher is not None:
            self._publisher.stop()
        began = time.monotonic()
        await until(
            lambda: sum(f.spooled for f in house.friends) == 0, SETTLE_S, "no receipt waits in a spool"
        )
        await until(lambda: house.state() != "LIVE", SETTLE_S, "the broadcast has ended")
        await self._until_quiet()
        self.report.settled_s = time.monotonic() - began
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                self.report.problems.append(f"{type(result).__name__}: {result}")

    async def _until_quiet(self) -> None:
        """What was credited is settled, released, projected and published. (Empty epochs go on being settled.)"""
        told = Fold()

        def quiet() -> bool:
            nonlocal told
            with self.house.connect() as connection:
                told = fold(connection)
            pending = any(account.endswith(":pending") for account in told.money)
            settled = told.settled_to > told.last_credit and not pending
            shown = self.house.balances() == told.money
            return settled and shown and self.house.checkpoint_size() > told.last_transfer

        try:
            await until(quiet, SETTLE_S, "settled, projected and published", every_s=0.5)
        except AssertionError as error:
            self.report.problems.append(
                f"{error}: settled to {told.settled_to}, last credit {told.last_credit}"
            )

    async def _check(self) -> None:
        house, problems = self.house, self.report.problems
        with house.connect() as connection:
            told = self.report.fold = fold(connection)
        problems += told.problems
        acknowledged = [r for seat in self.report.seats for r in seat.acknowledged]
        self.report.acknowledged = len(acknowledged)
        if missing := told.unjudged(acknowledged):
            problems.append(f"{len(missing)} of {len(acknowledged)} acknowledged receipts were never judged")
        if odd := {v: n for v, n in told.verdicts.items() if v not in ("accepted", "duplicate")}:
            problems.append(f"honest receipts were refused: {odd}")
        if told.money != dict(sorted(house.balances().items())):
            problems.append(f"the API's balances are not the fold's: {house.balances()} / {told.money}")
        report = house.audit()
        if report["exit"] != 0:
            problems.append(f"the audit failed: {report.get('problem')} {report.get('error', '')}")
        elif report["balances"] != told.money:
            problems.append("the audit's balances are not the fold's")
        if told.settled_units > told.units:
            problems.append(f"{told.settled_units} units settled, {told.units} credited")
        if not any(a.endswith(":available") for a in told.money):
            problems.append("nobody earned anything")
        before = house.read_models()
        house.run("projections", "rebuild")
        after = house.read_models()
        for name in before.keys() - {"read_positions"}:  # empty epochs go on being settled
            if before[name] != after.get(name):
                problems.append(f"{name} is not what a rebuild makes of it")
        for seat in self.report.seats:
            if seat.after_s is None or seat.after_s > CALM_S:
                problems.append(f"a {seat.kind} viewer got nothing after the storm")


async def storm(folder: Path, seed: int, seconds: float, **options: Any) -> Report:
    """One storm on a hub of its own in `folder`."""
    faults = options.pop("faults", FAULTS)
    pause_s = options.pop("pause_s", (2.0, 5.0))
    house = House(folder)
    try:
        return await Storm(house, seed, **options).blow(seconds, faults, pause_s)
    finally:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        house.close()
