"""Files of a published log: written whole or not at all, durable when the call returns.

Invariant: under its final name a file only ever has its whole content, also after a crash at any instruction.
"""

import os
import shutil
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".tmp"


def write_atomic(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, rename over, flush the folder."""
    make_folder(path.parent)
    temporary = path.with_name(path.name + TEMPORARY)
    with open(temporary, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


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
