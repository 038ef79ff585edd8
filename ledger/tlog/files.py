"""Files of a published log: written whole or not at all, durable when the call returns.

Invariant: under its final name a file only ever has its whole content, also after a crash at any instruction.
"""

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".tmp"
_FLUSHES: Final = 8  # at once: a file system commits what waits together


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, rename over, flush the folder."""
    make_folder(path.parent)
    temporary = path.with_name(path.name + TEMPORARY)
    _write_durably(temporary, data)
    temporary.replace(path)
    sync_folder(path.parent)


def write_all(files: Mapping[Path, bytes], staging: Path) -> None:
    """As `write_atomic` for each, in no order, with flushes that run side by side.

    Files are made in `staging`, a folder for this alone on the same file system: all that a crash leaves half written
    is there.
    """
    if not files:
        return
    folders = {path.parent for path in files}
    for folder in (staging, *folders):
        make_folder(folder)
    temporaries = [staging / str(n) for n in range(len(files))]
    with ThreadPoolExecutor(_FLUSHES) as pool:
        list(pool.map(_write_durably, temporaries, files.values()))
    for temporary, path in zip(temporaries, files, strict=True):
        temporary.replace(path)
    for folder in folders:
        sync_folder(folder)


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def make_folder(folder: Path) -> None:
    """Like mkdir -p, with each new name flushed to disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in `folder` durable. Windows has no such call: there a rename is durable on its own time."""
    directory: int | None = getattr(os, "O_DIRECTORY", None)
    if directory is None:
        return
    fd = os.open(folder, os.O_RDONLY | directory)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(folder: Path) -> None:
    shutil.rmtree(folder)
    sync_folder(folder.parent)
