"""The name of the hub's log in its checkpoints. Invariant: it never changes in the log's life."""

import re
from urllib.parse import urlsplit

from hub.settings import Settings
from ledger.tlog.files import write_atomic


def log_origin(settings: Settings) -> str:
    """This hub's address and crew, as they were when it was asked for the first time."""
    path = settings.data_dir / "keys" / "log.origin"
    if not path.exists():
        host = urlsplit(settings.public_url).netloc if settings.public_url else "streamrp2p.local"
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", settings.crew_name)
        write_atomic(path, f"{host}/{name}\n".encode())
    return path.read_text().strip()
