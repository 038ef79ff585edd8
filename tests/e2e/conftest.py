"""A whole hub for each test module, in a folder that the embedded servers' account can reach."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from house import House


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Short, so that sockets fit, and open to be walked through. Kept when a test of the module failed."""
    path = Path(tempfile.mkdtemp(prefix="sp2p-e2e-"))
    path.chmod(0o711)
    failed_before = request.session.testsfailed
    yield path
    if request.session.testsfailed == failed_before:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[House]:
    """A real hub with an operator and a funded stream `main`; nobody publishes, no node runs."""
    house = House(folder)
    try:
        house.open()
        yield house
    finally:
        house.close()
