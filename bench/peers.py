"""The programs that are measured: holdfast and its peers, all told to do the same work.

``holdfast``  this project, by the running Python.
``http``      the same work asked of `holdfast serve` by curl. The server's start is not measured.
``restic``    with its default settings and a cache of its own per repository. RESTIC names the program.
``pipe``      ``tar | zstd -3 -T2 | rclone rcat`` and back: what one would write in a shell. It has no notion of
              what it stored before.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.datasets import REPOSITORY_ROOT
from bench.measure import Command, single
from bench.servers import (
    ACCESS_KEY,
    REGION,
    SECRET_KEY,
    free_port,
    rclone_environment,
    rclone_program,
    wait_until_answered,
)

_RESTIC_PASSWORD = "bench"  # noqa: S105 -- of a repository that lives as long as the run
_OWN_VARIABLES = ("AWS_", "RESTIC_", "RCLONE_", "HOLDFAST_", "S3_", "WEED_", "XDG_", "DOCKER_", "REGISTRY_")


def clean_environment(home: Path) -> dict[str, str]:
    """Return this process's environment without what steers the programs, and with ``home`` as HOME."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OWN_VARIABLES) and not name.lower().endswith("_proxy")
    }
    return {**env, "HOME": str(home), "LC_ALL": "C.UTF-8", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@dataclass(frozen=True, slots=True)
class Repository:
    """A place to back up to, a bucket or a directory, and the cache that belongs to it."""

    bucket: str | None
    directory: Path | None
    cache: Path


class Tool(ABC):
    """One program (or pipe) under measurement."""

    name: ClassVar[str]

    def __init__(self, env: Mapping[str, str], endpoint: str) -> None:
        self._env = dict(env)
        self._endpoint = endpoint

    @abstractmethod
    def version(self) -> dict[str, str]:
        """Return the version of each program it uses.

        Raises OSError or CalledProcessError when one is missing or does not run.
        """

    def prepare(self, repository: Repository) -> None:
        """Make an empty repository, outside of any measured time."""
        repository.cache.mkdir(parents=True)
        if repository.directory is not None:
            repository.directory.mkdir(parents=True)

    @abstractmethod
    def backup(self, repository: Repository, source: Path) -> Command:
        """Return the command that backs ``source`` up."""

    @abstractmethod
    def restore(self, repository: Repository, source: Path, target: Path) -> Command:
        """Return the command that restores the newest backup of ``source`` into ``target``, which is new."""

    def restored(self, source: Path, target: Path) -> Path:  # noqa: ARG002 -- part of the interface
        """Return where the content of ``source`` lies after a restore into ``target``."""
        return target

    def close(self) -> None:  # noqa: B027 -- most have nothing to end
        """End what :meth:`prepare` began."""


class Holdfast(Tool):
    """The project itself."""

    name = "holdfast"

    def _environment(self, repository: Repository | None) -> dict[str, str]:
        return holdfast_environment(self._env, repository)

    def _store(self, repository: Repository) -> str:
        if repository.directory is not None:
            return repository.directory.as_uri()
        return store_url(self._endpoint, str(repository.bucket))

    def version(self) -> dict[str, str]:
        return {"holdfast": holdfast_version(self._env)}

    def backup(self, repository: Repository, source: Path) -> Command:
        argv = holdfast_argv("backup", str(source), "--store", self._store(repository), "--json")
        return single(argv, self._environment(repository))

    def restore(self, repository: Repository, source: Path, target: Path) -> Command:
        arguments = ("restore", str(source), "--store", self._store(repository), "--target", str(target), "--json")
        return single(holdfast_argv(*arguments), self._environment(repository))

    def help(self) -> Command:
        """Return the command that shows what can be done: the least a start takes."""
        return single(holdfast_argv("--help"), self._environment(None))


class Http(Holdfast):
    """The project's server, asked by curl.

    A path is saved and restored where it is. So each repository has a symlink that stands for the data set, and is
    pointed at the new directory before a restore.
    """

    name = "http"

    def __init__(self, env: Mapping[str, str], endpoint: str) -> None:
        super().__init__(env, endpoint)
        self._servers: dict[Path, tuple[subprocess.Popen[bytes], int]] = {}

    def version(self) -> dict[str, str]:
        return {"curl": first_line(("curl", "--version"), self._env)}

    def prepare(self, repository: Repository) -> None:
        super().prepare(repository)
        port = free_port()
        env = {
            **self._environment(repository),
            "HOLDFAST_STORE": self._store(repository),
            "HOLDFAST_PERSIST_ROOTS": "/",
            "HOLDFAST_PERSIST_LISTEN": f"127.0.0.1:{port}",
        }
        with (repository.cache / "serve.log").open("wb") as log:
            server = subprocess.Popen(holdfast_argv("serve"), env=env, stdout=log, stderr=log, cwd=REPOSITORY_ROOT)
        self._servers[repository.cache] = (server, port)
        wait_until_answered(f"http://127.0.0.1:{port}/-/health", server)

    def backup(self, repository: Repository, source: Path) -> Command:
        return self._asked("GET", repository, source)

    def restore(self, repository: Repository, source: Path, target: Path) -> Command:  # noqa: ARG002 -- by its name
        target.mkdir(parents=True)
        return self._asked("PUT", repository, target)

    def close(self) -> None:
        for server, _ in self._servers.values():
            server.terminate()
        for server, _ in self._servers.values():
            server.wait()

    def _asked(self, method: str, repository: Repository, place: Path) -> Command:
        stand_in = repository.cache / "volume"
        stand_in.unlink(missing_ok=True)
        stand_in.symlink_to(place)
        url = f"http://127.0.0.1:{self._servers[repository.cache][1]}{stand_in}"
        return single(("curl", "-sSf", "-X", method, url), self._env)


class Restic(Tool):
    """restic with its defaults."""

    name = "restic"

    def _argv(self, *arguments: str) -> list[str]:
        return [os.environ.get("RESTIC") or "restic", *arguments]

    def _environment(self, repository: Repository) -> dict[str, str]:
        place = repository.directory or f"s3:{self._endpoint}/{repository.bucket}"
        return {
            **self._env,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "RESTIC_REPOSITORY": str(place),
            "RESTIC_PASSWORD": _RESTIC_PASSWORD,
            "RESTIC_CACHE_DIR": str(repository.cache),
        }

    def version(self) -> dict[str, str]:
        return {"restic": first_line(self._argv("version"), self._env)}

    def prepare(self, repository: Repository) -> None:
        super().prepare(repository)
        env = self._environment(repository)
        subprocess.run(self._argv("init"), env=env, check=True, capture_output=True)

    def backup(self, repository: Repository, source: Path) -> Command:
        return single(self._argv("backup", "--json", str(source)), self._environment(repository))

    def restore(self, repository: Repository, source: Path, target: Path) -> Command:
        argv = self._argv("restore", "latest", "--path", str(source), "--target", str(target))
        return single(argv, self._environment(repository))

    def restored(self, source: Path, target: Path) -> Path:
        return target / source.relative_to("/")


class Pipe(Tool):
    """tar, zstd and rclone in a row."""

    name = "pipe"
    _KEY = "backup.tar.zst"

    def _object(self, repository: Repository) -> str:
        return f":s3:{repository.bucket}/{self._KEY}"

    def _environment(self) -> dict[str, str]:
        return {**self._env, **rclone_environment(self._endpoint)}

    def version(self) -> dict[str, str]:
        env = self._environment()
        return {
            "tar": first_line(("tar", "--version"), env),
            "zstd": first_line(("zstd", "--version"), env),
            "rclone": first_line((rclone_program(), "version"), env),
        }

    def backup(self, repository: Repository, source: Path) -> Command:
        stages = (
            ("tar", "-C", str(source), "-cf", "-", "."),
            ("zstd", "-q", "-3", "-T2", "-c"),
            (rclone_program(), "rcat", self._object(repository)),
        )
        return Command(stages, self._environment())

    def restore(self, repository: Repository, source: Path, target: Path) -> Command:  # noqa: ARG002 -- one object
        target.mkdir(parents=True)
        stages = (
            (rclone_program(), "cat", self._object(repository)),
            ("zstd", "-q", "-d", "-c"),
            ("tar", "-C", str(target), "-xpf", "-"),
        )
        return Command(stages, self._environment())


TOOLS: dict[str, type[Tool]] = {tool.name: tool for tool in (Holdfast, Http, Restic, Pipe)}


class Buckets:
    """Makes, sizes and removes buckets, with rclone, outside of any measured time."""

    def __init__(self, env: Mapping[str, str], endpoint: str) -> None:
        self._env = {**env, **rclone_environment(endpoint)}

    def _rclone(self, *arguments: str, data: bytes = b"") -> bytes:
        argv = [rclone_program(), *arguments]
        return subprocess.run(argv, env=self._env, input=data, check=True, capture_output=True).stdout

    def create(self, bucket: str) -> None:
        """Make ``bucket``, and let the server lay out its volumes now instead of at the first measured write."""
        self._rclone("mkdir", f":s3:{bucket}")
        self._rclone("rcat", f":s3:{bucket}/touch", data=b"touch")
        self._rclone("deletefile", f":s3:{bucket}/touch")

    def size_bytes(self, bucket: str) -> int:
        """Return the sum of the sizes of all objects."""
        return int(json.loads(self._rclone("size", "--json", f":s3:{bucket}"))["bytes"])

    def remove(self, bucket: str) -> None:
        """Remove ``bucket`` with all that is in it."""
        self._rclone("purge", f":s3:{bucket}")


def directory_bytes(directory: Path) -> int:
    """Return the sum of the sizes of all files below ``directory``."""
    return sum(
        os.lstat(os.path.join(parent, name)).st_size for parent, _, names in os.walk(directory) for name in names
    )


def holdfast_argv(*arguments: str) -> list[str]:
    """Return the command line of this project: HOLDFAST, or the running Python's."""
    named = os.environ.get("HOLDFAST")
    return [*(shlex.split(named) if named else (sys.executable, "-m", "holdfast")), *arguments]


def holdfast_environment(env: Mapping[str, str], repository: Repository | None) -> dict[str, str]:
    """Return ``env`` with the server's keys, and with the repository's cache where one is given."""
    env = {
        **env,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return env if repository is None else {**env, "XDG_CACHE_HOME": str(repository.cache)}


def holdfast_version(env: Mapping[str, str]) -> str:
    """Return what it says of itself; raises as Tool.version does."""
    env = holdfast_environment(env, None)
    try:
        return first_line(holdfast_argv("--version"), env)
    except subprocess.CalledProcessError:
        first_line(holdfast_argv("--help"), env)
        return "unknown version"


def store_url(endpoint: str, bucket: str) -> str:
    """Return the URL that names ``bucket`` to holdfast."""
    return f"s3://{bucket}?endpoint={endpoint}&region={REGION}"


def first_line(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Return the first line that a program prints, asterisks and spaces around it dropped.

    Raises FileNotFoundError where there is no such program, CalledProcessError when it fails.
    """
    if shutil.which(argv[0]) is None:
        raise FileNotFoundError(f"{argv[0]}: no such program")
    done = subprocess.run(argv, env=env, cwd=REPOSITORY_ROOT, capture_output=True, check=True, text=True)
    lines = [line.strip(" *") for line in done.stdout.splitlines() if line.strip()]
    return lines[0] if lines else ""
