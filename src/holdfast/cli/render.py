"""What a person or a program sees: the only place that writes to the console.

Results go to stdout, everything else to stderr. At a terminal there is a progress bar; a pipe sees plain lines; with
``--json`` stdout holds one JSON object and nothing else.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from holdfast.errors import HoldfastError, exit_code
from holdfast.model.snapshot import shown
from holdfast.progress import Progress

_TICK_S = 0.1
_LINE_EVERY_S = 10.0
_JSON_EVERY_S = 1.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_KILO = 1024


@dataclass(slots=True)
class View:
    """How one command talks: ``progress`` is auto, none, plain or json."""

    json: bool = False
    quiet: bool = False
    progress: str = "auto"
    _shown_warnings: int = field(default=0, repr=False)

    def result(self, document: dict[str, Any], lines: list[str]) -> None:
        """Show the one result of a command: as a JSON object, or as lines."""
        if self.json:
            _write(msgspec.json.encode(document).decode())
        elif not self.quiet:
            for line in lines:
                _write(line)

    def rows(self, documents: Iterator[dict[str, Any]], line: Callable[[dict[str, Any]], str], key: str) -> None:
        """Show a listing: as a JSON object with one array, or line by line as it comes."""
        if self.json:
            _write(msgspec.json.encode({key: list(documents)}).decode())
            return
        for document in documents:
            _write(line(document))

    def warn(self, sentence: str) -> None:
        """Show a warning."""
        _tell(f"warning: {sentence}")

    def fail(self, error: HoldfastError) -> None:
        """Show an error: one sentence, and the way out where there is one."""
        if self.json:
            document: dict[str, Any] = {"error": str(error), "hint": error.hint, "exit_code": exit_code(error)}
            paths = getattr(error, "paths", ())
            if paths:
                document["paths"] = [shown(path) for path in paths]
            _write(msgspec.json.encode(document).decode())
        _tell(f"error: {printable(str(error))}")
        for path in getattr(error, "paths", ())[:20]:
            _tell(f"  {printable(shown(path))}")
        if error.hint:
            _tell(f"hint: {printable(error.hint)}")

    @property
    def live(self) -> bool:
        """Whether a progress bar is shown."""
        return self.progress == "auto" and not self.quiet and sys.stderr.isatty()

    @contextmanager
    def watch(self, progress: Progress) -> Iterator[None]:
        """Show a job's progress while the body runs, and its warnings as they come."""
        stop = threading.Event()
        thread = threading.Thread(target=self._show, args=(progress, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self._warnings(progress)

    def _show(self, progress: Progress, stop: threading.Event) -> None:
        if self.live:
            self._show_bar(progress, stop)
        elif self.progress == "json":
            self._show_regularly(progress, stop, _JSON_EVERY_S, _json_line)
        elif self.quiet or self.progress == "none":
            stop.wait()
        else:
            self._show_regularly(progress, stop, _LINE_EVERY_S, _plain_line)

    def _show_regularly(
        self, progress: Progress, stop: threading.Event, every_s: float, line: Callable[[Progress, float], str]
    ) -> None:
        began = time.monotonic()
        while not stop.wait(every_s):
            self._warnings(progress)
            _tell(line(progress, time.monotonic() - began))

    def _show_bar(self, progress: Progress, stop: threading.Event) -> None:
        from rich.console import Console  # noqa: PLC0415 - start-up: only for a terminal
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar  # noqa: PLC0415

        columns = (
            TextColumn("{task.fields[files]} files"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None, files=0)
            while not stop.wait(_TICK_S):
                total = max(progress.bytes_total, progress.bytes_done) or None
                bar.update(task, completed=progress.bytes_done, total=total, files=progress.files_done)
                for sentence in self._new_warnings(progress):
                    bar.console.print(f"warning: {sentence}", markup=False, highlight=False)

    def _warnings(self, progress: Progress) -> None:
        for sentence in self._new_warnings(progress):
            if self.progress == "json":
                _tell(msgspec.json.encode({"warning": sentence}).decode())
            else:
                self.warn(sentence)

    def _new_warnings(self, progress: Progress) -> list[str]:
        new = progress.warnings[self._shown_warnings :]
        self._shown_warnings += len(new)
        return new


def _plain_line(progress: Progress, seconds: float) -> str:
    rate = size_text(int(progress.bytes_done / seconds)) if seconds else "0 B"
    of = f" of {size_text(progress.bytes_total)}" if progress.bytes_total else ""
    return f"{progress.files_done} files, {size_text(progress.bytes_done)}{of}, {rate}/s"


def _json_line(progress: Progress, seconds: float) -> str:
    return msgspec.json.encode(
        {
            "files_done": progress.files_done,
            "files_total": progress.files_total,
            "bytes_done": progress.bytes_done,
            "bytes_total": progress.bytes_total,
            "bytes_stored": progress.bytes_stored,
            "seconds": round(seconds, 3),
        }
    ).decode()


def write_bytes(data: bytes | memoryview) -> None:
    """Write contents to stdout as they are."""
    sys.stdout.buffer.write(data)


def flush() -> None:
    """Make sure that everything written reached stdout's other end."""
    sys.stdout.flush()


def is_terminal() -> bool:
    """Whether stdout is a terminal, where contents do not belong."""
    return sys.stdout.isatty()


def size_text(size: int) -> str:
    """Give bytes in the unit that reads best: 1.5 MiB."""
    amount = float(size)
    for unit in _UNITS:
        if amount < _KILO or unit == _UNITS[-1]:
            return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= _KILO
    raise AssertionError("unreachable")


def time_text(ns: int) -> str:
    """Give a time in nanoseconds since 1970 as local date and time."""
    try:
        return datetime.fromtimestamp(ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(ns)


def printable(text: str) -> str:
    """Make text safe to print: control characters, which a hostile name could hold, read as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def drop_stdout() -> None:
    """Send what is still to be written to nowhere: the reader of our stdout has gone."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
