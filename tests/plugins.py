"""Tests that drive another program are skipped, with the reason, where something of it is not installed. Hypothesis has
no deadlines: a shared machine's pauses are not failures (pytest-timeout bounds each test). Tests of one file run in
one process, in their order."""

import ctypes
import shutil

import pytest
from hypothesis import HealthCheck, settings

PROGRAMS = {
    "browser": ("chromium",),
    "vlc": ("cvlc",),
    "ffmpeg": ("ffmpeg", "ffprobe"),
    "obs": ("obs",),
    "gstreamer": ("gst-launch-1.0",),
    "dbus": ("dbus-daemon",),
}
LIBRARIES = {"browser": ("libatomic.so.1",)}  # of the Node that Playwright brings along

IN_ONE_PROCESS = ("media",)  # folders whose session fixtures cost most of a minute

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # Several processes (`-n`, xdist) share the files, so that what a module opens is opened once.
        folder, file = item.path.parent.name, item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(folder if folder in IN_ONE_PROCESS else file))
    missing = {
        marker: [program for program in programs if shutil.which(program) is None]
        + [name for name in LIBRARIES.get(marker, ()) if not has_library(name)]
        for marker, programs in PROGRAMS.items()
    }
    for item in items:
        for marker, absent in missing.items():
            if absent and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(absent)}"))
