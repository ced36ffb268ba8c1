"""The results as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench.datasets import MIB
from bench.rows import Goal, Result, Row, RowResult


def _values(result: Result, metric: str) -> list[float]:
    if metric == "time":
        return [each.wall_s for each in result.runs]
    if metric == "stored":
        return [float(each) for each in result.stored_bytes]
    if metric == "read":
        return [read / held for read, held in zip(result.read_bytes, result.held_bytes, strict=True)]
    return [float(each.peak_rss_bytes) for each in result.runs]


def _figure(result: Result, metric: str) -> float | None:
    """Return the figure that counts, None when there is none: the median, but the largest of memory and of reads."""
    values = _values(result, metric)
    if result.failure is not None or not values:
        return None
    return max(values) if metric in {"memory", "read"} else median(values)


def _ratio(ours: Result | None, peer: Result | None, metric: str) -> float | None:
    one = _figure(ours, metric) if ours else None
    other = _figure(peer, metric) if peer else None
    return one / other if one is not None and other else None


def judge(goal: Goal, name: str, results: dict[str, Result]) -> tuple[float | None, bool | None]:
    """Return the value of a goal for ``name`` (a ratio, seconds or bytes) and whether it is met.

    Both are None where it was not measured.
    """
    ours = results.get(name)
    if goal.peer is not None:
        value = _ratio(ours, results.get(goal.peer), goal.metric)
    else:
        value = _figure(ours, goal.metric) if ours else None
    return value, None if value is None else value <= goal.limit


def as_json(
    rows: Iterable[RowResult], *, versions: dict[str, str], settings: dict[str, Any], floor_bytes: int
) -> dict[str, Any]:
    """Return everything measured, in seconds and bytes, with the machine and the programs it was measured on."""
    return {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions,
        "settings": settings,
        "memory_floor_bytes": floor_bytes,
        "rows": [_row_json(each) for each in rows],
    }


def _row_json(row_result: RowResult) -> dict[str, Any]:
    goals = []
    for goal in row_result.row.goals:
        value, met = judge(goal, row_result.row.ours, row_result.results)
        goals.append({"metric": goal.metric, "peer": goal.peer, "limit": goal.limit, "value": value, "met": met})
    return {
        "id": row_result.row.id,
        "title": row_result.row.title,
        "tools": {name: _tool_json(result) for name, result in row_result.results.items()},
        "goals": goals,
    }


def _tool_json(result: Result) -> dict[str, Any]:
    return {
        "wall_s": [round(each.wall_s, 4) for each in result.runs],
        "wall_median_s": _figure(result, "time"),
        "cpu_s": [round(each.cpu_s, 4) for each in result.runs],
        "peak_rss_bytes": [each.peak_rss_bytes for each in result.runs],
        "stored_bytes": result.stored_bytes,
        "read_bytes": result.read_bytes,
        "held_bytes": result.held_bytes,
        "failure": result.failure,
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, memory, kernel, load at this moment."""
    return {
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "load_average": list(os.getloadavg()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def as_table(rows: Iterable[RowResult]) -> str:
    """Return a Markdown table: a line for each row and tool, the goals on the lines of the peers they name."""
    header = ("row", "tool", "time", "cpu", "peak memory", "stored", "read", "ours / its time", "stored", "goal", "")
    lines: list[tuple[str, ...]] = [header]
    for row_result in rows:
        title = row_result.row.title
        for name in sorted(row_result.results, key=row_result.row.tools.index):
            lines.append(_line(title, name, row_result))
            title = ""
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _line(title: str, name: str, row_result: RowResult) -> tuple[str, ...]:
    results, ours = row_result.results, row_result.row.ours
    result = results[name]
    if result.failure is not None:
        return (title, name, "failed", "", "", "", "", "", "", "", "")
    goals, verdicts = _goals(row_result.row, results, None if name == ours else name)
    time, stored = _ratio(results.get(ours), result, "time"), None
    if row_result.row.work != "startup":
        stored = _ratio(results.get(ours), result, "stored")
    peer = name != ours
    return (
        title,
        name,
        _spread(_values(result, "time"), 1, "s"),
        f"{median(each.cpu_s for each in result.runs):.2f} s",
        f"{max(each.peak_rss_bytes for each in result.runs) / MIB:.0f} MiB",
        _spread(_values(result, "stored"), MIB, "MiB"),
        _spread([float(each) for each in result.read_bytes], MIB, "MiB"),
        f"{time:.2f}" if peer and time is not None else "",
        f"{stored:.2f}" if peer and stored is not None else "",
        goals,
        verdicts,
    )


def _goals(row: Row, results: dict[str, Result], peer: str | None) -> tuple[str, str]:
    texts, verdicts = [], []
    for goal in row.goals:
        if goal.peer != peer:
            continue
        limit = _absolute(goal) if peer is None else f"{goal.limit:g} × {goal.metric}"  # noqa: RUF001 -- a ratio
        _, met = judge(goal, row.ours, results)
        texts.append(f"≤ {limit}")
        verdicts.append("not measured" if met is None else "met" if met else "MISSED")
    return ", ".join(texts), ", ".join(verdicts)


def _absolute(goal: Goal) -> str:
    if goal.metric == "time":
        return f"{goal.limit:g} s"
    if goal.metric == "read":
        return f"{goal.limit:g} × the bucket read"  # noqa: RUF001 -- a ratio
    return f"{goal.limit / MIB:.0f} MiB {goal.metric}"


def _spread(values: list[float], unit: float, name: str) -> str:
    """Return the median, and the smallest and largest where there are several."""
    if not values:
        return ""
    text = f"{median(values) / unit:.2f} {name}"
    if len(values) > 1:
        text += f" [{min(values) / unit:.2f}..{max(values) / unit:.2f}]"
    return text
