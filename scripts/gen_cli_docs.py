"""Writes docs/reference/cli.md from the commands' own --help. With --check it only says whether that is up to date."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTH = 100
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"
HEAD = """\
# Command reference

<!-- Written by `make docs` from the commands themselves: change their help texts, not this page. -->
"""

# typer and rich read these when they are imported: the page must not depend on who generates it, or where.
for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE"):
    os.environ.pop(name, None)
os.environ.update(TERMINAL_WIDTH=str(WIDTH), COLUMNS=str(WIDTH), NO_COLOR="1", TERM="dumb", LC_ALL="C.UTF-8")

from typer.main import get_command  # noqa: E402  after the environment above
from typer.testing import CliRunner  # noqa: E402

from holdfast.cli.main import app  # noqa: E402


def _paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:  # noqa: ANN401  click's or typer's own
    """The command and everything below it, in the order of --help; hidden ones stay hidden."""
    yield path
    for name, sub in getattr(command, "commands", {}).items():
        if not sub.hidden:
            yield from _paths(sub, (*path, name))


def _section(path: tuple[str, ...]) -> str:
    result = CliRunner().invoke(app, [*path, "--help"], prog_name="holdfast", terminal_width=WIDTH)
    if result.exit_code:
        sys.exit(f"holdfast {' '.join(path)} --help failed: {result.output}")
    text = "\n".join(_readable(line).rstrip() for line in result.output.strip().splitlines())
    return f"\n## {' '.join(('holdfast', *path))}\n\n```text\n{text}\n```\n"


def _readable(line: str) -> str:
    """Write arguments as manuals do: typer wraps a metavar once more, and tells each one's type."""
    if line.startswith("Usage: "):
        line = re.sub(r"\{([A-Z@:|\[\]]+)\}", r"\1", line)
        return re.sub(r"\[\[([A-Z@]+)\]\]", r"[\1]", line)
    return re.sub(r"(?<=^  )(\S+)( <(?:str|list\[str\])>)", lambda found: found[1] + " " * len(found[2]), line)


def main() -> None:
    """Write the page, or compare it."""
    page = HEAD + "".join(map(_section, _paths(get_command(app))))
    if "--check" not in sys.argv[1:]:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
        sys.exit("docs/reference/cli.md is out of date: run `make docs`")


if __name__ == "__main__":
    main()
