"""Hosts in network namespaces of their own, joined by a line that loses, delays and reorders packets.

The line is a program of ours (`python lines.py ...`) that carries IP packets between TUN devices, because not every
kernel has netem. Needs root. Invariant: nothing of it is left after `Lines.close`.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hub.embedded.account import die_with_parent

TUN: Final = Path("/dev/net/tun")
MTU: Final = 1_500
_TUNSETIFF: Final = 0x400454CA
_TUN_WITHOUT_HEADER: Final = 0x1001
_CLONE_NEWNET: Final = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Weather:
    loss: float = 0.0  # share of packets
    delay_ms: float = 0.0  # one way
    jitter_ms: float = 0.0
    reorder: float = 0.0  # share of packets that overtake the others

    def delay_s(self, dice: random.Random) -> float | None:
        """None: lost."""
        if dice.random() < self.loss:
            return None
        if dice.random() < self.reorder:
            return 0.0
        return (self.delay_ms + dice.uniform(-self.jitter_ms, self.jitter_ms)) / 1_000


class Lines:
    """This process's network namespace is the first host, 10.99.0.1; `host(n)` makes 10.99.n.1."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._router: subprocess.Popen[bytes] | None = None
        _run("ip", "link", "set", "lo", "up")
        self._devices = {0: _open_tun("line0")}
        _configure((), 0)

    def host(self, number: int) -> tuple[str, ...]:
        """What to put before a command that is to run there."""
        name = f"streamrp2p-{os.getpid()}-{number}"
        _run("ip", "netns", "add", name)
        self._names.append(name)
        with _inside(name):
            self._devices[number] = _open_tun("line0")
        prefix = ("ip", "netns", "exec", name)
        _run(*prefix, "ip", "link", "set", "lo", "up")
        _configure(prefix, number)
        return prefix

    def open(self, weather: Weather, seed: int) -> None:
        arguments = [
            str(x) for x in (weather.loss, weather.delay_ms, weather.jitter_ms, weather.reorder, seed)
        ]
        devices = [f"{number}:{fd}" for number, fd in self._devices.items()]
        self._router = subprocess.Popen(
            [sys.executable, __file__, *arguments, *devices],
            pass_fds=tuple(self._devices.values()),
            preexec_fn=die_with_parent(signal.SIGKILL),
        )

    def close(self) -> None:
        if self._router is not None:
            self._router.kill()
            self._router.wait()
        for fd in self._devices.values():
            os.close(fd)
        for name in self._names:
            _run("ip", "netns", "del", name)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _configure(prefix: tuple[str, ...], number: int) -> None:
    _run(*prefix, "ip", "addr", "add", f"10.99.{number}.1/16", "dev", "line0")
    _run(*prefix, "ip", "link", "set", "line0", "up", "mtu", str(MTU))


def _open_tun(name: str) -> int:
    fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN_WITHOUT_HEADER))
    return fd


class _inside:
    """The calling thread is in another network namespace meanwhile."""

    def __init__(self, name: str) -> None:
        self._there = f"/run/netns/{name}"

    def __enter__(self) -> None:
        self._here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(self._there, os.O_RDONLY)
        _enter(there)
        os.close(there)

    def __exit__(self, *_: object) -> None:
        _enter(self._here)
        os.close(self._here)


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def carry(weather: Weather, seed: int, devices: dict[int, int]) -> None:
    """Carry packets until killed."""
    dice = random.Random(seed)
    on_the_way: list[tuple[float, int, int, bytes]] = []  # when, a tie-breaker, whereto, the packet
    count = 0
    while True:
        now = time.monotonic()
        while on_the_way and on_the_way[0][0] <= now:
            _, _, target, packet = heapq.heappop(on_the_way)
            try:
                os.write(devices[target], packet)
            except OSError:
                continue  # its queue is full: lost as well
        wait_s = max(on_the_way[0][0] - now, 0) if on_the_way else None
        for fd in select.select(list(devices.values()), (), (), wait_s)[0]:
            for packet in _read_all(fd):
                target = packet[18] if packet[0] >> 4 == 4 else -1  # 10.99.HOST.1
                delay_s = weather.delay_s(dice)
                if target in devices and delay_s is not None:
                    count += 1
                    heapq.heappush(on_the_way, (time.monotonic() + delay_s, count, target, packet))


def _read_all(fd: int) -> Iterator[bytes]:
    for _ in range(64):
        try:
            yield os.read(fd, MTU + 100)
        except BlockingIOError:
            return


def main() -> None:
    loss, delay_ms, jitter_ms, reorder, seed, *devices = sys.argv[1:]
    weather = Weather(float(loss), float(delay_ms), float(jitter_ms), float(reorder))
    carry(weather, int(seed), {int(n): int(fd) for n, _, fd in (d.partition(":") for d in devices)})


if __name__ == "__main__":
    main()
