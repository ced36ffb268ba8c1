"""The rows of the table: what is measured, in which order, and the goal of each.

Within a row the tools take turns (holdfast, restic, pipe, holdfast, …), so that whatever drifts on the machine
drifts for all. Nothing with many files is deleted before all is measured: ext4 avoids inodes that were deleted
lately, and whoever creates files next would pay for it.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal

from bench.datasets import MIB, REPOSITORY_ROOT, Dataset
from bench.measure import Command, CommandFailed, Measured, run, single
from bench.peers import Buckets, Holdfast, Repository, Tool, directory_bytes
from bench.servers import ServerFailed

Work = Literal["backup", "unchanged", "changed", "restore", "startup", "push", "push again", "pull", "update"]
Metric = Literal["time", "stored", "memory", "read"]

GIB = 1024 * MIB
_MIN_FREE_BYTES = 16 * GIB
_MIN_STARTS = 5


@dataclass(frozen=True, slots=True)
class Goal:
    """``limit`` is a ratio to ``peer``'s median where a peer is named, else seconds or bytes.

    What is read has no peer: its limit is a ratio to what the bucket holds.
    """

    metric: Metric
    limit: float
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    id: str
    title: str
    work: Work
    dataset: str
    goals: tuple[Goal, ...]
    tools: tuple[str, ...] = ("holdfast", "restic", "pipe")
    local: bool = False
    """To a local directory instead of the S3 server."""
    scatter_run: int = 1
    """How many neighbouring pages of B are rewritten at each of the scattered places."""
    ours: str = "holdfast"
    """Whose figures the goals are about."""

    @property
    def about_images(self) -> bool:
        """Whether engines take part."""
        return self.dataset == "I"


_MEMORY = Goal("memory", 300 * MIB)
_MEMORY_M = Goal("memory", 700 * MIB)
_READ_ONCE = Goal("read", 1.02)  # the small objects on the way to the layers are read as well, some of them twice
_DEDUPLICATING = ("holdfast", "restic")  # to the pipe everything is always new: it has no row of its own for that

# A restore stands before the changes: every tool then restores what its first backup stored.
ROWS: tuple[Row, ...] = (
    Row("startup", "start-up (--help)", "startup", "", (Goal("time", 0.3),), ("holdfast",)),
    Row(
        "backup-A", "backup A", "backup", "A",
        (Goal("time", 0.85, "pipe"), Goal("time", 0.36, "restic"), _MEMORY),
    ),
    Row("unchanged-A", "nothing changed A", "unchanged", "A", (Goal("time", 0.3, "restic"), _MEMORY), _DEDUPLICATING),
    Row(
        "restore-A", "restore A", "restore", "A",
        (Goal("time", 0.8, "pipe"), Goal("time", 0.5, "restic"), _MEMORY),
    ),
    Row(
        "backup-A-http", "backup A over HTTP", "backup", "A", (Goal("time", 1.1, "holdfast"),), ("http", "holdfast"),
        ours="http",
    ),
    Row(
        "restore-A-http", "restore A over HTTP", "restore", "A", (Goal("time", 1.1, "holdfast"),),
        ("http", "holdfast"), ours="http",
    ),
    Row(
        "changed-A", "1 % changed A", "changed", "A",
        (Goal("time", 0.4, "restic"), Goal("stored", 1.2, "restic"), _MEMORY), _DEDUPLICATING,
    ),
    Row(
        "backup-B", "backup B", "backup", "B",
        (Goal("time", 0.9, "pipe"), Goal("time", 0.6, "restic"), _MEMORY),
    ),
    Row("unchanged-B", "nothing changed B", "unchanged", "B", (Goal("time", 0.7, "restic"), _MEMORY), _DEDUPLICATING),
    Row(
        "restore-B", "restore B", "restore", "B",
        (Goal("time", 0.9, "pipe"), Goal("time", 0.8, "restic"), _MEMORY),
    ),
    Row(
        "backup-B-file", "backup B to file", "backup", "B", (Goal("time", 0.45, "restic"), _MEMORY),
        _DEDUPLICATING, local=True,
    ),
    # How far apart the scattered pages lie decides what a deduplicating program stores, so there are two rows:
    # pages one by one over all of both files, the worst there is, and places of 64 KiB, as neighbouring rows make.
    Row(
        "changed-B-pages", "1 % changed B, single pages", "changed", "B",
        (Goal("time", 0.5, "restic"), Goal("stored", 0.3, "restic"), _MEMORY), _DEDUPLICATING,
    ),
    Row(
        "changed-B-places", "1 % changed B, places of 8 pages", "changed", "B",
        (Goal("time", 0.5, "restic"), Goal("stored", 0.3, "restic"), _MEMORY), _DEDUPLICATING, scatter_run=8,
    ),
    Row("backup-M", "backup M", "backup", "M", (Goal("time", 0.6, "restic"), _MEMORY_M), _DEDUPLICATING),
    Row(
        "unchanged-M", "nothing changed M", "unchanged", "M", (Goal("time", 0.35, "restic"), _MEMORY_M),
        _DEDUPLICATING,
    ),
    # Images come last: emptying an engine deletes some thousand files (see above), and after the update the buckets
    # hold more than one image.
    Row(
        "push-I", "push I", "push", "I",
        (Goal("time", 0.4, "docker"), Goal("time", 0.85, "pipe"), _MEMORY), ("holdfast", "docker", "pipe"),
    ),
    Row("push-I-again", "push I again", "push again", "I", (Goal("time", 0.5), _MEMORY), ("holdfast", "docker")),
    Row(
        "pull-I", "pull I", "pull", "I",
        (Goal("time", 0.6, "docker"), Goal("time", 1.0, "pipe"), _MEMORY, _READ_ONCE), ("holdfast", "docker", "pipe"),
    ),
    Row(
        "pull-I-fleet", "pull I into 4 engines", "pull", "I",
        (Goal("time", 2.0, "holdfast"), _MEMORY, _READ_ONCE), ("fleet", "holdfast", "pipes"), ours="fleet",
    ),
    Row(
        "update-I", "pull I and 20 MB more", "update", "I", (Goal("time", 0.15, "whole"), _MEMORY),
        ("holdfast", "whole", "docker"),
    ),
)  # fmt: skip


def select_rows(patterns: Iterable[str]) -> list[Row]:
    """Return the rows that ``patterns`` name: a data set (A, B, M, I), a row's id, or a shell pattern for ids.

    Raises ValueError for a pattern that names none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        named = {row.id for row in ROWS if pattern == row.dataset or fnmatchcase(row.id, pattern)}
        if not named:
            raise ValueError(f"no row is called {pattern!r}; there are A, B, M, I and {', '.join(r.id for r in ROWS)}")
        chosen |= named
    return [row for row in ROWS if row.id in chosen]


