"""The index of the log by name into the machine's file cache, once after a start of the hub.

An append under a random name (a ticket's) touches a page of it somewhere, and so does a look for a ticket. After a
start of the machine each of these is a read from the disk, and costs more than all else of the append (ADR 0021). From
beginning to end the whole index is read within seconds. It is not where that would be half of the memory to be had.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import psycopg
import structlog

MEMINFO: Final = Path("/proc/meminfo")
READ_BYTES: Final = 4 * 2**20  # at once
SEGMENT_BYTES: Final = 2**30  # Postgres begins another file then
_INDEX: Final = """
SELECT pg_relation_filepath(i.indexrelid), pg_relation_size(i.indexrelid)
FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname = %s AND t.relname = 'events' AND i.indisunique AND NOT i.indisprimary
"""
log = structlog.get_logger("hub.embedded")


def available_bytes() -> int:
    """What programs and files can have of this machine's memory; 0 where it does not say."""
    try:
        for line in MEMINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def warm(
    url: str,
    stop: threading.Event,
    *,
    schema: str = "crew_main",
    available: Callable[[], int] = available_bytes,
) -> int:
    """Returns the bytes read. `url` is the superuser's, as only it may read files; nothing is raised, as nothing
    depends on it.
    """
    read = 0
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            found = connection.execute(_INDEX, [schema]).fetchone()
            if found is None or found[1] > available() // 2:
                return 0
            for file, offset, length in _parts(*found):
                if stop.is_set():
                    break
                # The server reads it, and keeps it to itself.
                row = connection.execute(
                    "SELECT length(pg_read_binary_file(%s, %s, %s, true))", [file, offset, length]
                ).fetchone()
                read += (row and row[0]) or 0
    except psycopg.Error as error:
        log.info("the index was not read ahead", error=str(error))
    else:
        log.info("the index was read ahead", read_bytes=read)
    return read


def _parts(path: str, size: int) -> Iterator[tuple[str, int, int]]:
    """(file, offset, bytes) from beginning to end."""
    for at in range(0, size, READ_BYTES):
        segment, offset = divmod(at, SEGMENT_BYTES)
        yield path + (f".{segment}" if segment else ""), offset, min(READ_BYTES, size - at)
