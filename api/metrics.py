"""Prometheus metrics of the API process.

Invariant: label values come from a fixed set (methods, route templates, statuses, names of projections and duties),
so that nobody on the network can make the registry grow. A reason to have stopped is free text: at most one a
projection, and gone when it is over.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from projections.views import Lag

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "streamrp2p_http_requests",
            "Requests answered",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "streamrp2p_http_request_seconds",
            "Time to answer",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._forwarded = Counter(
            "streamrp2p_forwarded_requests",
            "Requests that say for whom a proxy makes them",
            ("believed",),
            registry=self.registry,
        )
        self._receipts = Counter(
            "streamrp2p_receipts", "Receipts judged", ("verdict",), registry=self.registry
        )
        self._lag = Gauge(
            "streamrp2p_projection_lag_events",
            "Events not yet projected",
            ("projection",),
            registry=self.registry,
        )
        self._lag_age = Gauge(
            "streamrp2p_projection_lag_seconds",
            "Age of the oldest event not yet projected",
            ("projection",),
            registry=self.registry,
        )
        self._stopped = Gauge(
            "streamrp2p_projection_stopped",
            "1 for a projection that cannot go on until somebody looks, with the reason",
            ("projection", "reason"),
            registry=self.registry,
        )
        self._overdue = Gauge(
            "streamrp2p_duty_overdue_seconds",
            "Since when a duty of the worker should have been heard",
            ("duty",),
            registry=self.registry,
        )
        self._failing = Gauge(
            "streamrp2p_duty_failing",
            "1 when a duty of the worker fails until somebody looks",
            ("duty",),
            registry=self.registry,
        )
        self._size = Gauge("streamrp2p_log_events", "Events in the log", registry=self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        known = method if method in _METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def forwarded(self, believed: bool) -> None:
        self._forwarded.labels("yes" if believed else "no").inc()

    def receipts(self, verdict: str, count: int) -> None:
        self._receipts.labels(verdict).inc(count)

    def exposition(
        self, lags: list[Lag], log_events: int | None, *, overdue: Mapping[str, int], failing: Sequence[str]
    ) -> bytes:
        if log_events is not None:
            self._size.set(log_events)
        self._stopped.clear()
        for lag in lags:
            self._stopped.labels(lag.name, lag.stopped).set(int(bool(lag.stopped)))
            self._lag.labels(lag.name).set(lag.events)
            self._lag_age.labels(lag.name).set(lag.behind_us / 1_000_000)
        for duty, seconds in overdue.items():
            self._overdue.labels(duty).set(seconds)
            self._failing.labels(duty).set(int(duty in failing))
        return generate_latest(self.registry)
