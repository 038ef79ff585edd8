"""Small files that are either the old version or the new one, never a half: temporary file, fsync, rename.

Invariant: after a crash at any instruction, `replace_file` has left the complete old bytes or the complete new bytes
under the name, and `create_secret` has never changed a file that was there.
"""

import contextlib
import os
import secrets
import sys
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows has no such call; its renames are journalled."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_temporary(path: Path, data: bytes, mode: int) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Atomically give `path` these bytes. Raises OSError, and then the old file stands."""
    temporary = _write_temporary(path, data, mode)
    temporary.replace(path)
    sync_folder(path.parent)


def create_secret(path: Path, data: bytes) -> bool:
    """Create `path` (0600) with these bytes unless it exists; True when this call created it. Raises OSError."""
    temporary = _write_temporary(path, data, 0o600)
    try:
        os.link(temporary, path)  # unlike rename, refuses to replace an existing file
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    sync_folder(path.parent)
    return True
