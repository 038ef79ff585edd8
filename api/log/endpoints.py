"""The published log as static files (c2sp.org/tlog-tiles): what an auditor downloads.

Invariant: only paths of the tile format are looked up, so nothing outside the folder can be named. A full tile never
changes and says so to every cache; the checkpoint, the key and partial tiles are asked for anew each time.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Header, Response

from api.deps import ServicesDep
from api.problems import not_found, responses

router = APIRouter(prefix="/log", tags=["audit"])

_INDEX: Final = r"(?:x[0-9]{3}/){0,6}[0-9]{3}"
_LEVEL: Final = r"(?:entries|[0-9]|[1-5][0-9]|6[0-3])"
_TILE: Final = re.compile(
    rf"tile/{_LEVEL}/{_INDEX}(?P<partial>\.p/(?:[1-9]|[1-9][0-9]|1[0-9]{{2}}|2[0-4][0-9]|25[0-5]))?"
)
_TEXTS: Final = frozenset({"checkpoint", "vkey"})
_FOREVER: Final = "public, max-age=31536000, immutable"
_ANEW: Final = "no-cache"


@router.head("/{path:path}", include_in_schema=False)  # `curl -I`, mirrors
@router.get("/{path:path}", responses=responses(), response_class=Response)
def published(path: str, at: ServicesDep, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """`checkpoint`, `vkey`, `tile/<level>/<index>[.p/<width>]`, `tile/entries/<index>[.p/<width>]`."""
    match = _TILE.fullmatch(path)
    if match is None and path not in _TEXTS:
        raise not_found("the log has checkpoint, vkey and tile/...")
    data = _read(at.log_folder / path)
    if data is None:
        raise not_found("not published (yet)")
    full = match is not None and match["partial"] is None
    etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {
        "Cache-Control": _FOREVER if full else _ANEW,
        "ETag": etag,
        "Access-Control-Allow-Origin": "*",
    }
    if if_none_match is not None and etag in (t.strip().removeprefix("W/") for t in if_none_match.split(",")):
        return Response(status_code=304, headers=headers)
    media_type = "text/plain; charset=utf-8" if match is None else "application/octet-stream"
    return Response(data, headers=headers, media_type=media_type)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
