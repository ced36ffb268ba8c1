"""Running a command, or several joined by pipes, and what it took: wall time, processor time, peak memory.

Processor time and peak memory come from ``wait4`` and hold for the process and every descendant it waited for.
Peak memory of a process tree is the largest of its processes; of a pipe it is the sum over its stages.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

TIMEOUT_S = 3600.0
_TAIL_BYTES = 2000


class CommandFailed(Exception):
    """A command ended with an error, or took too long. The message names it and quotes the end of its output."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command (a single stage) or a pipe (several), with its whole environment."""

    stages: tuple[tuple[str, ...], ...]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run took."""

    wall_s: float
    cpu_s: float
    """User and system time together."""
    peak_rss_bytes: int


def single(argv: Sequence[str], env: Mapping[str, str]) -> Command:
    """Return a command without pipes."""
    return Command((tuple(argv),), env)


def run(command: Command, log: Path, *, cwd: Path, timeout_s: float = TIMEOUT_S) -> Measured:
    """Run ``command`` to its end and measure it. Standard output and errors go to ``log`` (.out, .err).

    Everything written before is flushed to the disk first, outside the measured time, so that nobody pays
    for another's write-back.

    Raises CommandFailed when any stage fails or ``timeout_s`` passes.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    out_path, err_path = log.with_suffix(".out"), log.with_suffix(".err")
    processes: list[subprocess.Popen[bytes]] = []
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _kill(processes)

    timer = threading.Timer(timeout_s, expire)
    os.sync()
    with out_path.open("wb") as out, err_path.open("wb") as err:
        timer.start()
        began = time.perf_counter()
        try:
            _start(command, processes, cwd, out, err)
            usages = [_wait(process) for process in processes]
            wall_s = time.perf_counter() - began
        except BaseException:
            _kill(processes)
            for process in processes:
                process.wait()
            raise
        finally:
            timer.cancel()

    if expired.is_set():
        raise CommandFailed(f"{_shown(command)}: not done after {timeout_s:.0f} s")
    failed = [process.returncode for process in processes if process.returncode != 0]
    if failed:
        raise CommandFailed(f"{_shown(command)}: exit code {failed[-1]}\n{_tail(err_path)}")
    return Measured(
        wall_s=wall_s,
        cpu_s=sum(usage.ru_utime + usage.ru_stime for usage in usages),
        peak_rss_bytes=sum(usage.ru_maxrss for usage in usages) * 1024,
    )


def _start(command: Command, processes: list[subprocess.Popen[bytes]], cwd: Path, out: BinaryIO, err: BinaryIO) -> None:
    """Start every stage, each joined to the one before, and note it in ``processes`` as soon as it runs."""
    upstream: IO[bytes] | None = None
    for position, argv in enumerate(command.stages):
        last = position == len(command.stages) - 1
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if upstream is None else upstream,
            stdout=out if last else subprocess.PIPE,
            stderr=err,
            env=dict(command.env),
            cwd=cwd,
            start_new_session=True,
        )
        processes.append(process)
        if upstream is not None:
            upstream.close()  # ours: only the stages hold the pipe, so a dead reader ends its writer
        upstream = process.stdout


def _wait(process: subprocess.Popen[bytes]) -> resource.struct_rusage:
    """Wait for the end of ``process``, and return what it and the children it waited for have used."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill every stage that still runs; each leads a process group of its own, and its children go with it."""
    for process in processes:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace").strip()


def _shown(command: Command) -> str:
    return " | ".join(" ".join(stage) for stage in command.stages)
