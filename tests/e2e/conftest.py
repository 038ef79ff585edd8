"""Whole hubs to break, in folders that the embedded servers' account can reach, and media to push."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "relay")]

from house import House  # noqa: E402
from relay_rig import Tag, read_flv  # noqa: E402


@contextmanager
def kept_when_failed(session: pytest.Session) -> Iterator[Path]:
    """A folder with a short name, so that sockets fit; its logs are kept when a test fails meanwhile."""
    path = Path(tempfile.mkdtemp(prefix="sp2p-e2e-"))
    path.chmod(0o711)
    failed_before = session.testsfailed
    yield path
    if session.testsfailed == failed_before:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    with kept_when_failed(request.session) as path:
        yield path


@pytest.fixture(scope="module")
def hub(request: pytest.FixtureRequest) -> Iterator[House]:
    """A real hub with an operator and a funded stream `main`; nobody publishes, no node runs."""
    with kept_when_failed(request.session) as path:
        house = House(path, grace_s=3)
        try:
            house.open()
            yield house
        finally:
            house.close()


@pytest.fixture(scope="session")
def source_flv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s of a test picture with sound, H.264 and AAC, a key frame each second."""
    path = tmp_path_factory.mktemp("media") / "source.flv"
    command = (
        "ffmpeg -v error -y -f lavfi -i testsrc2=size=192x108:rate=15 -f lavfi -i sine=frequency=440:sample_rate=48000"
        " -t 12 -c:v libx264 -preset ultrafast -pix_fmt yuv420p -b:v 150k -g 15 -keyint_min 15"
        f" -sc_threshold 0 -c:a aac -b:a 64k -ac 2 {path}"
    )
    subprocess.run(command.split(), check=True)
    return path


@pytest.fixture(scope="session")
def source(source_flv: Path) -> list[Tag]:
    return read_flv(source_flv.read_bytes())
