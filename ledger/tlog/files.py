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
    _write_temporary(path, data)
    _temporary(path).replace(path)
    sync_folder(path.parent)


def write_all(files: Mapping[Path, bytes]) -> None:
    """As `write_atomic` for each, in no order, with flushes that run side by side."""
    if not files:
        return
    folders = {path.parent for path in files}
    for folder in folders:
        make_folder(folder)
    with ThreadPoolExecutor(_FLUSHES) as pool:
        list(pool.map(_write_temporary, files.keys(), files.values()))
    for path in files:
        _temporary(path).replace(path)
    for folder in folders:
        sync_folder(folder)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY)


def _write_temporary(path: Path, data: bytes) -> None:
    with open(_temporary(path), "wb") as f:
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


def sweep_temporaries(folder: Path) -> None:
    """Remove what a crash left half written."""
    for leftover in folder.rglob("*" + TEMPORARY):
        leftover.unlink()
