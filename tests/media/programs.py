"""Encoders and players as people have them, without a screen. Each is ended with the test that started it."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hub.embedded.account import die_with_parent

SOUND = ("-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000")
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", "-sc_threshold", "0")
RETRY_S = 0.3


def picture(size: str, rate: str) -> tuple[str, ...]:
    return ("-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}")


def encode(path: Path, seconds: float, *arguments: str) -> Path:
    """An FLV file made by ffmpeg; once."""
    if not path.exists():
        subprocess.run(
            ["ffmpeg", "-v", "error", "-y", *arguments, "-t", str(seconds), path], check=True, timeout=60
        )
    return path


def plain_source(folder: Path) -> Path:
    """What most people send: 30 frames a second, B-frames, a key frame every 2 s, stereo."""
    sound = ("-c:a", "aac", "-b:a", "128k", "-ac", "2")
    settings = (*H264, "-g", "60", "-bf", "2", "-b:v", "800k", *sound)
    return encode(folder / "plain.flv", 8, *picture("640x360", "30"), *SOUND, *settings)


@contextlib.contextmanager
def running(command: list[str], log: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),
            **options,  # type: ignore[call-overload]
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def pushing(source: Path, url: str, log: Path) -> Iterator[None]:
    """ffmpeg sends the file over and over, in real time; like OBS, it comes back when the hub breaks off."""
    send = f'ffmpeg -v error -re -stream_loop -1 -i "{source}" -c copy -f flv "{url}"'
    script = f"trap 'kill $P 2>/dev/null; wait; exit' TERM; while :; do {send} & P=$!; wait $P; sleep {RETRY_S}; done"
    with running(["bash", "-c", script], log):
        yield


def longest_gap_s(displayed: Callable[[], int], seconds: float) -> float:
    """Watch for `seconds`: for how long at most no new frame was shown."""
    end = time.monotonic() + seconds
    last, since, gap = displayed(), time.monotonic(), 0.0
    while (now := time.monotonic()) < end:
        shown = displayed()
        if shown > last:
            gap, last, since = max(gap, now - since), shown, now
        time.sleep(0.1)
    return max(gap, time.monotonic() - since)


@dataclass
class GStreamer:
    """The real GStreamer; its sinks show nothing in the rhythm of the clock, and say a line for each frame."""

    process: subprocess.Popen[bytes]
    log: Path

    def displayed(self) -> int:
        return self.log.read_bytes().count(b"picture: last-message = chain")

    def said(self, words: str) -> bool:
        return words in self.log.read_text(errors="replace")


@contextlib.contextmanager
def gstreamer(player: str, url: str, log: Path) -> Iterator[GStreamer]:
    """`player`: playbin3, or the older playbin."""
    sinks = ["video-sink=fakesink name=picture sync=true silent=false", "audio-sink=fakesink sync=true"]
    with running(["gst-launch-1.0", "-v", player, f"uri={url}", *sinks], log) as process:
        yield GStreamer(process, log)


@dataclass
class Vlc:
    """The real VLC, asked for its counters over its own socket."""

    process: subprocess.Popen[bytes]
    home: Path

    def counters(self) -> dict[str, int]:
        """`displayed`, `lost`, `decoded` (frames), `audio`; empty while VLC does not answer."""
        answer = b""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as rc:
            rc.settimeout(1)
            rc.connect(str(self.home / "rc"))
            rc.sendall(b"stats\n")
            while b"end of statistical" not in answer and (some := rc.recv(65_536)):
                answer += some
        names = {
            "displayed": b"frames displayed",
            "lost": b"frames lost",
            "decoded": b"video decoded",
            "audio": b"audio decoded",
        }
        found = {name: re.search(words + rb" *: *(\d+)", answer) for name, words in names.items()}
        return {name: int(match[1]) for name, match in found.items() if match}

    def displayed(self) -> int:
        return self.counters().get("displayed", 0)

    def longest_gap_s(self, seconds: float) -> float:
        return longest_gap_s(self.displayed, seconds)


@contextlib.contextmanager
def vlc(url: str, home: Path) -> Iterator[Vlc]:
    home.mkdir()
    home.chmod(0o777)
    command = ["cvlc", "--intf", "oldrc", "--rc-unix", str(home / "rc"), "--rc-fake-tty", "--play-and-exit"]
    command += ["--vout", "dummy", "--aout", "dummy", "--network-caching", "1000", "--stats", url]
    if os.geteuid() == 0:  # VLC refuses root
        command = ["runuser", "-u", "nobody", "--", "env", f"HOME={home}", *command]
    with running(command, home.with_suffix(".log")) as process:
        yield Vlc(process, home)


OBS_BASIC = """[General]
Name=Test
[Video]
BaseCX=320
BaseCY=180
OutputCX=320
OutputCY=180
FPSCommon=30
[Output]
Mode=Simple
Reconnect=true
RetryDelay=1
MaxRetries=25
[SimpleOutput]
StreamEncoder=x264
VBitrate=500
ABitrate=128
UseAdvanced=true
Preset=ultrafast
x264Settings=keyint=60
"""
OBS_GLOBAL = """[General]
FirstRun=true
LastVersion=486539266
EnableAutoUpdates=false
[Basic]
Profile=Test
ProfileDir=Test
SceneCollection=Test
SceneCollectionFile=Test
"""
OBS_SCENE = """{"name": "Test", "current_scene": "Main", "current_program_scene": "Main",
"scene_order": [{"name": "Main"}], "sources": [
{"id": "color_source", "versioned_id": "color_source_v3", "name": "colour", "settings": {"width": 320, "height": 180}},
{"id": "scene", "name": "Main", "settings": {"items": [{"name": "colour", "id": 1, "visible": true}]}}]}
"""


@contextlib.contextmanager
def obs(server: str, key: str, home: Path) -> Iterator[Path]:
    """The real OBS Studio, streaming at once to what was typed into its two fields. Yields its log."""
    config = home / ".config" / "obs-studio"
    profile = config / "basic" / "profiles" / "Test"
    scenes = config / "basic" / "scenes"
    run = home / "run"
    for made in (profile, scenes, run):
        made.mkdir(parents=True)
    run.chmod(0o700)
    (config / "global.ini").write_text(OBS_GLOBAL)
    (profile / "basic.ini").write_text(OBS_BASIC)
    (profile / "streamEncoder.json").write_text('{"keyint_sec": 2}')
    (profile / "service.json").write_text(
        f'{{"type": "rtmp_custom", "settings": {{"server": "{server}", "key": "{key}", "use_auth": false}}}}'
    )
    (scenes / "Test.json").write_text(OBS_SCENE)
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}
    environment |= {"XDG_RUNTIME_DIR": str(run), "LIBGL_ALWAYS_SOFTWARE": "1", "QT_QPA_PLATFORM": "xcb"}
    read, write = os.pipe()
    screen = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1024x768x24", "-nolisten", "tcp"]
    log = home / "obs.log"
    with running(screen, home / "xvfb.log", pass_fds=(write,)):
        os.close(write)
        with os.fdopen(read) as display:
            environment["DISPLAY"] = f":{display.readline().strip()}"
        command = [
            "obs",
            "--multi",
            "--minimize-to-tray",
            "--disable-updater",
            "--disable-missing-files-check",
        ]
        command += ["--profile", "Test", "--collection", "Test", "--startstreaming"]
        with running(command, log, env=environment):
            yield log
