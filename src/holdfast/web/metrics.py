"""What is counted for Prometheus, in its text format."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from starlette.responses import Response

from holdfast.images.serving import PullJob, Pulls
from holdfast.volumes.schedule import Job, Schedule

_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 1800, 7200)
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server, whichever faces it has. No label holds a path or a name: anybody may ask for any."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody asks for
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "holdfast_requests_total", "Requests answered.", ["face", "method", "status"], registry=self._registry
        )

    def count_jobs(self, schedule: Schedule) -> None:
        """Count saves and restores, too."""
        self._jobs = Counter(
            "holdfast_jobs_total", "Saves and restores that ended.", ["kind", "result"], registry=self._registry
        )
        self._seconds = Histogram(
            "holdfast_job_seconds",
            "Time from the request of a save or restore to its end.",
            ["kind"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stored = Counter("holdfast_stored_bytes_total", "Bytes sent to the bucket.", registry=self._registry)
        self._success = Gauge(
            "holdfast_last_success_timestamp_seconds",
            "When a save or restore last ended without failure.",
            ["kind"],
            registry=self._registry,
        )
        running = Gauge("holdfast_jobs_running", "Saves and restores under way.", registry=self._registry)
        running.set_function(lambda: schedule.running)
        waiting = Gauge("holdfast_jobs_waiting", "Saves and restores that wait.", registry=self._registry)
        waiting.set_function(lambda: schedule.waiting)

    def count_pulls(self, pulls: Pulls) -> None:
        """Count pulls, too."""
        self._pulls = Counter("holdfast_pulls_total", "Pulls that ended.", ["result"], registry=self._registry)
        self._pull_seconds = Histogram(
            "holdfast_pull_seconds",
            "Time from the request of a pull to its end.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        running = Gauge("holdfast_pulls_running", "Pulls under way.", registry=self._registry)
        running.set_function(lambda: pulls.running)
        waiting = Gauge("holdfast_pulls_waiting", "Pulls that wait.", registry=self._registry)
        waiting.set_function(lambda: pulls.waiting)

    def answered(self, face: str, method: str, status: int) -> None:
        """Count a request."""
        known = method if method in {"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"} else "other"
        self._requests.labels(face, known, status).inc()

    def ended(self, job: Job, result: str, stored_bytes: int) -> None:
        """Count a job; ``result`` is ok, incomplete or failed."""
        self._jobs.labels(job.kind, result).inc()
        self._seconds.labels(job.kind).observe(time.monotonic() - job.asked)
        self._stored.inc(stored_bytes)
        if result != "failed":
            self._success.labels(job.kind).set_to_current_time()

    def pulled(self, job: PullJob, result: str) -> None:
        """Count a pull; ``result`` is pulled, up to date or failed."""
        self._pulls.labels(result).inc()
        self._pull_seconds.observe(time.monotonic() - job.asked)

    def response(self) -> Response:
        """Answer a scrape."""
        return Response(generate_latest(self._registry), media_type=_CONTENT_TYPE)
