"""What long work tells whoever watches: a few counters, and nothing about how they are shown."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

_MOST_WARNINGS = 1000


@dataclass(slots=True)
class Part:
    """One of several things that a job has under way at once: a layer, or a host.

    ``name`` tells it apart for a person (``layer 6cbd4f9a32b1``, ``tcp://h1:2375``), ``state`` says in a word or two
    where it is: waiting, reading, uploading, exists, done, failed. Both figures are bytes; ``total`` is 0 while it is
    not known. Written by the one thread that works on it.
    """

    name: str
    state: str = "waiting"
    done: int = 0
    total: int = 0


@dataclass(slots=True)
class Progress:
    """Counters of one job. Written by the workers, read by a display at its own pace.

    ``bytes_done`` and ``files_done`` count what is dealt with (read, kept, written); ``bytes_stored`` what went into
    the bucket. Totals are 0 while unknown. ``warnings`` are sentences for the user, in order, the first 1,000.
    ``parts`` only grows.
    """

    bytes_total: int = 0
    files_total: int = 0
    bytes_done: int = 0
    files_done: int = 0
    bytes_stored: int = 0
    warnings: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def advance(self, *, size: int = 0, files: int = 0, stored: int = 0) -> None:
        """Add to the counters; safe from any thread."""
        with self._lock:
            self.bytes_done += size
            self.files_done += files
            self.bytes_stored += stored

    def part(self, name: str, *, state: str = "waiting", total: int = 0) -> Part:
        """Begin a part."""
        part = Part(name, state, 0, total)
        with self._lock:
            self.parts.append(part)
        return part

    def warn(self, sentence: str) -> None:
        """Note something the user should know that does not stop the work."""
        with self._lock:
            if len(self.warnings) < _MOST_WARNINGS and sentence not in self.warnings:
                self.warnings.append(sentence)

    def given(self) -> tuple[tuple[int, ...], list[str]]:
        """Give the counters and warnings as they are now, for :meth:`take` in another process."""
        with self._lock:
            counters = (self.bytes_total, self.files_total, self.bytes_done, self.files_done, self.bytes_stored)
            return counters, list(self.warnings)

    def take(self, counters: tuple[int, ...], warnings: list[str]) -> None:
        """Show what another process has given."""
        with self._lock:
            self.bytes_total, self.files_total, self.bytes_done, self.files_done, self.bytes_stored = counters
            self.warnings = warnings
