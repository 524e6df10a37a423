"""The metrics of one process, as Prometheus reads them; no label grows with the fleet."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from server.http.exchanges import Exchange

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counts requests, and shows them with what others collect.

    Args:
        fleet: Collects what is not about requests.
    """

    def __init__(self, fleet: Collector) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(fleet)
        self._requests = Counter(
            "edge_server_http_requests",
            "Answered requests",
            ["method", "route", "status_class"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "edge_server_http_request_seconds",
            "From the request's header to the end of the answer",
            ["method", "route"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._bytes_in = Counter(
            "edge_server_http_request_body_bytes",
            "Bytes of bodies that were read",
            ["method", "route"],
            registry=self._registry,
        )
        self._bytes_out = Counter(
            "edge_server_http_response_body_bytes",
            "Bytes of bodies that were sent",
            ["method", "route"],
            registry=self._registry,
        )

    def count(self, exchange: Exchange) -> None:
        """Count one request."""
        method = exchange.method if exchange.method in _METHODS else "other"
        where = (method, exchange.route or "none")
        status_class = "none" if exchange.status is None else f"{exchange.status // 100}xx"
        self._requests.labels(*where, status_class).inc()
        self._seconds.labels(*where).observe(exchange.seconds)
        self._bytes_in.labels(*where).inc(exchange.bytes_in)
        self._bytes_out.labels(*where).inc(exchange.bytes_out)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
