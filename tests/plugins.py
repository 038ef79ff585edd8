"""Tests that drive another program are skipped, with the reason, where that program is not installed."""

import shutil

import pytest

PROGRAMS = {
    "browser": ("chromium",),
    "vlc": ("cvlc",),
    "ffmpeg": ("ffmpeg", "ffprobe"),
    "obs": ("obs",),
}


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
