"""The worker process: read models, settlement, hold release, the published log, and who is online.

Invariant: each duty is a loop of its own that may die anywhere and be repeated. A duty that meets something it cannot
sit out (a broken log) stops for itself alone: it says so loudly, makes the hub not ready, and tries again ever more
slowly while the others go on.
"""

import gc
import random
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from api.estimates import Estimates
from api.liveness import Liveness, LivenessUnknown
from api.valkey import connect
from hub.calm import Calm, Carrier
from hub.clock import SteadyClock, now_us
from hub.embedded.warm import warm
from hub.estimating import Estimating
from hub.heartbeats import HEARTBEATS_FOLDER, STEP_S, Heartbeats
from hub.keystore import KeyStore
from hub.leaving import leave
from hub.log_name import log_origin
from hub.logs import configure_logging
from hub.probes import Prober
from hub.rotation import LogKeyChange
from hub.settings import Settings, load_settings
from hub.stale import mark_stale_streams
from hub.troubles import TROUBLES_FOLDER, Troubles
from ledger.aggregates.node import Node
from ledger.application import Conflict, Ledger, Unavailable
from ledger.services import crew
from ledger.services.credit_index import CreditIndex
from ledger.services.nodes import change_node
from ledger.services.settle import (
    GRACE_US,
    catch_up,
    keep_index,
    kept_on_the_way,
    recall_index,
    release_due_holds,
    settle_due_epochs,
)
from ledger.store.database import create_sql_engine
from ledger.store.outage import outage
from ledger.tlog.cosigners import Cosigners, WitnessAddress
from ledger.tlog.publisher import FolderInUse, Publisher
from projections.queries import Queries, ReadModelUnavailable
from projections.runner import Runner

log = structlog.get_logger("hub.worker")

TRANSIENT: Final = (Unavailable, Conflict, ReadModelUnavailable, FolderInUse, OSError)
PROJECTIONS_S: Final = 30.0  # between two signs of life of the read models, which have one a batch
SETTLE_EVERY_S: Final = 1.0
CLOCK_FILE: Final = "clock.last"
WATCH_EVERY_S: Final = 2.0
PROBE_EVERY_S: Final = 10.0
STALE_EVERY_S: Final = 3_600
TROUBLED_FIRST_S: Final = 2.0
TROUBLED_MAX_S: Final = 300.0


