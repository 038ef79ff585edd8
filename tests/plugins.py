"""Tests that drive another program are skipped, with the reason, where that program is not installed. Hypothesis has
no deadlines: a shared machine's pauses are not failures (pytest-timeout bounds each test)."""

import shutil

import pytest
from hypothesis import HealthCheck, settings

PROGRAMS = {
    "browser": ("chromium",),
    "vlc": ("cvlc",),
    "ffmpeg": ("ffmpeg", "ffprobe"),
    "obs": ("obs",),
}

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        marker: absent
        for marker, programs in PROGRAMS.items()
        if (absent := [program for program in programs if shutil.which(program) is None])
    }
    for item in items:
        for marker, absent in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(absent)}"))
