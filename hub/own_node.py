"""Asking the node that runs on this computer, as its owner."""

import time
from pathlib import Path
from typing import Any, Final

import httpx2
import msgspec

from ledger.request import sign_request
from relay.node.identity import load_or_create_key, load_running

MAX_STATUS_BYTES: Final = 256 * 1024


def own_status(folder: Path) -> dict[str, Any] | None:
    """What the node of this folder tells its owner (relay.node.status); None when no node answers where it should.

    Raises IdentityError when the folder's key cannot be used, OSError.
    """
    running = load_running(folder)
    if running is None:
        return None
    signed = sign_request(load_or_create_key(folder), "GET", "/health", b"", now_s=int(time.time()))
    scheme = "https" if running.tls else "http"
    try:
        # A certificate is for the public name, not for this address; nothing but a signature is sent.
        with httpx2.Client(timeout=5.0, trust_env=False, verify=not running.tls) as http:
            url = f"{scheme}://127.0.0.1:{running.port}/health"
            answer = http.get(url, headers={"authorization": signed})
        return msgspec.json.decode(answer.content[:MAX_STATUS_BYTES], type=dict[str, Any])
    except (httpx2.HTTPError, msgspec.MsgspecError):
        return None
