"""A message bus of its own with a logind on it that is small enough to read: the part of the real one that tells of
sleep. It waits with sleep until every delay lock is given back or its patience is over, as the real one does.
"""

import os
import select
import subprocess
import threading
import time
from pathlib import Path

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    message_bus,
    new_error,
    new_method_return,
    new_signal,
)
from jeepney.io.blocking import DBusConnection, prep_socket
from jeepney.wrappers import unwrap_msg

NAME, PATH, MANAGER = "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"
CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/><allow user="*"/>
</policy></busconfig>
"""


class StandInLogind:
    def __init__(self, folder: Path, *, patience_s: float = 5.0, with_logind: bool = True) -> None:
        self.patience_s = patience_s
        self.path = folder / "bus"
        self.address = f"unix:path={self.path}"
        config = folder / "bus.conf"
        config.write_text(CONFIG.format(path=self.path))
        self._daemon = subprocess.Popen(["dbus-daemon", "--nofork", f"--config-file={config}"])
        deadline = time.monotonic() + 10
        while not self.path.exists():
            assert time.monotonic() < deadline, "dbus-daemon does not listen"
            time.sleep(0.01)
        self.asked: list[tuple[str, str, str, str]] = []  # what, who, why, mode
        self._locks: list[int] = []  # our ends of pipes: at their end when the lock was given back
        self._bus: DBusConnection | None = None
        if with_logind:
            self._bus = DBusConnection(prep_socket(str(self.path), enable_fds=True), enable_fds=True)
            assert unwrap_msg(self._bus.send_and_get_reply(message_bus.RequestName(NAME))) == (1,)
            self._sending = threading.Lock()
            self._thread = threading.Thread(target=self._serve)
            self._thread.start()

    def locks(self) -> int:
        """Delay locks that are held just now."""
        for end in self._locks[:]:
            if select.select([end], [], [], 0)[0]:
                self._locks.remove(end)
                os.close(end)
        return len(self._locks)

    def sleep(self) -> float:
        """Say that the computer is about to sleep. Returns, when it may, after how many seconds that was."""
        began = time.monotonic()
        self._tell(True)
        while self.locks() and time.monotonic() < began + self.patience_s:
            time.sleep(0.005)
        return time.monotonic() - began

    def wake(self) -> None:
        self._tell(False)

    def stop_bus(self) -> None:
        self._daemon.kill()
        self._daemon.wait()

    def close(self) -> None:
        self.stop_bus()
        if self._bus is not None:
            self._thread.join()
            self._bus.close()
        for end in self._locks:
            os.close(end)

    def _tell(self, start: bool) -> None:
        emitter = DBusAddress(PATH, interface=MANAGER)
        self._send(new_signal(emitter, "PrepareForSleep", "b", (start,)))

    def _send(self, message: Message) -> None:
        assert self._bus is not None
        with self._sending:
            self._bus.send(message)

    def _serve(self) -> None:
        assert self._bus is not None
        while True:
            try:
                message = self._bus.receive()
            except OSError:  # the bus has closed
                return
            if message.header.message_type is MessageType.method_call:
                self._answer(message)

    def _answer(self, call: Message) -> None:
        member = call.header.fields[HeaderFields.member]
        if member == "Inhibit":
            self.asked.append(call.body)
            ours, theirs = os.pipe()
            self._send(new_method_return(call, "h", (theirs,)))
            os.close(theirs)
            self._locks.append(ours)
        elif member == "Get" and call.body == (MANAGER, "InhibitDelayMaxUSec"):
            self._send(new_method_return(call, "v", (("t", int(self.patience_s * 1_000_000)),)))
        else:
            self._send(new_error(call, "org.freedesktop.DBus.Error.UnknownMethod"))