@dataclass(slots=True)
class Result:
    """What one tool did in one row."""

    tool: str
    runs: list[Measured] = field(default_factory=list)
    stored_bytes: list[int] = field(default_factory=list)
    """What each run added to the bucket (or directory); empty where that is not asked."""
    read_bytes: list[int] = field(default_factory=list)
    """What each run read from the bucket, as the server counts it; empty where that is not asked."""
    held_bytes: list[int] = field(default_factory=list)
    """What was in the bucket then."""
    failure: str | None = None


@dataclass(slots=True)
class RowResult:
    """A row with each tool's runs."""

    row: Row
    results: dict[str, Result]


def attempt(result: Result, action: Callable[[], None]) -> None:
    """Do ``action``, unless the tool has failed before; where it fails, note that and go on."""
    if result.failure is not None:
        return
    try:
        action()
    except (CommandFailed, ServerFailed, OSError, subprocess.CalledProcessError, ValueError) as error:
        result.failure = str(error)
        say(f"  {result.tool}: FAILED: {error}")


def take(
    result: Result, measured: Measured, *, stored: int | None = None, read: int | None = None, held: int | None = None
) -> None:
    """Add one run to ``result`` and tell it: what it took, and in bytes what it stored, read, and could have read."""
    result.runs.append(measured)
    line = f"  {result.tool:9} {measured.wall_s:8.2f} s  cpu {measured.cpu_s:7.2f} s"
    line += f"  peak {measured.peak_rss_bytes / MIB:6.0f} MiB"
    if stored is not None:
        result.stored_bytes.append(stored)
        line += f"  stored {stored / MIB:9.2f} MiB"
    if read is not None and held is not None:
        result.read_bytes.append(read)
        result.held_bytes.append(held)
        line += f"  read {read / MIB:9.2f} of {held / MIB:.2f} MiB"
    say(line)


