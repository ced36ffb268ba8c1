"""The pages of the documentation, and the blocks of commands that they mark as ones to be run."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
RUN = "<!-- run -->"
RUN_WITH_DOCKER = "<!-- run: docker -->"
MARKS = (RUN, RUN_WITH_DOCKER)


def page_name(page):
    """What a page is called in a test's name."""
    return str(page.relative_to(ROOT))


def blocks(page, mark):
    """The commands below each of these marks."""
    return re.findall(
        rf"^{re.escape(mark)}\n```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


NEEDS_DOCKER = [page for page in PAGES if blocks(page, RUN_WITH_DOCKER)]


def run_commands(script, work, env, within_s):
    """Run a page's commands in a folder, and end what they leave running; their exit code and their output."""
    output = work.with_name("output")
    with output.open("w") as out:
        shell = subprocess.Popen(
            [shutil.which("bash") or "/bin/sh", "-eu", "-c", script],
            cwd=work,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(within_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    return code, output.read_text()
