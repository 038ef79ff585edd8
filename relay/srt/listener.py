"""The ffmpeg that listens on one SRT port: how it is started, and what can be understood of what it says.

Invariant: what strangers send is read by this process alone. It knows one format (no playlist can make it open files or
addresses), gets nothing of our environment, and may use so much memory and write no file.
"""

import asyncio
import contextlib
import os
import re
import resource
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

LIMITS: Final = (
    (resource.RLIMIT_AS, 2 << 30),  # it takes 0.55 GiB of addresses, of which 64 MiB are memory
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_NOFILE, 64),
    (resource.RLIMIT_CORE, 0),
)
PIPE_BYTES: Final = 64 << 10  # asyncio stops reading a pipe at twice this; then ffmpeg waits
FIND_TIMEOUT_S: Final = 10.0
# Without the first two it looks on for streams and frame rates, and begins after 4 s in place of 0.3.
_PROBING: Final = {"scan_all_pmts": "0", "fpsprobesize": "0", "analyzeduration": "3000000"}
KEPT_COMPLAINTS: Final = 3
COMPLAINT_CHARS: Final = 160
_STREAM_ID = re.compile(r"^\[srt @ [^]]*\] \[verbose\] accept streamid \[(.*)\], length \d+$")
_STREAM = re.compile(r"\[info\] +Stream #0:.*?: (Video|Audio): (\w+)")
_COMPLAINT = re.compile(r"\[(?:error|fatal)\] (.+)$")


@dataclass(frozen=True, slots=True)
class Listener:
    """Where an ffmpeg is to listen. `passphrase`: 10 to 64 letters, digits, - and _, or none."""

    ffmpeg: str
    host: str
    port: int
    passphrase: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"srt://[{self.host}]:{self.port}" if ":" in self.host else f"srt://{self.host}:{self.port}"

    @property
    def script(self) -> bytes:
        """What goes to its stdin. Every account of the machine can read a command line, but not a pipe."""
        if self.passphrase is None:
            return b""
        options = {"mode": "listener", "passphrase": self.passphrase, "enforced_encryption": "1", **_PROBING}
        lines = [f"file '{self.address}'", *(f"option {name} {value}" for name, value in options.items())]
        return "\n".join(["ffconcat version 1.0", *lines, ""]).encode()


def command(listener: Listener) -> list[str]:
    """One caller, then it ends. Pictures and sound are copied, not coded anew."""
    if listener.passphrase is None:
        probing = [word for name, value in _PROBING.items() for word in (f"-{name}", value)]
        source = [*probing, "-f", "mpegts", "-i", f"{listener.address}?mode=listener"]
    else:
        source = ["-format_whitelist", "concat,mpegts", "-safe", "0", "-f", "concat", "-i", "pipe:0"]
    return [
        listener.ffmpeg, "-hide_banner", "-nostdin", "-nostats",
        "-loglevel", "level+verbose",  # fewer words have no stream id
        "-protocol_whitelist", "srt,udp,pipe", "-threads", "1", *source,
        "-map", "0:v:0?", "-map", "0:a:0?", "-c", "copy",
        "-f", "flv", "-flvflags", "no_duration_filesize", "-flush_packets", "1", "pipe:1",
    ]  # fmt: skip


async def find_ffmpeg() -> str:
    """The program. Raises OSError when there is none that can do this, with words for the operator."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise FileNotFoundError("no program ffmpeg is found")
    process = await _spawn([ffmpeg, "-loglevel", "quiet", "-protocols"], asyncio.subprocess.DEVNULL, None)
    try:
        async with asyncio.timeout(FIND_TIMEOUT_S):
            out, _ = await process.communicate()
    except TimeoutError:
        raise OSError(f"{ffmpeg} does not answer") from None
    finally:
        await end(process)
    if b"srt" not in out.split():
        raise OSError(f"{ffmpeg} was built without SRT")
    return ffmpeg


async def listen(listener: Listener, prepare: Callable[[], None] | None) -> asyncio.subprocess.Process:
    """`prepare` runs in the child before the program does. Raises OSError, or SubprocessError when `prepare` fails."""

    def confine() -> None:
        for what, most in LIMITS:
            resource.setrlimit(what, (most, most))
        if prepare is not None:
            prepare()

    process = await _spawn(command(listener), asyncio.subprocess.PIPE, confine, asyncio.subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(listener.script)
    process.stdin.close()
    return process


async def _spawn(
    argv: list[str],
    stderr: int,
    preexec: Callable[[], None] | None,
    stdin: int = asyncio.subprocess.DEVNULL,
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
        limit=PIPE_BYTES,
        cwd="/",
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"},
        start_new_session=True,  # Ctrl-C in the terminal is the supervisor's to handle
        preexec_fn=preexec,
    )


def kill(process: asyncio.subprocess.Process) -> None:
    """Harmless when it has ended already."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill it if it lives, and wait until it is gone. Nobody else may be reading its output."""
    kill(process)
    if process.stdout is not None:
        while await process.stdout.read(PIPE_BYTES):  # what is unread would keep the pipe open
            pass
    await process.wait()


class Said:
    """What ffmpeg wrote to its stderr. The stream id is a secret: it is in `stream_id` and in no complaint."""

    def __init__(self) -> None:
        self.stream_id: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._codecs: dict[str, str] = {}
        self._complaints: deque[str] = deque(maxlen=KEPT_COMPLAINTS)

    async def follow(self, stderr: asyncio.StreamReader) -> None:
        """Until its end. `stream_id` is None when there was none by then."""
        while True:
            try:
                line = await stderr.readline()
            except ValueError:  # no line of ffmpeg's is so long
                continue
            if not line:
                break
            self.take(line.decode("utf-8", "replace").rstrip("\r\n"))
        if not self.stream_id.done():
            self.stream_id.set_result(None)

    def take(self, line: str) -> None:
        if found := _STREAM_ID.match(line):
            if not self.stream_id.done():
                self.stream_id.set_result(found[1])
        elif found := _STREAM.search(line):
            self._codecs.setdefault(found[1], found[2])
        elif found := _COMPLAINT.search(line):
            self._complaints.append(found[1])

    @property
    def unsupported(self) -> str | None:
        """Words for a codec that does not go into FLV, so that ffmpeg gave up before the first frame."""
        for kind, codec, name in (("Video", "h264", "H.264"), ("Audio", "aac", "AAC")):
            if self._codecs.get(kind, codec) != codec:
                return f"the {kind.lower()} is {self._codecs[kind]}; set the encoder to {name}"
        return None

    @property
    def complaints(self) -> str:
        key = self.stream_id.result() if self.stream_id.done() else None
        texts = (text.replace(key, "***") if key else text for text in self._complaints)
        return "; ".join(text[:COMPLAINT_CHARS] for text in texts)
