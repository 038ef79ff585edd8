"""A whole hub of real processes that a test may break: hub, nodes, publisher, viewers.

Invariant: nothing runs on after `House.close`, and nothing here decides what is right: see fold.py for that.
Start processes from the main thread: they are tied to the life of the thread that starts them.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import psycopg

from api.directory import Directory, Role
from hub.clock import now_us
from hub.demo.cast import STREAMRP2P, Actor, DemoError, free_ports, run_command, wait_for_http
from hub.settings import Settings
from ledger.application import Ledger
from ledger.services.crew import change_settings
from ledger.store.database import connect_pool
from relay.node.spool import SPOOL_FILE
from relay.node.spool_file import recover

SLUG = "main"
EPOCH_S = 3
READY_S = 60.0


@dataclass
class Friend:
    name: str
    friend_id: str
    token: str
    folder: Path
    port: int
    node_id: UUID | None = None
    actor: Actor | None = None

    @property
    def spooled(self) -> int:
        """Receipts on disk that the hub has not answered."""
        return sum(len(recover(p.read_bytes()).receipts) for p in self.folder.rglob(SPOOL_FILE))


@dataclass
class House:
    folder: Path
    epoch_s: int = EPOCH_S
    checkpoint_s: int = 1
    grace_s: int = 15
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rtmp_port, self.http_port = free_ports(2)
        self.base = f"http://127.0.0.1:{self.http_port}"
        self.data_dir = self.folder / "hub"
        self.environment = {
            "STREAMRP2P_DATA_DIR": str(self.data_dir),
            "STREAMRP2P_RTMP_PORT": str(self.rtmp_port),
            "STREAMRP2P_HTTP_PORT": str(self.http_port),
            "STREAMRP2P_HTTP_HOST": "127.0.0.1",
            "STREAMRP2P_RTMP_HOST": "127.0.0.1",
            "STREAMRP2P_PUBLIC_URL": self.base,
            "STREAMRP2P_EPOCH_LENGTH_S": str(self.epoch_s),
            "STREAMRP2P_CHECKPOINT_INTERVAL_S": str(self.checkpoint_s),
            "STREAMRP2P_PUBLISH_GRACE_S": str(self.grace_s),
            **self.extra,
        }
        self.hub: Actor | None = None
        self.token = ""
        self.friends: list[Friend] = []
        self.keys: dict[str, str] = {}  # slug -> stream key
        self._actors: list[Actor] = []

    # --- the hub

    def start_hub(self) -> None:
        """`streamrp2p up`, until it is ready."""
        self.launch_hub()
        assert self.hub is not None
        wait_for_http(f"{self.base}/api/ready", self.hub, READY_S)

    def launch_hub(self) -> None:
        """`streamrp2p up`, without waiting."""
        self.hub = self.start("hub", (*STREAMRP2P, "up"))

    def open(self) -> None:
        """A ready hub, an operator's token, no hold, and a funded stream."""
        self.start_hub()
        with self.ledger() as ledger, connect_pool(self.database_url) as pool:
            change_settings(ledger, {"hold_s": 0, "payout_threshold_micro": 1}, at_us=now_us())
            self.token = Directory(pool).create_token(Role.OPERATOR, None, "test", at_us=now_us())
        deadline = time.monotonic() + READY_S
        while self.ask("GET", f"/api/streams/{SLUG}").status_code != 200:  # the worker has only just started
            assert time.monotonic() < deadline, "the first stream never showed"
            time.sleep(0.1)
        self.keys[SLUG] = str(self.call("POST", f"/api/streams/{SLUG}/key")["stream_key"])
        self.call("POST", f"/api/streams/{SLUG}/tariff", {"rate_micro_per_gb": 5_000_000})
        self.call("POST", f"/api/streams/{SLUG}/budget", {"amount_micro": 50_000_000, "reference": "test"})

    @contextlib.contextmanager
    def ledger(self) -> Iterator[Ledger]:
        ledger = Ledger(self.database_url)
        try:
            yield ledger
        finally:
            ledger.close()

    @property
    def database_url(self) -> str:
        """Of the running hub; the superuser's."""
        return Settings(data_dir=self.data_dir).resolved_database_url()

    @property
    def redis_url(self) -> str:
        return Settings(data_dir=self.data_dir).resolved_redis_url()

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.database_url, autocommit=True)

    def pid_of(self, part: str) -> int | None:
        """The process id of one part of the hub: postgres, valkey, origin or worker."""
        assert self.hub is not None
        for pid in children(self.hub.process.pid):
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                modules = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                if name.partition("-")[0] == part or f"hub.{part}" in modules:
                    return pid
        return None

    def kill(self, part: str) -> bool:
        """kill -9 one part of the hub; False when it is not running just now."""
        pid = self.pid_of(part)
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    # --- people

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, token: str | None = None
    ) -> Any:
        answer = self.ask(method, path, json=body, headers={"Authorization": f"Bearer {token or self.token}"})
        if answer.status_code >= 400:
            raise DemoError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json()

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Any answer, also an error."""
        with httpx2.Client(timeout=15.0, trust_env=False) as http:
            return http.request(method, self.base + path, **options)

    def add_stream(self, slug: str) -> str:
        """A new stream; its key."""
        self.keys[slug] = str(self.call("POST", "/api/streams", {"slug": slug})["stream_key"])
        return self.keys[slug]

    def invite(self, name: str) -> Friend:
        """A friend whose node has joined, and does not run yet."""
        made = self.call("POST", "/api/invites", {"friend_name": name})
        (port,) = free_ports(1)
        friend = Friend(name, made["friend_id"], made["friend_token"], self.folder / name, port)
        joined = run_command(
            *("node", "join", self.base, str(made["code"]), "--name", name, "--json", "--port", str(port)),
            *("--public-url", f"http://127.0.0.1:{port}", "--data-dir", str(friend.folder)),
            environment=self.environment,
        )
        friend.node_id = UUID(json.loads(joined)["node_id"])
        self.friends.append(friend)
        return friend

    def start_node(self, friend: Friend) -> None:
        command = ("node", "run", "--data-dir", str(friend.folder), "--send-interval", "1")
        friend.actor = self.start(friend.name, (*STREAMRP2P, *command))

    def nodes_online(self) -> int:
        return sum(n["state"] == "online" for n in self.call("GET", "/api/nodes")["nodes"])

    def push_url(self, slug: str = SLUG) -> str:
        return f"rtmp://127.0.0.1:{self.rtmp_port}/live/{self.keys[slug]}"

    def publish(self, seconds: int = 600, slug: str = SLUG) -> Actor:
        """A real publisher: moving picture and tone, at the pace of the clock."""
        command = (sys.executable, "-m", "hub.demo.publisher", str(seconds))
        return self.start("publisher", command, {"DEMO_PUSH_URL": self.push_url(slug)})

    def start(self, name: str, command: tuple[str, ...], more: dict[str, str] | None = None) -> Actor:
        actor = Actor.start(name, command, self.folder, {**self.environment, **(more or {})})
        self._actors.append(actor)
        return actor

    def run(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> str:
        """`streamrp2p ...` to its end; its stdout."""
        return run_command(*arguments, environment=self.environment, ok=ok)

    # --- what there is to see

    def state(self, slug: str = SLUG) -> str:
        return str(self.call("GET", f"/api/streams/{slug}")["state"])

    def balances(self) -> dict[str, int]:
        rows = self.call("GET", "/api/balances")["balances"]
        return {row["account"]: row["amount_micro"] for row in rows if row["amount_micro"]}

    def checkpoint_size(self) -> int:
        answer = self.ask("GET", "/log/checkpoint")
        return int(answer.text.splitlines()[1]) if answer.status_code == 200 else 0

    def audit(self, place: str | None = None) -> dict[str, Any]:
        """The report of `streamrp2p audit`, with its exit code as `exit`."""
        done = subprocess.run(
            [*STREAMRP2P, "audit", place or f"{self.base}/log", "--json"],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        report: dict[str, Any] = (
            json.loads(done.stdout) if done.stdout.startswith("{") else {"error": done.stderr}
        )
        return {**report, "exit": done.returncode}

    def read_models(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of all read models, sorted, with the positions they are at."""
        with self.connect() as connection:
            names = [
                row[0]
                for row in connection.execute(
                    "SELECT tablename FROM pg_tables WHERE schemaname = 'crew_main' AND tablename LIKE 'read\\_%'"
                )
            ]
            rows = {n: connection.execute(f"SELECT * FROM crew_main.{n}").fetchall() for n in names}
        return {n: sorted(found, key=repr) for n, found in rows.items()}

    def log_text(self, name: str = "hub") -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        for actor in reversed(self._actors):
            actor.stop()


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[1]) == pid and after_name[0] != "Z":
                found.append(int(entry.name))
    return found


async def until(check: Callable[[], Any], timeout_s: float, what: str, *, every_s: float = 0.2) -> float:
    """Wait until `check` is true (errors of a hub that is away count as false). Seconds it took."""
    began = time.monotonic()
    last: Exception | None = None
    while time.monotonic() - began < timeout_s:
        try:
            found = await asyncio.to_thread(check)
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return time.monotonic() - began
        except (DemoError, httpx2.HTTPError, psycopg.Error, OSError) as error:
            last = error
        await asyncio.sleep(every_s)
    raise AssertionError(f"not within {timeout_s:g} s: {what} (last error: {last})")