class Worker:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._troubles = Troubles(settings.data_dir / TROUBLES_FOLDER)
        url = settings.resolved_database_url()
        self._ledger = Ledger(url)
        self._engine = create_sql_engine(url)
        self._queries = Queries(self._engine)
        self._heartbeats = Heartbeats(settings.data_dir / HEARTBEATS_FOLDER)
        self._runner = Runner(self._ledger, self._engine, alive=self._alive("projections", PROJECTIONS_S))
        self._credits: CreditIndex | None = None  # not recalled yet
        self._looked_us: int | None = None  # for streams that are not used
        self._clock = SteadyClock(now_us, kept=settings.data_dir / CLOCK_FILE)
        keys = KeyStore.open(settings.data_dir / "keys")
        self._key_change = LogKeyChange(self._ledger, settings.data_dir / "keys")
        witnesses = WitnessAddress.parse_all(settings.witnesses or "")
        self._publisher = Publisher(
            self._ledger,
            settings.data_dir / "log",
            keys.log,
            log_origin(settings),
            cosigners=Cosigners(witnesses) if witnesses else None,
            alive=self._alive("publisher"),
        )
        valkey = connect(settings.resolved_redis_url())
        self._liveness = Liveness(valkey)
        self._estimating = Estimating(self._ledger, Estimates(valkey))
        self._dice = random.SystemRandom()
        self._calm = Calm(self._dice)
        self._prober = Prober(
            self._ledger,
            f"http://127.0.0.1:{settings.http_port}",
            self._dice,
            settings.probe_proxy,
            suspended=self._liveness.forget,
        )

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        duties: dict[str, tuple[float, Callable[[], None]]] = {
            "projections": (SETTLE_EVERY_S, lambda: self._runner.run(self._stop)),
            "settlement": (SETTLE_EVERY_S, self.settle),
            "publisher": (self._settings.checkpoint_interval_s, self.publish),
            "nodes": (WATCH_EVERY_S, self.watch_nodes),
            "probes": (PROBE_EVERY_S, self.probe),
        }
        threads = [
            threading.Thread(
                target=repeat,
                args=(name, seconds, step, self._stop, self._troubles, self._heartbeats),
                name=name,
            )
            for name, (seconds, step) in duties.items()
        ]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop.set())
        self._heartbeats.begin()
        if self._settings.database_url is None:  # the embedded one
            url = self._settings.resolved_database_url()
            threading.Thread(target=warm, args=(url, self._stop), name="warm", daemon=True).start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.close()

    def close(self) -> None:
        self._ledger.close()
        self._engine.dispose()

    def _alive(self, duty: str, within_s: float = STEP_S) -> Callable[[], None]:
        """To be called wherever a step of the duty comes on: on a large log, or after a pause, one may take hours."""
        return lambda: self._heartbeats.promise(duty, within_s)

    # --- duties

    def settle(self) -> None:
        """Settle every epoch that is over, release what was held long enough, say what the running one would bring."""
        alive = self._alive("settlement")
        self._clock.checked()
        sure = self._clock.is_sure()  # not for some minutes after a start that is long after the last end
        if self._credits is None:
            self._credits = recall_index(self._ledger)
        on_the_way = kept_on_the_way(self._ledger, self._credits, alive)
        try:
            settled = []
            if sure:
                settled = settle_due_epochs(
                    self._ledger,
                    at_us=self._clock.checked(),
                    index=self._credits,
                    alive=on_the_way,
                    grace_us=GRACE_US,
                )
            else:
                catch_up(self._ledger, self._credits, alive=on_the_way)
            keep_index(self._ledger, self._credits)
        except TRANSIENT:
            raise
        except Exception:
            self._credits = CreditIndex()  # what failed half-way is folded anew
            raise
        alive()
        if not sure:
            return
        hold_s = crew.settings(self._ledger).hold_s
        release_due_holds(self._ledger, hold_s=hold_s, at_us=self._clock.checked())
        self._estimating.step(self._credits, at_us=self._clock.checked(), settled=bool(settled), alive=alive)
        self._mark_stale(self._clock.checked())

    def _mark_stale(self, at_us: int) -> None:
        """Once an hour, by the clock that is sure."""
        if self._looked_us is None or abs(at_us - self._looked_us) >= STALE_EVERY_S * 1_000_000:
            with suppress(ReadModelUnavailable):  # then in the next step
                mark_stale_streams(self._ledger, self._queries, at_us=at_us)
                self._looked_us = at_us

    def publish(self) -> None:
        self._publisher.former_key = self._key_change.former(at_us=now_us())
        self._publisher.publish(at_us=now_us())
        self._key_change.published(at_us=now_us())
        self._publisher.look_back()

    def watch_nodes(self) -> None:
        """Record which nodes came and went since the last look."""
        try:
            alive = self._liveness.alive(now_us=now_us())
        except LivenessUnknown:
            return
        for view in self._queries.nodes():
            self._alive("nodes")()
            if view.state in ("joined", "offline") and view.node_id in alive:
                change_node(self._ledger, view.node_id, _go_online)
            elif view.state == "online" and view.node_id not in alive:
                change_node(self._ledger, view.node_id, _go_offline)

    def probe(self) -> None:
        live = [stream.slug for stream in self._queries.streams() if stream.state == "LIVE"]
        self._calm.forget_but(set(live))
        for slug in live:  # not by the clock, or nodes would know when
            if self._stop.wait(self._dice.uniform(0, PROBE_EVERY_S / len(live))):
                return
            self._alive("probes")()
            carriers = self._carriers()
            if carriers and not self._calm.can_wait(slug, carriers, partial(self._prober.viewers, slug)):
                self._prober.probe(slug, at_us=now_us())
                self._calm.checked(slug, carriers)

    def _carriers(self) -> list[Carrier]:
        """The nodes that may be drawn; none when it is not known which are there."""
        try:
            alive = self._liveness.alive(now_us=now_us())
        except LivenessUnknown:
            return []
        return [
            Carrier(view.node_id, alive[view.node_id].url, view.health, view.probes_ok + view.probes_bad)
            for view in self._queries.nodes()
            if view.node_id in alive
        ]


def repeat(
    duty: str,
    seconds: float,
    step: Callable[[], None],
    stop: threading.Event,
    troubles: Troubles,
    heartbeats: Heartbeats,
) -> None:
    """`step` every so many seconds until `stop`; after a failure that waiting does not heal, ever more rarely."""
    pause_s, told = seconds, ""
    while not stop.is_set():
        heartbeats.promise(duty, STEP_S)
        try:
            step()
        except (Unavailable, ReadModelUnavailable) as error:
            if str(error) != told:  # read models that are built anew can take minutes
                outage.symptom(log, "will be tried again", duty=duty, error=str(error))
            told = str(error)
        except TRANSIENT as error:
            log.warning("will be tried again", duty=duty, error=str(error))
        except Exception:
            pause_s = min(max(2 * pause_s, TROUBLED_FIRST_S), TROUBLED_MAX_S)
            log.exception("a duty fails: somebody must look", duty=duty, again_in_s=pause_s)
            troubles.report(duty)
        else:
            pause_s, told = seconds, ""
            troubles.clear(duty)
        heartbeats.promise(duty, pause_s + STEP_S)
        stop.wait(pause_s)


def _go_online(node: Node) -> None:
    node.go_online(at_us=now_us())


def _go_offline(node: Node) -> None:
    node.go_offline(reason="no heartbeat", at_us=now_us())


def main() -> None:
    settings = load_settings()
    configure_logging(json=settings.log_json, level=settings.log_level)
    outage.called("worker")
    worker = Worker(settings)
    gc.freeze()  # what was imported stays: a collection in the midst of a start would look through all of it
    worker.run()
    leave()


if __name__ == "__main__":
    main()
