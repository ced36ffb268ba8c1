"""``python -m bench``: measure, print the table, write the JSON."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TypeVar

from bench import report
from bench.datasets import Dataset
from bench.engines import Engines
from bench.image_peers import IMAGE_TOOLS, ImageTool
from bench.image_rows import ImageBench
from bench.images import ImageSet
from bench.peers import TOOLS, Buckets, Tool, clean_environment
from bench.rows import ROWS, Bench, Row, RowResult, say, select_rows
from bench.servers import SeaweedFS, ServerFailed, find_weed

_DELETED_STAMP = ".deleted"
_DELETED_WAIT_S = 900.0  # how long ext4 was seen to avoid the inodes of deleted files, and some more
_BUSY_LOAD = 0.7

T = TypeVar("T", Tool, ImageTool)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be above zero")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure holdfast beside its peers on this machine. Exit code 1 when a tool failed or is missing.",
    )
    rows = ", ".join(row.id for row in ROWS)
    parser.add_argument(
        "--rows", type=_names, default=["*"], help=f"data sets (A, B, M, I) or rows, by commas, * allowed: {rows}"
    )
    parser.add_argument("--repeat", type=_count, default=3, help="runs of each row; the median counts (3)")
    parser.add_argument("--repeat-m", type=_count, default=1, help="runs of the rows of M, which are long (1)")
    parser.add_argument("--workdir", type=Path, help="where data and results lie; data sets in it are kept and reused")
    parser.add_argument("--json", type=Path, dest="json_path", metavar="FILE", help="write everything measured here")
    parser.add_argument("--scale", type=_positive, default=1.0, help="size of the data sets (1.0 is the full size)")
    peers = ["restic", "pipe", "pipes", "docker"]
    parser.add_argument("--peers", type=_names, default=peers, help=f"some of {', '.join(peers)} (all)")
    parser.add_argument("--tools", type=_names, help="all tools to run, instead of holdfast and --peers")
    parser.add_argument("--keep", action="store_true", help="delete nothing at the end: repositories, restores, logs")
    return parser


def _used(rows: list[Row], names: list[str], *, images: bool) -> list[str]:
    """Return which of ``names`` the rows about images, or the others, ask for."""
    asked = {name for row in rows if row.about_images == images for name in row.tools}
    return [name for name in (IMAGE_TOOLS if images else TOOLS) if name in asked and name in names]


def _leave_out(tools: dict[str, T], versions: dict[str, str]) -> list[str]:
    """Note the versions of all programs, drop from ``tools`` what does not run, and return the names dropped."""
    missing = []
    for name, tool in list(tools.items()):
        try:
            versions.update(tool.version())
        except (OSError, subprocess.CalledProcessError) as error:
            say(f"{name} does not run, left out: {error}")
            missing.append(name)
            del tools[name]
    return missing


def _server_version() -> dict[str, str]:
    weed = find_weed()
    if weed is not None:
        with suppress(OSError, subprocess.CalledProcessError):
            done = subprocess.run((weed, "version"), capture_output=True, text=True, check=True)
            return {"seaweedfs": next(iter(done.stdout.splitlines()), "")}
    return {}


def _warn(workdir: Path) -> None:
    """Say what will disturb the figures."""
    load = os.getloadavg()[0]
    if load > _BUSY_LOAD:
        say(f"warning: the load average is {load:.1f}; something else uses this machine")
    with suppress(OSError):
        age_s = time.time() - (workdir / _DELETED_STAMP).stat().st_mtime
        if age_s < _DELETED_WAIT_S:
            say(
                f"warning: an earlier run deleted its results {age_s:.0f} s ago; "
                "on ext4, whatever creates many files may be several times slower for some minutes"
            )


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """Run the benchmark as the command line says; return the exit code."""
    parser = _parser()
    options = parser.parse_args()
    names = options.tools or ["holdfast", "http", "whole", "fleet", *options.peers]
    known = TOOLS | IMAGE_TOOLS
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no tool is called {', '.join(unknown)}; there are {', '.join(known)}")
    try:
        rows = select_rows(options.rows)
    except ValueError as error:
        parser.error(str(error))

    # Ended by a signal, the server must be ended too: let the exception unwind.
    signal.signal(signal.SIGTERM, _stop)
    workdir = (options.workdir or Path(tempfile.mkdtemp(prefix="holdfast-bench-"))).resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=workdir))
    _warn(workdir)
    try:
        return _measure(options, names, rows, workdir, directory)
    except ServerFailed as error:
        say(f"error: {error}")
        return 1
    finally:
        if options.keep:
            say(f"kept: {directory}")
        else:
            shutil.rmtree(directory if options.workdir else workdir, ignore_errors=True)
            if options.workdir:
                (workdir / _DELETED_STAMP).touch()


def _measure(options: argparse.Namespace, names: list[str], rows: list[Row], workdir: Path, directory: Path) -> int:
    home = directory / "home"
    home.mkdir()
    env = clean_environment(home)
    data = workdir / f"data-{options.scale:g}"
    datasets = {name: Dataset(name, data, options.scale) for name in ("A", "B", "M")}
    settings = {"repeat": options.repeat, "repeat_m": options.repeat_m, "scale": options.scale}
    done: list[RowResult] = []
    with SeaweedFS(directory / "server", env) as server:
        tools = {name: TOOLS[name](env, server.endpoint) for name in _used(rows, names, images=False)}
        image_tools = {name: IMAGE_TOOLS[name](env, server.endpoint) for name in _used(rows, names, images=True)}
        versions = {"python": sys.version.split()[0], **_server_version()}
        missing = _leave_out(tools, versions) + _leave_out(image_tools, versions)
        rows = [row for row in rows if set(row.tools) & set(image_tools if row.about_images else tools)]
        say(", ".join(f"{name}: {version}" for name, version in versions.items()))
        buckets = Buckets(env, server.endpoint)
        bench = Bench(
            directory=directory,
            datasets=datasets,
            tools=tools,
            buckets=buckets,
            repeat=options.repeat,
            repeat_m=options.repeat_m,
            env=env,
        )
        image_bench = ImageBench(
            directory=directory,
            images=ImageSet(data, options.scale),
            tools=image_tools,
            engines=Engines(directory / "engines", env),
            server=server,
            buckets=buckets,
            repeat=options.repeat,
        )
        floor_bytes = bench.memory_floor_bytes()
        try:
            for row in rows:
                measured = image_bench.measure(row) if row.about_images else bench.measure(row)
                done.append(measured)  # one by one: what is done must be there when a row raises
        finally:
            image_bench.close()
            for tool in tools.values():
                tool.close()
            # Whatever was measured is worth having, also when the run is cut short.
            if done:
                print(report.as_table(done))
                if options.json_path is not None:
                    document = report.as_json(done, versions=versions, settings=settings, floor_bytes=floor_bytes)
                    options.json_path.write_text(json.dumps(document, indent=2) + "\n")
    failed = any(result.failure for each in done for result in each.results.values())
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
