"""Hear from systemd-logind that this computer is about to sleep, and that it is awake again (Linux).

Invariant: logind waits for `going`, as long as it waits for anybody (InhibitDelayMaxSec, 5 s where nobody changed it);
the lock is given back when that has returned, failed or taken too long, so a node never keeps a computer awake.
Where there is no logind (a container, another init), nothing happens.

The interface: https://www.freedesktop.org/wiki/Software/systemd/inhibit/, "delay" locks and PrepareForSleep.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

log = structlog.get_logger()

MARGIN_S: Final = 0.5  # of logind's patience left to it
RETRY_S: Final = 30.0  # after the bus has closed
ANSWER_S: Final = 5.0
_NAME, _PATH, _MANAGER = "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"


async def watch_sleep(
    going: Callable[[float], Awaitable[None]], awake: Callable[[], Awaitable[None]]
) -> None:
    """Until it is cancelled. `going` is given the seconds it has."""
    try:
        from jeepney import DBusErrorResponse
    except ImportError:  # not Linux
        return
    # ValueError: an address that is none, or a bus that lets this account not in.
    absent = (OSError, ValueError, KeyError, RuntimeError, DBusErrorResponse)
    heard = False
    while True:
        try:
            logind = await asyncio.to_thread(_Logind)
            try:
                await asyncio.to_thread(logind.lock)
                heard = True
                await _listen(logind, going, awake)
            finally:
                logind.close()
        except absent as e:
            if not heard:
                log.info(
                    "viewers are not told when this computer goes to sleep: no systemd-logind here",
                    why=str(e),
                )
                return
            log.debug("logind is away", why=str(e))
        await asyncio.sleep(RETRY_S)


async def _listen(
    logind: "_Logind", going: Callable[[float], Awaitable[None]], awake: Callable[[], Awaitable[None]]
) -> None:
    while True:
        if await logind.sleeps():
            try:
                async with asyncio.timeout(logind.patience_s - MARGIN_S / 2):
                    await going(logind.patience_s - MARGIN_S)
            except Exception as e:  # the computer sleeps all the same
                log.warning("not ready for sleep", error=repr(e))
            finally:
                logind.unlock()
        else:
            await awake()
            await asyncio.to_thread(logind.lock)


class _Logind:
    """One connection to the system's bus. The constructor and `lock` wait for answers: call them in a thread."""

    def __init__(self) -> None:
        from jeepney import DBusAddress, MatchRule, message_bus
        from jeepney.io.blocking import open_dbus_connection

        self._connection = open_dbus_connection("SYSTEM", enable_fds=True)
        try:
            self._manager = DBusAddress(_PATH, bus_name=_NAME, interface=_MANAGER)
            rule = MatchRule(
                type="signal", sender=_NAME, path=_PATH, interface=_MANAGER, member="PrepareForSleep"
            )
            # The bus puts the sender's unique name in place of the well-known one: not for our own filter to compare.
            mine = MatchRule(type="signal", path=_PATH, interface=_MANAGER, member="PrepareForSleep")
            self._told: deque[Any] = deque()
            self._connection.filter(mine, queue=self._told)
            self._call(message_bus.AddMatch(rule))
            self.patience_s = self._patience_s()
        except BaseException:
            self._connection.close()
            raise
        self._lock: Any = None

    def _call(self, message: Any) -> Any:
        from jeepney.wrappers import unwrap_msg

        return unwrap_msg(self._connection.send_and_get_reply(message, timeout=ANSWER_S))

    def _patience_s(self) -> float:
        from jeepney import Properties

        _, max_us = self._call(Properties(self._manager).get("InhibitDelayMaxUSec"))[0]
        return float(max_us / 1_000_000)

    def lock(self) -> None:
        """Ask logind to wait for us next time."""
        from jeepney import new_method_call

        asked = ("sleep", "StreamrP2P", "Hands viewers over to other nodes", "delay")
        (self._lock,) = self._call(new_method_call(self._manager, "Inhibit", "ssss", asked))

    def unlock(self) -> None:
        """Now the computer may sleep."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def sleeps(self) -> bool:
        """Wait for the next word: true before sleep, false after it. Raises OSError when the bus is gone."""
        while not self._told:
            await _readable(self._connection.sock)
            try:
                self._connection.recv_messages(timeout=0)
            except TimeoutError:  # a part of a message
                continue
        return bool(self._told.popleft().body[0])

    def close(self) -> None:
        self.unlock()
        self._connection.close()


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, tell)
    try:
        await ready
    finally:
        loop.remove_reader(sock)
