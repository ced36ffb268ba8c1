"""A real Docker Engine for the tests, and an image that other images can be built on, made without a registry.

The engine is dockerd in namespaces of processes and mounts of its own, its data in memory (tmpfs). When the first of
its processes is killed, the kernel ends all others (containerd, shims, containers), and every mount and file goes.
It runs as root only. Containers have no network but the host's (`--network host`) or none.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from servers import POLL_EVERY_S, READY_WITHIN_S, Server, StartError

ROOT = Path(__file__).parents[1]
STORAGE_DRIVERS = ("overlay2", "vfs")  # vfs copies every layer, but works everywhere
COMMAND_WITHIN_S = 200

BASE_IMAGE = "holdfast-test-base"
SYSTEM_PYTHON = "/usr/bin/python3"
BASE_PACKAGES = (
    *("base-files", "bash", "dash", "coreutils", "findutils", "grep", "sed", "tar", "libcap2-bin"),
    *("curl", "python3", "python3-pip"),
)
LEFT_OUT = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/share/info/")
WHEELS = "/wheels"
BASE_FILES = {  # what no package contains
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\n",
    "/etc/group": "root:x:0:\n",
    # Whatever pip is told on this machine was obeyed when the wheels were fetched: in a build, they are all there is.
    "/etc/pip.conf": f"[global]\nno-index = true\nfind-links = {WHEELS}\n",
}
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")  # no package contains them, and a client of S3 wants some
LINKED_DIRECTORIES = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")
_numbers = itertools.count(1)


class CommandError(AssertionError):
    """A docker command ended with another exit code than the test expects."""


def wait_until(ready: Callable[[], bool], what: str) -> None:
    """Poll until it is so; fails after READY_WITHIN_S."""
    deadline = time.monotonic() + READY_WITHIN_S
    while not ready():
        assert time.monotonic() < deadline, f"{what}: not within {READY_WITHIN_S} s"
        time.sleep(POLL_EVERY_S)


@dataclass(frozen=True)
class Engine:
    """A running engine, and the docker command that speaks to it."""

    host: str
    command: tuple[str, ...]
    server: Server

    @classmethod
    def start(cls, dockerd: Path, directory: Path) -> Engine:
        """Start one whose socket and log are in `directory`, with the best storage driver that works here.

        :raises StartError: none does, for want of privileges perhaps.
        """
        if os.geteuid() != 0:
            raise StartError("dockerd needs root")
        docker = shutil.which("docker")
        if docker is None:
            raise StartError("docker is not on PATH")
        for driver in STORAGE_DRIVERS[:-1]:
            with contextlib.suppress(StartError):
                return cls._start(dockerd, docker, directory / driver, driver)
        return cls._start(dockerd, docker, directory / STORAGE_DRIVERS[-1], STORAGE_DRIVERS[-1])

    @classmethod
    def _start(cls, dockerd: Path, docker: str, directory: Path, driver: str) -> Engine:
        state = directory / "state"
        state.mkdir(parents=True)
        host = f"unix://{directory / 'sock'}"
        # The shell stays, to take in the processes whose parents have ended: dockerd does not.
        script = 'mount -t tmpfs -o size=75% tmpfs "$1" && shift && "$@"; exit $?'
        command: list[str | Path] = [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", script, "sh", state, dockerd, "--host", host, "--storage-driver", driver),
            *("--data-root", state / "data", "--exec-root", state / "exec", "--pidfile", state / "pid"),
            *("--iptables=false", "--ip6tables=false", "--bridge=none"),
        ]
        server = Server(command, directory / "dockerd.log", _environment(directory))
        engine = cls(host, (docker, "--config", str(directory / "client"), "--host", host), server)
        server.wait_until(lambda: engine.try_docker("version").returncode == 0)
        return engine

    def stop(self) -> None:
        """End it and all that it started."""
        # Only what is removed properly gives its cgroups and its bridges back: those are the whole machine's.
        if containers := self.docker("ps", "--all", "--quiet").split():
            self.docker("rm", "--force", *containers)
        self.docker("network", "prune", "--force")
        # The first process of its namespace: unshare waits for that one, and ends with it.
        for child in Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        self.server.wait()

    def docker(self, *arguments: str | Path, code: int = 0) -> str:
        """Run a docker command to its end, check its exit code, and give its output."""
        done = self.try_docker(*arguments)
        if done.returncode != code:
            raise CommandError(f"docker {arguments} ended with {done.returncode}\n{done.stdout[-4000:]}{done.stderr}")
        return done.stdout

    def try_docker(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a docker command to its end, whatever comes of it."""
        return subprocess.run(
            [*self.command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=_environment(Path(self.command[2])),
            timeout=COMMAND_WITHIN_S,
            check=False,
        )

    def build(self, context: Path, image: str, *options: str) -> None:
        """Build an image with the classic builder, and without any network."""
        self.docker("build", "--network", "none", "--tag", image, *options, context)

    def logs(self, container: str) -> str:
        """What a container has written to both its outputs."""
        done = self.try_docker("logs", container)
        return done.stdout + done.stderr

    def import_image(self, image: str, members: Iterable[tuple[tarfile.TarInfo, Path | bytes | None]]) -> None:
        """Make an image of one layer; a member's content is that of a file, or these bytes, or none."""
        command = [*self.command, "import", "--change", 'CMD ["bash"]', "-", image]
        environment = _environment(Path(self.command[2]))
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) as importing:
            assert importing.stdin
            with importing.stdin as pipe, tarfile.open(fileobj=pipe, mode="w|") as tar:
                for member, content in members:
                    if isinstance(content, Path):
                        with content.open("rb") as file:
                            tar.addfile(member, file)
                    else:
                        tar.addfile(member, io.BytesIO(content) if content is not None else None)
        assert importing.returncode == 0


