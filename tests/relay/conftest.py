"""Makes the helpers beside the tests importable (the tests run in import mode `importlib`), and a source to push."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.video.frame import PictureType

sys.path.insert(0, str(Path(__file__).parent))

from relay_rig import Tag, read_flv

from hub.demo.publisher import source as frames

SECONDS, FPS, SAMPLE_RATE = 12, 15, 48_000


@pytest.fixture(scope="session")
def source_flv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s of a test picture with sound, H.264 with B-frames and AAC, a key frame each second."""
    path = tmp_path_factory.mktemp("media") / "source.flv"
    pictures = frames(
        ("testsrc2", f"size=192x108:rate={FPS}:duration={SECONDS}"),
        ("format", "pix_fmts=yuv420p"),
        ("buffersink", ""),
    )
    tones = frames(
        ("sine", f"frequency=440:sample_rate={SAMPLE_RATE}:samples_per_frame=1024:duration={SECONDS}"),
        ("aformat", "sample_fmts=fltp:channel_layouts=stereo"),
        ("abuffersink", ""),
    )
    with av.open(str(path), "w", format="flv") as output:
        video = output.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = 192, 108, "yuv420p"
        video.bit_rate, video.time_base = 150_000, Fraction(1, FPS)
        video.options = {"preset": "ultrafast", "profile": "main", "bf": "2"}
        video.options |= {"g": str(FPS), "keyint_min": str(FPS), "sc_threshold": "0"}
        audio = output.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        audio.bit_rate = 64_000
        for second in range(SECONDS):
            for _ in range(FPS):
                picture = pictures.pull()
                picture.pict_type = (
                    PictureType.NONE
                )  # testsrc2 marks every picture I, which would make each a key
                output.mux(video.encode(picture))
            while (sound := pull(tones)) is not None:
                output.mux(audio.encode(sound))
                if sound.pts >= (second + 1) * SAMPLE_RATE:
                    break
        output.mux(video.encode(None))
        output.mux(audio.encode(None))
    return path


def pull(graph: av.filter.Graph) -> av.AudioFrame | None:
    try:
        return graph.pull()
    except EOFError:
        return None


@pytest.fixture(scope="session")
def source(source_flv: Path) -> list[Tag]:
    return read_flv(source_flv.read_bytes())
