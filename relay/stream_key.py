"""Whether a stream key is right, in words for the encoder; the same for every protocol that an encoder may speak."""

from typing import Final

import structlog

from relay.ports import PublishAuthority, StreamGrant, Unavailable

log = structlog.get_logger()
MAX_KEY_CHARS: Final = 200
_LATER: Final = "the hub cannot check the stream key at the moment; try again"


async def granted(authority: PublishAuthority, stream_key: str) -> StreamGrant | str:
    """The stream, or the reason why there is none."""
    if not stream_key:
        return "the stream key is missing"
    if len(stream_key) > MAX_KEY_CHARS:
        return "the stream key is wrong"
    try:
        grant = await authority.check_key(stream_key)
    except Unavailable:
        return _LATER
    except Exception:  # an encoder must get an answer whatever went wrong behind the port
        log.exception("check_key_failed")
        return _LATER
    return grant if grant is not None else "the stream key is wrong"
