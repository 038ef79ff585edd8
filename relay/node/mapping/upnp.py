"""UPnP (IGD), by the miniupnpc library where it is installed. Its calls block: for a thread."""

from ipaddress import IPv4Address
from typing import Any, Final

from relay.node.mapping.lease import LIFETIME_S, Lease, MappingError, SilentError

DISCOVER_MS: Final = 2_000
PORTS_TRIED: Final = 4  # the next ones up, when another computer of the house has the port
NAME: Final = "StreamrP2P"
_FOR_EVER_ONLY: Final = "OnlyPermanentLeasesSupported"  # error 725: then the lease is only renewed to be sure


def open_port(port: int) -> Lease:
    """Raises SilentError when no router speaks UPnP, MappingError when it refuses."""
    router = _router()
    refusal = "UPnP does not say why"
    for external in range(port, min(port + PORTS_TRIED, 65_536)):
        for lifetime_s in (LIFETIME_S, 0):
            try:
                if router.addportmapping(external, "TCP", router.lanaddr, port, NAME, "", lifetime_s):
                    return Lease("UPnP", external, LIFETIME_S, _address(router))
            except Exception as e:  # the library raises bare ones
                refusal = str(e)
            if refusal != _FOR_EVER_ONLY:
                break
    raise MappingError(f"the router opens no port: {refusal}")


def close_port(external_port: int) -> None:
    """Raises MappingError."""
    try:
        _router().deleteportmapping(external_port, "TCP")
    except MappingError:
        raise
    except Exception as e:
        raise MappingError(f"the router keeps the port open: {e}") from e


def _router() -> Any:
    try:
        import miniupnpc
    except ImportError as e:  # no package for this kind of computer
        raise SilentError("UPnP is not available on this computer") from e
    router = miniupnpc.UPnP()
    router.discoverdelay = DISCOVER_MS
    try:
        if router.discover():
            router.selectigd()
            return router
    except Exception as e:
        raise SilentError("no router speaks UPnP") from e
    raise SilentError("no router speaks UPnP")


def _address(router: Any) -> IPv4Address | None:
    try:
        return IPv4Address(router.externalipaddress())
    except Exception:  # the library raises bare ones
        return None
