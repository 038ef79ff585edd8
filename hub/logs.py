"""Logging: lines for people or JSON, always to stderr, secrets masked.

Invariant: no value under a secret's name, no stream key, API token or URL password reaches a log line, whichever
library wrote it: every record passes `mask_secrets` as the last step before it is rendered.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MASK = "***"
DEPTH_MAX = 6
TEXT_MAX = 20_000

_SECRET_NAME = re.compile(
    r"(^|[_.-])(stream_?key|key_?seed|seed|token|secret|passw(or)?d|passphrase|authorization|cookie|private_?key"
    r"|signing_?key|invite_?code|api_?key|database_?url|redis_?url|destination)s?$",
    re.IGNORECASE,
)
_SECRET_TEXT = (
    (re.compile(r"(?<=://)([^/:@\s]*):[^/@\s]+@"), r"\1:" + MASK + "@"),  # password in a URL
    (re.compile(r"\bsp2p_([a-z]{1,16})_[A-Za-z0-9_-]{8,}"), r"sp2p_\1_" + MASK),  # API token
    (re.compile(r"\b([a-z0-9][a-z0-9-]{0,39})_[a-z2-7]{32}\b"), r"\1_" + MASK),  # stream key
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]+", re.IGNORECASE), r"\1 " + MASK),
    (
        re.compile(
            r"([?&\s,;'\"({](?:password|token|secret|seed|stream_key)['\"]?\s*[=:]\s*['\"]?)[^\s&,;'\")}]+",
            re.I,
        ),
        r"\1" + MASK,
    ),
)
_QUIET = dict.fromkeys(("alembic", "eventsourcing", "httpcore2", "httpx2", "sqlalchemy"), logging.WARNING)


def mask_text(text: str) -> str:
    """`text` (cut at 20,000 characters) without anything that looks like a secret of ours."""
    text = text[:TEXT_MAX]
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _mask(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return mask_text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth >= DEPTH_MAX:
        return MASK
    if isinstance(value, Mapping):
        return {key: _mask_named(str(key), item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_mask(item, depth + 1) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return mask_text(bytes(value[:TEXT_MAX]).decode("latin-1"))
    return mask_text(str(value))


def _mask_named(name: str, value: Any, depth: int) -> Any:
    if _SECRET_NAME.search(name) and value is not None and not isinstance(value, bool):
        return MASK
    return _mask(value, depth)


def mask_secrets(_logger: WrappedLogger | None, _method: str, event: EventDict) -> EventDict:
    """The last processor before the renderer. Also walks into nested values, to a bounded depth."""
    return {name: _mask_named(name, value, 0) for name, value in event.items()}


class _ShieldedHandler(logging.StreamHandler[Any]):
    """A record that cannot be rendered is named on stderr, without its (unmasked) arguments."""

    def handleError(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"a log record of {record.name} (line {record.lineno}) could not be rendered\n")


def configure_logging(*, json: bool, level: str) -> None:
    """Set up structlog and the standard library's logging (uvicorn, alembic, ...) alike. Safe to call again."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    renderer: Processor
    if json:
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, mask_secrets, renderer],
    )
    handler = _ShieldedHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(max(quiet, root.level))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)  # the root's level decides, whatever a server before set
        logger.propagate = True
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
