"""The pages. They are plain HTML with our own modules; nothing is loaded from anybody else.

Invariant: no script, style or frame but our own can run in a page (Content-Security-Policy), and every value in a page
is escaped by the template engine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from api.deps import ServicesDep
from api.problems import not_found

HERE: Final = Path(__file__).parent
# Nodes are anywhere: segments may come from any http(s) address. The player's media are blobs, its worker is ours.
CSP: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self' http: https:",
        "media-src 'self' blob: http: https:",
        "worker-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
    )
)
THANKED_MAX: Final = 100
_STATIC_CACHE: Final = "public, max-age=300"

router = APIRouter(include_in_schema=False)
_templates: Final = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _at(path: str) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
    """HEAD too: it is what `curl -I` and monitors ask with."""
    return router.api_route(path, methods=["GET", "HEAD"])


def _page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    html = _templates.get_template(template).render(here=template.removesuffix(".html"), **values)
    return HTMLResponse(html, status, headers={"Content-Security-Policy": CSP, "Cache-Control": "no-cache"})


def _size(count: int) -> str:
    """With one digit after the point, by integers."""
    unit, name = (10**9, "GB") if count >= 10**9 else (10**6, "MB")
    tenths = count * 10 // unit
    return f"{tenths // 10:,}.{tenths % 10} {name}"


@_at("/")
def home(at: ServicesDep) -> Response:
    shown = []
    for stream in at.reads.streams():
        if stream.state in ("LIVE", "OFFLINE", "READY"):
            audience = at.audience(stream.slug)
            shown.append(
                {
                    "slug": stream.slug,
                    "live": stream.state == "LIVE",
                    "viewers": audience.viewers,
                    "carriers": len(audience.by_node),
                }
            )
    shown.sort(key=lambda s: (not s["live"], s["slug"]))
    return _page("home.html", crew_name=at.settings.crew_name, streams=shown)


@_at("/watch/{slug}")
def watch(slug: str, at: ServicesDep) -> Response:
    stream = at.reads.stream(slug) if slug.isascii() and slug.isprintable() else None
    if stream is None:
        return _page("missing.html", 404, crew_name=at.settings.crew_name, missing="There is no such stream")
    return _page(
        "watch.html",
        crew_name=at.settings.crew_name,
        slug=stream.slug,
        state=stream.state,
        playlist_url=f"{at.settings.public_url}/live/{stream.slug}.m3u8",
    )


@_at("/audit")
def audit(at: ServicesDep) -> Response:
    vkey, checkpoint = _published(at.log_folder / "vkey"), _published(at.log_folder / "checkpoint")
    lines = checkpoint.splitlines()
    return _page(
        "audit.html",
        crew_name=at.settings.crew_name,
        base=at.settings.public_url,
        checkpoint=checkpoint,
        size=int(lines[1]) if len(lines) > 1 and lines[1].isdecimal() else 0,
        vkey=vkey.strip(),
    )


def _published(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""


@_at("/friend")
def friend(at: ServicesDep) -> Response:
    return _page("friend.html", crew_name=at.settings.crew_name, base=at.settings.public_url)


@_at("/creator")
def creator(at: ServicesDep) -> Response:
    return _page("creator.html", crew_name=at.settings.crew_name, rtmp_url=at.settings.rtmp_url)


@_at("/operator")
def operator(at: ServicesDep) -> Response:
    return _page("operator.html", crew_name=at.settings.crew_name)


@_at("/thanks")
def thanks(at: ServicesDep) -> Response:
    """Who carried how much, by the names that the friends gave their nodes; a friend's nodes count together."""
    carried: dict[UUID, int] = {}
    of: dict[UUID, list[UUID]] = {}
    for node in at.reads.nodes():
        carried[node.friend_id] = carried.get(node.friend_id, 0) + node.credited_bytes
        of.setdefault(node.friend_id, []).append(node.node_id)
    best = sorted((f for f in carried if carried[f]), key=lambda f: (-carried[f], f))[:THANKED_MAX]
    names = at.directory.node_names([n for f in best for n in of[f]]) if best else {}
    rows = [
        {
            "names": sorted({names[n] for n in of[f] if n in names}) or ["a friend"],
            "delivered": _size(carried[f]),
            "share": carried[f] * 100 // carried[best[0]],
        }
        for f in best
    ]
    return _page(
        "thanks.html", crew_name=at.settings.crew_name, rows=rows, total=_size(sum(carried.values()))
    )


@_at("/{mistyped}")  # the last one: every other page comes before it
def mistyped(request: Request, at: ServicesDep) -> Response:
    """People get a page with a way on, programs a problem."""
    if "text/html" not in request.headers.get("accept", ""):
        raise not_found("there is no such page")
    return _page(
        "missing.html", 404, crew_name=at.settings.crew_name, missing="There is nothing at this address"
    )


class Static(StaticFiles):
    """Scripts may be used by other sites; the compressed copy made by the build is sent to those who take it."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if path.endswith(".gz"):
            return await super().get_response("absent", scope)
        compressed = HERE / "static" / f"{path}.gz"
        takes_gzip = "gzip" in Request(scope).headers.get("accept-encoding", "")
        if takes_gzip and compressed.resolve().is_relative_to(HERE) and compressed.is_file():
            response = await super().get_response(f"{path}.gz", scope)
            response.headers["Content-Encoding"] = "gzip"
            response.headers["Content-Type"] = "text/javascript; charset=utf-8"
        else:
            response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = _STATIC_CACHE
        response.headers["Vary"] = "Accept-Encoding"
        response.headers["Access-Control-Allow-Origin"] = "*"
        return response


def static_files() -> Static:
    return Static(directory=HERE / "static")