class _Janitor:
    """Deletes what was measured, but only when the disk would fill up otherwise, and only what has few files."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say
        self._offers: list[tuple[str, Callable[[], None]]] = []

    def offer(self, label: str, delete: Callable[[], None]) -> None:
        """Name something that may go, oldest first."""
        self._offers.append((label, delete))

    def make_room(self) -> None:
        """Delete until enough is free, or nothing is left to delete."""
        while self._offers and shutil.disk_usage(self._directory).free < _MIN_FREE_BYTES:
            label, delete = self._offers.pop(0)
            self._say(f"  (short of disk space: deleting {label})")
            delete()
            os.sync()


class Bench:
    """Measures the rows about volumes, one after the other, in one directory with one server."""

    def __init__(
        self,
        *,
        directory: Path,
        datasets: dict[str, Dataset],
        tools: dict[str, Tool],
        buckets: Buckets,
        repeat: int,
        repeat_m: int,
        env: dict[str, str],
    ) -> None:
        self._directory = directory
        self._datasets = datasets
        self._ready: set[str] = set()
        self._tools = tools
        self._buckets = buckets
        self._repeat = repeat
        self._repeat_m = repeat_m
        self._env = env
        self._janitor = _Janitor(directory, say)
        self._serial = 0
        # By tool and data set: its latest repository, and the round of changes that this holds.
        self._current: dict[tuple[str, str], tuple[Repository, int]] = {}
        self._broken: set[tuple[str, str]] = set()

    def memory_floor_bytes(self) -> int:
        """Return the peak memory that even the smallest command is charged with (see datasets)."""
        return run(single(("true",), self._env), self._directory / "logs" / "floor", cwd=self._directory).peak_rss_bytes

    def measure(self, row: Row) -> RowResult:
        """Measure one row. A tool that fails is reported in its result, and the others go on."""
        results = {name: Result(name) for name in row.tools if name in self._tools}
        say(row.title)
        if row.work == "startup":
            self._measure_startup(results)
            return RowResult(row, results)

        dataset = self._datasets[row.dataset]
        self._make_ready(dataset)
        if row.work != "backup":
            for name, result in results.items():
                attempt(result, partial(self._bring_up_to_date, name, dataset))
        for repetition in range(self._repeat_m if row.dataset == "M" else self._repeat):
            if row.work == "changed":
                dataset.change(row.scatter_run)
            for name, result in results.items():
                if result.failure is None:
                    self._janitor.make_room()
                    attempt(result, partial(self._once, row, dataset, self._tools[name], result, repetition))
        return RowResult(row, results)

    def _make_ready(self, dataset: Dataset) -> None:
        if dataset.name in self._ready:
            return
        say(f"  (data set {dataset.name})")
        if not dataset.ensure():
            dataset.warm()
        self._ready.add(dataset.name)

    def _measure_startup(self, results: dict[str, Result]) -> None:
        for name, result in results.items():
            attempt(result, partial(self._starts, self._tools[name], result))

    def _starts(self, tool: Tool, result: Result) -> None:
        if not isinstance(tool, Holdfast):
            raise TypeError(f"{tool.name} has no start of its own to measure")
        for repetition in range(max(self._repeat, _MIN_STARTS)):
            take(result, self._run(tool.help(), f"startup-{repetition}"))

    def _once(self, row: Row, dataset: Dataset, tool: Tool, result: Result, repetition: int) -> None:
        label = f"{row.id}-{repetition}-{tool.name}"
        if row.work == "restore":
            repository, _ = self._current[tool.name, dataset.name]
            target = self._directory / "restored" / label
            target.parent.mkdir(exist_ok=True)
            take(result, self._run(tool.restore(repository, dataset.path, target), label))
            if repetition == 0:
                compare(dataset.path, tool.restored(dataset.path, target))
            if dataset.name == "B":  # a handful of files: safe to delete
                self._janitor.offer(str(target), lambda: shutil.rmtree(target))
            return

        if row.work == "backup":
            repository = self._new_repository(tool, dataset, local=row.local)
        else:
            repository, _ = self._current[tool.name, dataset.name]
        before = self._size_bytes(repository)
        measured = self._run(tool.backup(repository, dataset.path), label)
        stored = self._size_bytes(repository) - before
        if not row.local:
            self._supersede(tool, dataset, repository)
        elif repository.directory is not None:
            place = repository.directory
            self._janitor.offer(str(place), lambda: shutil.rmtree(place))
        take(result, measured, stored=stored)

    def _run(self, command: Command, label: str) -> Measured:
        return run(command, self._directory / "logs" / label, cwd=REPOSITORY_ROOT)

    def _new_repository(self, tool: Tool, dataset: Dataset, *, local: bool) -> Repository:
        self._serial += 1
        label = f"{dataset.name.lower()}-{tool.name}-{self._serial}"
        cache = self._directory / "cache" / label
        if local:
            repository = Repository(None, self._directory / "local" / label, cache)
        else:
            self._buckets.create(f"bench-{label}")
            repository = Repository(f"bench-{label}", None, cache)
        tool.prepare(repository)
        return repository

    def _supersede(self, tool: Tool, dataset: Dataset, repository: Repository) -> None:
        """Note that ``repository`` holds the data set as it is now; what held it before may go."""
        old = self._current.get((tool.name, dataset.name))
        self._current[tool.name, dataset.name] = (repository, dataset.round_number)
        if old is not None and old[0].bucket not in (None, repository.bucket):
            bucket = str(old[0].bucket)
            self._janitor.offer(bucket, lambda: self._buckets.remove(bucket))

    def _bring_up_to_date(self, name: str, dataset: Dataset) -> None:
        """Back up once without measuring, where no earlier row left a backup of the data as it is now."""
        if (name, dataset.name) in self._current and self._current[name, dataset.name][1] == dataset.round_number:
            return
        tool = self._tools[name]
        say(f"  (first backup by {name})")
        found = self._current.get((name, dataset.name))
        repository = found[0] if found else self._new_repository(tool, dataset, local=False)
        self._run(tool.backup(repository, dataset.path), f"first-{dataset.name}-{name}")
        self._supersede(tool, dataset, repository)

    def _size_bytes(self, repository: Repository) -> int:
        if repository.directory is not None:
            return directory_bytes(repository.directory)
        return self._buckets.size_bytes(str(repository.bucket))


def compare(source: Path, restored: Path) -> None:
    """Assert that ``restored`` has the names, kinds, modes, times and contents of ``source``, and no others.

    Raises ValueError that names the first difference.
    """
    seen = 0
    for parent, directories, names in os.walk(source):
        other_parent = os.path.join(restored, os.path.relpath(parent, source))
        if sorted(os.listdir(other_parent)) != sorted([*directories, *names]):
            raise ValueError(f"restored wrongly: the entries of {other_parent}")
        for name in [*directories, *names]:
            path, other = os.path.join(parent, name), os.path.join(other_parent, name)
            one, two = os.lstat(path), os.lstat(other)
            if one.st_mode != two.st_mode or int(one.st_mtime) != int(two.st_mtime):
                raise ValueError(f"restored wrongly: mode or time of {other}")
            if stat.S_ISREG(one.st_mode) and not filecmp.cmp(path, other, shallow=False):
                raise ValueError(f"restored wrongly: the content of {other}")
            seen += 1
            if seen % 1000 == 0:
                filecmp.clear_cache()
    filecmp.clear_cache()


def say(line: str) -> None:
    """Tell how far the run is (standard error)."""
    print(line, file=sys.stderr, flush=True)
