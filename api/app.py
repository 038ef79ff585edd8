"""The control plane as one ASGI app. The hub mounts it beside the media app, which is bare ASGI for speed.

Invariant: whatever comes in, the answer is a page, a file or JSON of a documented shape, and every error is a problem
of the closed list (api.problems).
"""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.cors import CORSMiddleware

from api import problems
from api.balances.endpoints import router as balances
from api.deps import BODY_BYTES_MAX, Services
from api.edge import Edge
from api.events.endpoints import router as events
from api.friends.endpoints import router as friends
from api.health.endpoints import router as health
from api.live import Live
from api.log.endpoints import router as log
from api.metrics import Metrics
from api.nodes.checks import UPLOAD_BYTES_MAX, UPLOAD_PATH
from api.nodes.checks import router as node_checks
from api.nodes.endpoints import router as nodes
from api.payouts.endpoints import router as payouts
from api.receipts.endpoints import router as receipts
from api.sessions.endpoints import router as sessions
from api.streams.endpoints import creators
from api.streams.endpoints import router as streams
from api.web.endpoints import router as web
from api.web.endpoints import static_files

_ROUTERS: Final = (
    streams,
    creators,
    node_checks,
    nodes,
    sessions,
    receipts,
    balances,
    friends,
    payouts,
    events,
    health,
    log,
    web,
)
_PREFLIGHT_S: Final = 600


class ProblemOut(BaseModel):
    """RFC 9457. Some types have more members: `fields`, `checks`."""

    model_config = ConfigDict(extra="allow", title="Problem")

    type: str = Field(description="/problems/<slug>", examples=["/problems/not-found"])
    title: str
    status: int
    detail: str


def create_app(services: Services) -> FastAPI:
    app = FastAPI(
        title="StreamrP2P",
        version="1",
        summary="Streams carried by friends: streams, nodes, receipts, balances, payouts.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # the library's page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    app.state.metrics = Metrics()
    app.state.live = Live(services)
    problems.install(app)
    # Tokens are sent on purpose, never by the browser on its own (no cookies), so any site may ask.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
        expose_headers=["Retry-After"],
        max_age=_PREFLIGHT_S,
    )
    larger = {UPLOAD_PATH: UPLOAD_BYTES_MAX}
    app.add_middleware(
        Edge,
        body_bytes_max=BODY_BYTES_MAX,
        exceptions=larger,
        metrics=app.state.metrics,
        https=services.settings.public_url.startswith("https://"),
    )
    for router in _ROUTERS:
        app.include_router(router)
    app.mount("/static", static_files(), name="static")
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        components["Problem"] = ProblemOut.model_json_schema()
        app.openapi_schema = schema
    return app.openapi_schema
