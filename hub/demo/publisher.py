"""A creator without OBS: PyAV makes a moving picture with a tone and pushes it over RTMP, at the pace of the clock.

    python -m hub.demo.publisher rtmp://127.0.0.1:1935/live/KEY SECONDS

The URL is read from the environment variable DEMO_PUSH_URL when it is not given: a key does not belong in a process
list. Invariant: it ends with exit code 0 after SECONDS, or at SIGTERM, with a clean end of the stream.
"""

import itertools
import os
import signal
import sys
import threading
import time
from fractions import Fraction
from typing import Final

import av
from av.video.frame import PictureType

WIDTH: Final = 640
HEIGHT: Final = 360
FPS: Final = 25
KEYFRAME_S: Final = 2
VIDEO_BIT_RATE: Final = 1_200_000
SAMPLE_RATE: Final = 48_000
AUDIO_FRAME: Final = 1024
TONE_HZ: Final = 440


def source(*filters: tuple[str, str]) -> av.filter.Graph:
    """A graph that makes frames out of nothing: each (filter, arguments) feeds the next."""
    graph = av.filter.Graph()
    nodes = [graph.add(name, arguments) for name, arguments in filters]
    for first, second in itertools.pairwise(nodes):
        first.link_to(second)
    graph.configure()
    return graph


def push(url: str, seconds: int, stop: threading.Event) -> None:
    with av.open(url, "w", format="flv") as output:
        video = output.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.bit_rate = VIDEO_BIT_RATE
        video.time_base = Fraction(1, FPS)
        video.options = {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "g": str(FPS * KEYFRAME_S),
            "sc_threshold": "0",
        }
        audio = output.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 96_000
        pictures = source(
            ("testsrc2", f"size={WIDTH}x{HEIGHT}:rate={FPS}"),
            ("format", "pix_fmts=yuv420p"),
            ("buffersink", ""),
        )
        tones = source(
            ("sine", f"frequency={TONE_HZ}:sample_rate={SAMPLE_RATE}:samples_per_frame={AUDIO_FRAME}"),
            ("aformat", "sample_fmts=fltp"),
            ("abuffersink", ""),
        )
        started = time.monotonic()
        samples = 0
        for number in range(seconds * FPS):
            if stop.wait(max(0.0, started + number / FPS - time.monotonic())):
                break
            frame = pictures.pull()
            assert isinstance(frame, av.VideoFrame)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            # testsrc2 marks every picture I, which would make each a key frame.
            frame.pict_type = PictureType.NONE
            output.mux(video.encode(frame))
            while samples / SAMPLE_RATE <= number / FPS:
                sound = tones.pull()
                assert isinstance(sound, av.AudioFrame)
                sound.pts, sound.time_base = samples, Fraction(1, SAMPLE_RATE)
                output.mux(audio.encode(sound))
                samples += AUDIO_FRAME
        output.mux(video.encode(None))
        output.mux(audio.encode(None))


def main() -> None:
    url = os.environ.get("DEMO_PUSH_URL") or sys.argv[1]
    seconds = int(sys.argv[-1])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    push(url, seconds, stop)


if __name__ == "__main__":
    main()
