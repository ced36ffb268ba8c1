"""Lets many ask for saves and restores at once: those that touch one another run in turn, the others side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal

from holdfast.errors import BusyError
from holdfast.model.names import lies_in
from holdfast.progress import Progress

Kind = Literal["save", "restore"]
Work = Callable[[Progress], Any]

_MOST_WAITING = 256


@dataclass(eq=False, slots=True)
class Job:
    """One save or restore, asked for by one or by many. ``done`` holds what came of it.

    ``name`` is what they call it, ``path`` the place on this machine.
    """

    kind: Kind
    name: bytes
    path: bytes
    work: Work = field(repr=False)
    progress: Progress = field(default_factory=Progress, repr=False)
    done: Future[Any] = field(default_factory=Future, repr=False)
    asked: float = field(default_factory=time.monotonic)
    is_started: bool = False

    def conflicts(self, other: Job) -> bool:
        """Whether the two must not run at once: one path is, or lies in, the other, and one of them is written."""
        if self.kind == other.kind == "save":
            return False
        return lies_in(self.path, other.path) or lies_in(other.path, self.path)


class Schedule:
    """Runs jobs in threads, a few at a time. Safe from any thread.

    Jobs that conflict run one after another, in the order in which they were asked for. A save that is asked for while
    the same is waiting or under way is that one. Memory: a thread for each job that runs, a name for each that waits.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._pool = ThreadPoolExecutor(at_once, "job")
        self._jobs: list[Job] = []
        self._running = 0
        self._lock = threading.Lock()
        self._is_stopped = False
        self._watchers: list[Callable[[Job], None]] = []

    def watch(self, ended: Callable[[Job], None]) -> None:
        """Have ``ended`` called with every job that ended, before those who wait for it go on."""
        self._watchers.append(ended)

    @property
    def running(self) -> int:
        """How many jobs are under way."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many jobs wait for their turn."""
        return len(self._jobs) - self._running

    def save(self, name: bytes, path: bytes, work: Work) -> Job:
        """Ask for a save.

        :raises BusyError: too many wait already, or the server is stopping.
        """
        with self._lock:
            job = Job("save", name, path, work)
            for earlier in reversed(self._jobs):
                if earlier.kind == "save" and (earlier.name, earlier.path) == (name, path):
                    return earlier
                if earlier.conflicts(job):  # what it will bring back is not in any save before it
                    break
            return self._add(job)

    def restore(self, name: bytes, path: bytes, work: Work) -> Job:
        """Ask for a restore.

        :raises BusyError: too many wait already, or the server is stopping.
        """
        with self._lock:
            return self._add(Job("restore", name, path, work))

    def stop(self, grace_s: float) -> bool:
        """Take no more jobs, drop those that wait, and give those that run some time. Whether all have ended."""
        with self._lock:
            self._is_stopped = True
            dropped = [job for job in self._jobs if not job.is_started]
            self._jobs = [job for job in self._jobs if job.is_started]
            running = [job.done for job in self._jobs]
        for job in dropped:
            job.done.set_exception(_stopping())
        have_ended = not wait(running, grace_s).not_done
        if have_ended:
            self._pool.shutdown()  # by then all watchers have been told
        return have_ended

    def _add(self, job: Job) -> Job:
        if self._is_stopped:
            raise _stopping()
        if len(self._jobs) - self._running >= _MOST_WAITING:
            raise BusyError(f"{_MOST_WAITING} saves and restores wait already", hint="try again later")
        for watcher in self._watchers:
            job.done.add_done_callback(lambda _, ended=watcher: ended(job))  # type: ignore[misc]
        self._jobs.append(job)
        self._start_ready()
        return job

    def _start_ready(self) -> None:
        for at, job in enumerate(self._jobs):
            if self._running >= self._at_once:
                return
            if not job.is_started and not any(map(job.conflicts, self._jobs[:at])):
                job.is_started = True
                self._running += 1
                self._pool.submit(self._run, job)

    def _run(self, job: Job) -> None:
        try:
            result, failure = job.work(job.progress), None
        except BaseException as error:  # noqa: BLE001 - it goes to whoever asked
            result, failure = None, error
        with self._lock:
            self._jobs.remove(job)
            self._running -= 1
            if not self._is_stopped:
                self._start_ready()
        # Last: whoever is told may ask for the next job at once, and must not find this one under way.
        if failure is not None:
            job.done.set_exception(failure)
        else:
            job.done.set_result(result)


def _stopping() -> BusyError:
    return BusyError("the server is stopping", hint="try again once it is back")
