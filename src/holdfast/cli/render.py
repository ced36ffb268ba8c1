"""What a person or a program sees: the only place that writes to the console.

Results go to stdout, everything else to stderr. At a terminal there is a progress bar, and one for each part of a job
that has parts; a pipe sees plain lines; with ``--json`` stdout holds one JSON object and nothing else.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from holdfast.errors import HoldfastError, TargetError, exit_code
from holdfast.model.snapshot import shown
from holdfast.progress import Part, Progress

if TYPE_CHECKING:
    from rich.console import Group

_TICK_S = 0.1
_LINE_EVERY_S = 10.0
_JSON_EVERY_S = 1.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_KILO = 1024
_WAITING = "waiting"
_ENDED = frozenset(("done", "exists", "failed", "pulled", "up to date"))
_MOST_STATES = 6
_LONGEST_ANSWER = 64 << 10


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
            _write(_json(document))
        elif not self.quiet:
            for line in lines:
                _write(line)

    def rows(self, documents: Iterator[dict[str, Any]], line: Callable[[dict[str, Any]], str], key: str) -> None:
        """Show a listing: as a JSON object with one array, or line by line as it comes."""
        if self.json:
            _write(_json({key: list(documents)}))
            return
        for document in documents:
            _write(line(document))

    def warn(self, sentence: str) -> None:
        """Show a warning."""
        _tell(f"warning: {sentence}")

    def note(self, sentence: str) -> None:
        """Say why nothing seems to happen."""
        if self.progress == "json":
            _tell(_json({"note": sentence}))
        elif not self.quiet:
            _tell(sentence)

    def fail(self, error: HoldfastError, result: dict[str, Any] | None = None) -> None:
        """Show an error: one sentence, and the way out where there is one. ``result`` goes into its JSON object."""
        if self.json:
            document = {**(result or {}), "error": str(error), "hint": error.hint, "exit_code": exit_code(error)}
            paths = getattr(error, "paths", ())
            if paths:
                document["paths"] = [shown(path) for path in paths]
            _write(_json(document))
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
        from rich.console import Console, Group  # noqa: PLC0415 - start-up: only for a terminal
        from rich.live import Live  # noqa: PLC0415
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar  # noqa: PLC0415

        columns = (
            TextColumn("{task.fields[files]}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        bar = Bar(*columns, console=console)
        task = bar.add_task("", total=None, files="")
        with Live(bar, console=console, transient=True, auto_refresh=False) as live:
            while not stop.wait(_TICK_S):
                total = max(progress.bytes_total, progress.bytes_done) if progress.bytes_total else None
                parts = tuple(progress.parts)
                files = "" if parts else f"{progress.files_done} files"
                bar.update(task, completed=progress.bytes_done, total=total, files=files)
                live.update(Group(_lines(parts, console.height - 2), bar) if parts else bar, refresh=True)
                for sentence in self._new_warnings(progress):
                    console.print(f"warning: {sentence}", markup=False, highlight=False)

    def _warnings(self, progress: Progress) -> None:
        for sentence in self._new_warnings(progress):
            if self.progress == "json":
                _tell(_json({"warning": sentence}))
            else:
                self.warn(sentence)

    def _new_warnings(self, progress: Progress) -> list[str]:
        new = progress.warnings[self._shown_warnings :]
        self._shown_warnings += len(new)
        return [printable(sentence) for sentence in new]


def _plain_line(progress: Progress, seconds: float) -> str:
    rate = size_text(int(progress.bytes_done / seconds)) if seconds else "0 B"
    of = f" of {size_text(progress.bytes_total)}" if progress.bytes_total else ""
    counts = f"{size_text(progress.bytes_done)}{of}, {rate}/s"
    parts = tuple(progress.parts)
    return f"{counts}; {_states(parts)}" if parts else f"{progress.files_done} files, {counts}"


def _json_line(progress: Progress, seconds: float) -> str:
    document: dict[str, Any] = {
        "files_done": progress.files_done,
        "files_total": progress.files_total,
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "bytes_stored": progress.bytes_stored,
        "seconds": round(seconds, 3),
    }
    if progress.parts:
        document["parts"] = [
            {"name": printable(part.name), "state": printable(part.state), "done": part.done, "total": part.total}
            for part in tuple(progress.parts)
        ]
    return _json(document)


def fold(parts: Sequence[Part], room: int) -> tuple[list[Part], str]:
    """Choose the parts that get one of ``room`` lines each; the text says, in the last line, what the others do.

    Those under way are chosen before those that wait, and these before those that have ended.
    """
    if len(parts) <= max(room, 0):
        return list(parts), ""
    order = sorted(range(len(parts)), key=lambda i: _rank(parts[i]))
    split = max(room - 1, 0)
    others = [parts[i] for i in order[split:]]
    return [parts[i] for i in sorted(order[:split])], f"and {len(others)} more: {_states(others)}"


def _rank(part: Part) -> int:
    if part.state in _ENDED:
        return 2
    return 1 if part.state == _WAITING else 0


def _states(parts: Sequence[Part]) -> str:
    counted = Counter(part.state for part in parts)
    return ", ".join(f"{count} {printable(state)}" for state, count in counted.most_common(_MOST_STATES))


def _lines(parts: Sequence[Part], room: int) -> Group:
    from rich.console import Group  # noqa: PLC0415 - start-up: only for a terminal
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Column, Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    shown_parts, others = fold(parts, room)
    name = Column(max_width=48, no_wrap=True, overflow="ellipsis")
    table = Table.grid(name, Column(max_width=24, no_wrap=True, overflow="ellipsis"), padding=(0, 1))
    for part in shown_parts:
        total = None if part.done and not part.total else max(part.total, part.done, 1)
        size = size_text(part.done) + (f" of {size_text(part.total)}" if part.total >= part.done else "")
        bar = ProgressBar(total=total, completed=part.done, width=20)
        table.add_row(Text(printable(part.name)), Text(printable(part.state)), bar, Text(size if part.done else ""))
    return Group(table, Text(others, no_wrap=True, overflow="ellipsis")) if others else Group(table)


def write_bytes(data: bytes | memoryview) -> None:
    """Write contents to stdout as they are."""
    sys.stdout.buffer.write(data)


def flush() -> None:
    """Make sure that everything written reached stdout's other end."""
    with _translated():
        sys.stdout.flush()


