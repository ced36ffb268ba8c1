"""Measuring the rows about images: pushes out of one engine, pulls into others.

An engine is emptied after every pull, outside of the measured time, and what came into it must have the id of what was
pushed. Buckets have a handful of objects here, so they go as soon as nothing needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.datasets import REPOSITORY_ROOT
from bench.engines import Engine, Engines
from bench.image_peers import ImageTool
from bench.images import FIRST, SECOND, ImageSet
from bench.measure import Command, Measured, run
from bench.peers import Buckets, Repository
from bench.rows import Result, Row, RowResult, attempt, say, take
from bench.servers import SeaweedFS


class ImageBench:
    """Measures rows, one after the other, with the engines and the server of one run."""

    def __init__(
        self,
        *,
        directory: Path,
        images: ImageSet,
        tools: dict[str, ImageTool],
        engines: Engines,
        server: SeaweedFS,
        buckets: Buckets,
        repeat: int,
    ) -> None:
        self._directory = directory
        self._images = images
        self._tools = tools
        self._engines = engines
        self._server = server
        self._buckets = buckets
        self._repeat = repeat
        self._serial = 0
        # By program: the bucket it pushed to last, and the images that are in it.
        self._current: dict[str, tuple[Repository, set[str]]] = {}

    def measure(self, row: Row) -> RowResult:
        """Measure one row. A tool that fails is reported in its result, and the others go on."""
        results = {name: Result(name) for name in row.tools if name in self._tools}
        say(row.title)
        for result in results.values():
            attempt(result, self._make_ready)
        once = self._work(row)
        for repetition in range(self._repeat):
            for name, result in results.items():
                if result.failure is None:
                    attempt(result, partial(once, self._tools[name], result, f"{row.id}-{repetition}-{name}"))
        return RowResult(row, results)

    def close(self) -> None:
        """End what the tools have begun, and the engines."""
        for tool in self._tools.values():
            tool.close()
        self._engines.close()

    def _work(self, row: Row) -> Callable[[ImageTool, Result, str], None]:
        match row.work:
            case "push":
                return self._push_new
            case "push again":
                return self._push_again
            case "pull":
                return partial(self._pull, FIRST)
            case "update":
                return partial(self._pull, SECOND)
            case _:
                raise ValueError(f"{row.id}: no work for images: {row.work}")

    def _make_ready(self) -> None:
        if not self._images.ids:
            say("  (data set I)")
            self._images.ensure(self._engines.source())

    def _push_new(self, tool: ImageTool, result: Result, label: str) -> None:
        self._forget(tool)
        repository, there = self._bucket_of(tool)
        measured = self._run(tool.push(repository, self._engines.source(), FIRST), label)
        there.add(FIRST)
        take(result, measured, stored=self._buckets.size_bytes(str(repository.bucket)))

    def _push_again(self, tool: ImageTool, result: Result, label: str) -> None:
        repository = self._pushed(tool, FIRST)
        before = self._buckets.size_bytes(str(repository.bucket))
        measured = self._run(tool.push(repository, self._engines.source(), FIRST), label)
        take(result, measured, stored=self._buckets.size_bytes(str(repository.bucket)) - before)

    def _pull(self, image: str, tool: ImageTool, result: Result, label: str) -> None:
        repository = self._pushed(tool, FIRST)
        if image != FIRST:
            self._pushed(tool, image)
        targets = self._engines.targets(tool.engines)
        # A cache of its own: these engines' hosts have never seen the bucket.
        repository = replace(repository, cache=self._directory / "cache" / label)
        repository.cache.mkdir(parents=True)
        try:
            if image != FIRST and not tool.from_nothing:
                self._run(tool.pull(repository, targets, FIRST), f"{label}-first")
            before = self._server.sent_bytes(str(repository.bucket))
            measured = self._run(tool.pull(repository, targets, image), label)
            read = self._server.sent_bytes(str(repository.bucket)) - before
            self._check(targets, image)
        finally:
            for target in targets:
                target.clear()
        take(result, measured, read=read, held=self._buckets.size_bytes(str(repository.bucket)))

    def _check(self, targets: list[Engine], image: str) -> None:
        """Assert that all ``targets`` have exactly the image that was pushed. Raises CommandFailed where not."""
        for target in targets:
            target.image_id(self._images.ids[image])

    def _pushed(self, tool: ImageTool, image: str) -> Repository:
        """Return the bucket of the tool's program, with ``image`` in it: pushed now, unmeasured, if it is not."""
        repository, there = self._bucket_of(tool)
        if image not in there:
            say(f"  (first push of {image} by {tool.program})")
            self._run(self._tool(tool.program).push(repository, self._engines.source(), image), f"first-{tool.program}")
            there.add(image)
        return repository

    def _tool(self, program: str) -> ImageTool:
        """Return the one tool of ``program`` that prepares its buckets and pushes to them."""
        return next(tool for tool in self._tools.values() if tool.program == program)

    def _bucket_of(self, tool: ImageTool) -> tuple[Repository, set[str]]:
        """Return the bucket of the tool's program, and what is in it: a new one, and nothing, if it has none."""
        if tool.program not in self._current:
            self._serial += 1
            label = f"i-{tool.program}-{self._serial}"
            repository = Repository(f"bench-{label}", None, self._directory / "cache" / label)
            repository.cache.mkdir(parents=True)
            self._buckets.create(f"bench-{label}")
            self._tool(tool.program).prepare(repository, self._engines.source())
            self._current[tool.program] = (repository, set())
        return self._current[tool.program]

    def _forget(self, tool: ImageTool) -> None:
        """Remove what the tool's program has pushed before."""
        if tool.program in self._current:
            repository, _ = self._current.pop(tool.program)
            self._tool(tool.program).drop(repository)
            self._buckets.remove(str(repository.bucket))

    def _run(self, command: Command, label: str) -> Measured:
        return run(command, self._directory / "logs" / label, cwd=REPOSITORY_ROOT)
