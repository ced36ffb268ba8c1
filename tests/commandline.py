"""The command ``holdfast`` as a user runs it: a process, its exit code, and what it printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import SECRET_KEY

COMMAND = [sys.executable, "-m", "holdfast"]
Argument = str | bytes | Path


@dataclass(frozen=True)
class Ran:
    """What came of a command."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def json(self) -> Any:
        """The one JSON object on stdout; fails where there is anything else."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        assert self.text.endswith("\n")
        assert len(self.lines) == 1
        return document


@dataclass(frozen=True)
class Holdfast:
    """The command with a store. No run may show a traceback or a secret."""

    store: str
    env: Mapping[str, str] | None = None
    wrapper: tuple[str, ...] = ()

    def run(self, *arguments: Argument, code: int = 0, **options: Any) -> Ran:
        """Run to the end and check the exit code."""
        env = {**os.environ, "HOLDFAST_STORE": self.store, **(self.env or {}), **options.pop("env", {})}
        done = subprocess.run(
            [*self.wrapper, *COMMAND, *arguments], capture_output=True, env=env, timeout=100, check=False, **options
        )
        ran = Ran(done.returncode, done.stdout, done.stderr.decode(errors="replace"))
        assert ran.code == code, f"{arguments} ended with {ran.code}\n{ran.err}\n{ran.out[-2000:]!r}"
        if "--debug" not in arguments:
            assert "Traceback" not in ran.err
        for secret in (SECRET_KEY, env.get("AWS_SECRET_ACCESS_KEY") or SECRET_KEY):
            assert secret not in ran.err
            assert secret.encode() not in ran.out
        if code not in (0, 3):
            assert "error: " in ran.err or "Usage: " in ran.err
        return ran

    def start(self, *arguments: Argument, **options: Any) -> subprocess.Popen[bytes]:
        """Start it and leave it running; the caller ends it."""
        env = {**os.environ, "HOLDFAST_STORE": self.store, **(self.env or {}), **options.pop("env", {})}
        return subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, **options
        )

    def backup(self, source: Argument, *arguments: Argument, code: int = 0, **options: Any) -> Any:
        """Back up and give the result document."""
        return self.run("backup", source, "--json", *arguments, code=code, **options).json

    def restore(self, name: Argument, *arguments: Argument, code: int = 0, **options: Any) -> Any:
        """Restore and give the result document."""
        return self.run("restore", name, "--json", *arguments, code=code, **options).json