def is_terminal() -> bool:
    """Whether stdout is a terminal, where contents do not belong."""
    return sys.stdout.isatty()


def ask(question: str, *, secret: bool = False) -> str:
    """Read one line of stdin, without the spaces around it; empty at its end. A person is asked for it, on stderr.

    What is ``secret`` does not appear at the terminal.
    """
    if sys.stdin is None:
        return ""
    if sys.stdin.isatty() and secret:
        try:
            return getpass.getpass(f"{question}: ").strip()
        except EOFError:
            return ""
    if sys.stdin.isatty():
        sys.stderr.write(f"{question}: ")
        sys.stderr.flush()
    return os.fsdecode(sys.stdin.buffer.readline(_LONGEST_ANSWER)).strip()


def read_answer() -> str:
    """Read all of stdin, at most 64 KiB, without one newline at its end."""
    if sys.stdin is None:
        return ""
    return os.fsdecode(sys.stdin.buffer.read(_LONGEST_ANSWER)).removesuffix("\n").removesuffix("\r")


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


def _json(document: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(document).decode()
    except UnicodeEncodeError:  # half a character, which JSON from elsewhere may hold
        return json.dumps(document)


def _write(line: str) -> None:
    with _translated():
        sys.stdout.write(line + "\n")


@contextmanager
def _translated() -> Iterator[None]:
    """Say that it is the output that cannot be written. A reader that has gone is the caller's affair."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_stdout()
        raise TargetError(f"the output cannot be written: {error.strerror}") from error


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def drop_stdout() -> None:
    """Send what is still to be written to nowhere: the reader of our stdout has gone."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
