"""A real hub with two friends' nodes, for real encoders and players."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from house import House


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Short, so that sockets fit, and open to the accounts of the embedded servers and of VLC."""
    path = Path(tempfile.mkdtemp(prefix="sp2p-media-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def hub(folder: Path) -> Iterator[House]:
    """The hub with the nodes of Berta and Carl; nobody publishes."""
    house = House(folder, grace_s=60)  # an origin that starts on a busy machine is no pause of the encoder's
    try:
        house.open()
        for name in ("Berta", "Carl"):
            house.start_node(house.invite(name))
        yield house
    finally:
        house.close()