@dataclass(frozen=True)
class Containers:
    """The containers and named volumes of one test."""

    engine: Engine
    _names: list[str] = field(default_factory=list)
    _volumes: list[str] = field(default_factory=list)

    def start(self, image: str, *command: str, options: Iterable[str] = ()) -> str:
        """Start a container in the background and give its name."""
        name = f"test-{next(_numbers)}"
        self._names.append(name)
        self.engine.docker("run", "--detach", "--name", name, *options, image, *command)
        return name

    def run(self, image: str, *command: str, options: Iterable[str] = (), code: int = 0) -> str:
        """Run a command in a container of its own to its end, check its exit code, and give its output."""
        name = f"test-{next(_numbers)}"
        self._names.append(name)
        return self.engine.docker("run", "--name", name, *options, image, *command, code=code)

    def volume(self) -> str:
        """Make a named volume and give its name."""
        self._volumes.append(f"test-{next(_numbers)}")
        return self.engine.docker("volume", "create", self._volumes[-1]).strip()

    def remove(self) -> None:
        """Remove all of them, running or not."""
        if self._names:
            self.engine.docker("rm", "--force", "--volumes", *self._names)
        if self._volumes:
            self.engine.docker("volume", "rm", *self._volumes)


def _environment(home: Path) -> dict[str, str]:
    """None of the user's proxies, contexts and credentials; the classic builder, which every engine has."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {"HOME": str(home), "DOCKER_BUILDKIT": "0"}


def import_base_image(engine: Engine, directory: Path) -> str:
    """Make an image of this machine's own Debian packages: a shell, curl, Python with pip.

    All the wheels that a build of this project needs are in it, fetched into `directory` with the pip of this
    machine, and so with its settings: no build needs a network, and no setting stands in a file of this project.

    :raises StartError: this machine is no Debian, or lacks some of these packages.
    """
    paths = _package_paths()
    wheels = directory / "wheels"
    fetch_wheels(wheels)
    engine.import_image(BASE_IMAGE, _base_members(paths, wheels))
    return BASE_IMAGE


def fetch_wheels(directory: Path) -> None:
    """Fetch what requirements.txt pins, and what builds this project, for the system's Python."""
    builders = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    download = [SYSTEM_PYTHON, "-m", "pip", "download", "--quiet", "--quiet", "--dest", str(directory)]
    for what in (["--require-hashes", "--requirement", str(ROOT / "requirements.txt")], builders):
        subprocess.run([*download, *what], check=True, stdout=sys.stderr)


def _package_paths() -> list[str]:
    """Every path of the packages and of all that they depend on, sorted."""
    only = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    listed = _output(["apt-cache", "depends", "--recurse", "--installed", *only, *BASE_PACKAGES])
    packages = {line for line in listed.splitlines() if line[:1].isalnum()}
    if missing := set(BASE_PACKAGES) - packages:
        raise StartError(f"no base image without these Debian packages: {', '.join(sorted(missing))}")
    return sorted({line for line in _output(["dpkg-query", "--listfiles", *packages]).splitlines() if line[:1] == "/"})


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise StartError(f"no base image without Debian's packages: {error}") from error


def _base_members(paths: Iterable[str], wheels: Path) -> Iterator[tuple[tarfile.TarInfo, Path | bytes | None]]:
    # A package may say /bin/sh where /bin is a link to /usr/bin: first the links, then nothing that leads through one.
    seen = {"/"}
    for path in (*LINKED_DIRECTORIES, *sorted({os.path.realpath(os.path.dirname(p)) for p in paths}), *paths):
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if real in seen or not os.path.lexists(real) or real.startswith(LEFT_OUT):
            continue
        seen.add(real)
        yield _member(real, Path(real))
    yield _file(str(CERTIFICATES), CERTIFICATES.stat().st_size), CERTIFICATES
    for path, text in BASE_FILES.items():
        yield _file(path, len(text)), text.encode()
    yield _directory(WHEELS), None
    for wheel in sorted(wheels.iterdir()):
        yield _file(f"{WHEELS}/{wheel.name}", wheel.stat().st_size), wheel


def _member(name: str, path: Path) -> tuple[tarfile.TarInfo, Path | None]:
    with tarfile.open(
        fileobj=io.BytesIO(), mode="w"
    ) as tar:  # a new one each time, so that nothing becomes a hard link
        member = tar.gettarinfo(path, name)
    return member, path if member.isreg() else None


def _directory(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name.lstrip("/"))
    member.type, member.mode = tarfile.DIRTYPE, 0o755
    return member


def _file(name: str, size_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name.lstrip("/"))
    member.size, member.mode = size_bytes, 0o644
    return member
