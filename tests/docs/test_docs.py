"""What the documentation tells a user to run, runs: each page's marked blocks, in order, in one shell."""

import os
import re
import sys

import pytest

from pages import MARKS, PAGES, RUN, blocks, page_name, run_commands
from servers import free_ports

OWN_TEST = "recover-without-holdfast.md"  # needs a store to recover from: its own test makes one
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)?(?:#([^)\s]+))?\)")
TIMEOUT_S = 60
DEFAULT_ADDRESS = "127.0.0.1:8080"  # of the server on the pages; here it takes a free port


RUNNABLE = [page for page in PAGES if page.name != OWN_TEST and blocks(page, RUN)]


def test_there_are_pages_to_run():
    assert {"README.md", "docs/tutorial/first-backup.md", "docs/howto/restore.md"} <= set(map(page_name, RUNNABLE))


@pytest.mark.parametrize("page", RUNNABLE, ids=page_name)
def test_the_commands_of_a_page_run(page, tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "holdfast").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m holdfast "$@"\n')
    (commands / "holdfast").chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    address = f"127.0.0.1:{free_ports(1)[0]}"

    script = "\n".join(blocks(page, RUN)).replace(DEFAULT_ADDRESS, address)
    path = f"{commands}:{os.environ.get('PATH', os.defpath)}"
    env = {**os.environ, "PATH": path, "HOLDFAST_PERSIST_LISTEN": address}
    code, output = run_commands(script, work, env, TIMEOUT_S)

    assert code == 0, output
    assert "Traceback" not in output


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_mark_has_its_block(page, mark):
    lines = page.read_text(encoding="utf-8").splitlines()

    assert lines.count(mark) == len(blocks(page, mark))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
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
