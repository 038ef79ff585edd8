"""Makes the helpers beside the tests importable (the tests run in import mode `importlib`), and a source to push."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from relay_rig import Tag, read_flv


@pytest.fixture(scope="session")
def source_flv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s of a test picture with sound, H.264 with B-frames and AAC, a key frame each second."""
    path = tmp_path_factory.mktemp("media") / "source.flv"
    command = (
        "ffmpeg -v error -y -f lavfi -i testsrc2=size=192x108:rate=15 -f lavfi -i sine=frequency=440:sample_rate=48000"
        " -t 12 -c:v libx264 -preset ultrafast -bf 2 -profile:v main -pix_fmt yuv420p -b:v 150k -g 15 -keyint_min 15"
        f" -sc_threshold 0 -c:a aac -b:a 64k -ac 2 {path}"
    )
    subprocess.run(command.split(), check=True)
    return path


@pytest.fixture(scope="session")
def source(source_flv: Path) -> list[Tag]:
    return read_flv(source_flv.read_bytes())
