"""What the documentation tells a user to run, runs: each page's marked blocks, in order, in one shell."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN_TEST = "recover-without-holdfast.md"  # needs a store to recover from: its own test makes one
BLOCK = re.compile(r"^<!-- run -->\n```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARK = "<!-- run -->"
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)?(?:#([^)\s]+))?\)")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TIMEOUT_S = 60


def _name(page):
    return str(page.relative_to(ROOT))


def _blocks(page):
    return BLOCK.findall(page.read_text(encoding="utf-8"))


RUN = [page for page in PAGES if page.name != OWN_TEST and _blocks(page)]


def test_there_are_pages_to_run():
    assert {"README.md", "docs/tutorial/first-backup.md", "docs/howto/restore.md"} <= set(map(_name, RUN))


@pytest.mark.parametrize("page", RUN, ids=_name)
def test_the_commands_of_a_page_run(page, tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "holdfast").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m holdfast "$@"\n')
    (commands / "holdfast").chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()

    ran = subprocess.run(
        [shutil.which("bash") or "/bin/sh", "-eu", "-c", "\n".join(_blocks(page))],
        cwd=work,
        env={**os.environ, "PATH": f"{commands}:{os.environ.get('PATH', os.defpath)}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout
    assert "Traceback" not in ran.stdout


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_mark_has_its_block(page):
    text = page.read_text(encoding="utf-8")

    assert sum(line == MARK for line in text.splitlines()) == len(BLOCK.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_within_the_documentation_lead_somewhere(page):
    broken = []
    for target, anchor in LINK.findall(_without_code(page.read_text(encoding="utf-8"))):
        if ":" in target:
            continue
        there = page.parent / target if target else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in _anchors(there)):
            broken.append(f"{target}#{anchor}" if anchor else target)

    assert not broken


def _without_code(text):
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def _anchors(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
