"""What the server has done, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from retro.serving.gate import RequestRecord
from retro.serving.limits import Admission

_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds."""


class Metrics:
    """Counts finished requests, and shows how many the server has.

    Args:
        admission: Of the server.
    """

    def __init__(self, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("retro_requests", "Finished requests.", ("route", "status"), registry=self._registry)
        self._seconds = Histogram(
            "retro_request_seconds",
            "From the head of a request to the end of its answer.",
            ("route",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._tokens = Counter("retro_tokens", "Tokens of answered requests.", ("kind",), registry=self._registry)
        for kind in ("prompt", "completion"):
            self._tokens.labels(kind)
        waiting = Gauge("retro_requests_waiting", "Requests that wait for the model.", registry=self._registry)
        waiting.set_function(lambda: admission.waiting)
        active = Gauge("retro_requests_active", "Requests that the model works on.", registry=self._registry)
        active.set_function(lambda: admission.active)
        ProcessCollector(registry=self._registry)

    def finished(self, record: RequestRecord) -> None:
        self._requests.labels(record.route, record.status).inc()
        self._seconds.labels(record.route).observe(record.seconds)
        self._tokens.labels("prompt").inc(record.usage.prompt_tokens)
        self._tokens.labels("completion").inc(record.usage.completion_tokens)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
