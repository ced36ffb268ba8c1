"""Real Docker Engines for the tests, as many as a test wants: each is a host of its own.

An engine is dockerd in namespaces of processes and mounts of its own, its data in memory (tmpfs). When the first of
its processes is killed, the kernel ends all others (containerd, shims, containers), and every mount and file goes.
It runs as root only. Containers have no network but the host's (`--network host`) or none.

The dockerd of another release than this machine's lies in a tree: a root directory with all that it needs. A tree is
only read; what is written there stays above it, in memory. So one tree serves any number of engines.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal

from certificates import Certificates
from servers import POLL_EVERY_S, READY_WITHIN_S, Server, StartError, free_ports

ROOT = Path(__file__).parents[1]
COMMAND_WITHIN_S = 200
SHOWN_OUTPUT = 4000  # characters of a failed command's

ImageStore = Literal["classic", "containerd"]
Members = Iterable[tuple[tarfile.TarInfo, Path | bytes | None]]

STORAGE_DRIVERS: dict[ImageStore, tuple[str, str]] = {  # the second copies every layer, but works everywhere
    "classic": ("overlay2", "vfs"),
    "containerd": ("overlayfs", "native"),
}

# The shell stays, to take in the processes whose parents have ended: dockerd does not.
HERE = """
set -e; home=$1; size=$2; shift 2
mount -t tmpfs -o "size=$size" tmpfs "$home/state"
"$@" || exit $?
"""
IN_A_TREE = """
set -e; home=$1; size=$2; tree=$3; shift 3
mount -t tmpfs tmpfs "$home/above"; mkdir "$home/above/files" "$home/above/work"
root=$home/root
mount -t overlay -o "lowerdir=$tree,upperdir=$home/above/files,workdir=$home/above/work" overlay "$root"
mount -t proc proc "$root/proc"; mount --rbind /sys "$root/sys"; mount --rbind /dev "$root/dev"
mkdir -p "$root$home"; mount --bind "$home" "$root$home"
mount -t tmpfs -o "size=$size" tmpfs "$root$home/state"
chroot "$root" "$@" || exit $?
"""
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
class Options:
    """What kind of engine is wanted, beyond its release."""

    store: ImageStore = "classic"  # that of containerd came with Docker 23
    listen: Literal["unix", "tcp", "tls"] = "unix"  # also on a port: to whoever comes, or only to certified clients
    data_mib: int | None = None  # the size of the disk that all its data are on


@dataclass(frozen=True)
class Engine:
    """A running engine, and the docker command that speaks to it.

    `host` is its socket, `tcp` its address beside that if it has one, `release` a line that tells what it is.
    """

    host: str
    command: tuple[str, ...]
    server: Server
    release: str = ""
    tcp: str | None = None
    certificates: Certificates | None = None

    @classmethod
    def start(cls, dockerd: Path, directory: Path, options: Options = Options(), tree: Path | None = None) -> Engine:
        """Start one whose socket and log are in `directory`, with the best storage driver that works here.

        :param tree: the root directory that `dockerd` belongs to, if that is not this machine's.
        :raises StartError: none does, for want of privileges perhaps.
        """
        if os.geteuid() != 0:
            raise StartError("dockerd needs root")
        docker = shutil.which("docker")
        if docker is None:
            raise StartError("docker is not on PATH")
        program = [dockerd] if tree is None else [Path("/", dockerd.relative_to(tree))]
        best, other = STORAGE_DRIVERS[options.store]
        with contextlib.suppress(StartError):
            return cls._start([*program, "--storage-driver", best], docker, directory / best, options, tree)
        return cls._start([*program, "--storage-driver", other], docker, directory / other, options, tree)

    @classmethod
    def _start(cls, program: list[str | Path], docker: str, home: Path, options: Options, tree: Path | None) -> Engine:
        for name in ("state", "above", "root"):
            (home / name).mkdir(parents=True)
        certificates = Certificates.make(home / "certificates") if options.listen == "tls" else None
        tcp = f"tcp://127.0.0.1:{free_ports(1)[0]}" if options.listen != "unix" else None
        host = f"unix://{home / 'sock'}"
        size = f"{options.data_mib}m" if options.data_mib else "75%"
        script: list[str | Path] = [HERE, "sh", home, size] if tree is None else [IN_A_TREE, "sh", home, size, tree]
        command: list[str | Path] = [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", *script),
            *(*program, "--host", host, *_listening(tcp, certificates)),
            *("--data-root", home / "state/data", "--exec-root", home / "state/exec", "--pidfile", home / "state/pid"),
            *("--iptables=false", "--ip6tables=false", "--bridge=none"),
            *(("--feature", "containerd-snapshotter=true") if options.store == "containerd" else ()),
        ]
        server = Server(command, home / "dockerd.log", _environment(home))
        client = (docker, "--config", str(home / "client"), "--host", host)
        engine = cls(host, client, server, tcp=tcp, certificates=certificates)
        server.wait_until(lambda: engine.try_docker("version").returncode == 0)
        return replace(engine, release=engine._release(options.store))

    def _release(self, store: ImageStore) -> str:
        version, driver = self.docker("info", "--format", "{{.ServerVersion}} {{.Driver}}").split()
        return f"Docker {version} ({store} image store, {driver})"

    @property
    def env(self) -> dict[str, str]:
        """Variables that lead any client to it, over TCP if it listens there."""
        if self.certificates is None:
            return {"DOCKER_HOST": self.tcp or self.host}
        trust = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(self.certificates.client)}
        return {"DOCKER_HOST": str(self.tcp), **trust}

    def stop(self) -> None:
        """End it and all that it started, if it still runs."""
        if self.server.is_over:
            return
        # Only what is removed properly gives its cgroups and its bridges back: those are the whole machine's.
        if containers := self.docker("ps", "--all", "--quiet").split():
            self.docker("rm", "--force", *containers)
        self.docker("network", "prune", "--force")
        self.kill()

    def kill(self) -> None:
        """End it and all that it started without a warning, as a loss of power would; from then on it refuses."""
        # The first process of its namespace: unshare waits for that one, and ends with it.
        os.kill(next(_processes_below(self.server.pid)), signal.SIGKILL)
        self.server.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """For as long as this lasts, it takes connections and answers none: a host too busy, or cut off."""
        frozen = []
        try:
            for process in _processes_below(self.server.pid):
                _signal(process, signal.SIGSTOP)
                frozen.append(process)
            wait_until(lambda: all(map(_is_still, frozen)), "frozen")
            yield
        finally:
            for process in reversed(frozen):
                _signal(process, signal.SIGCONT)

    def docker(self, *arguments: str | Path, code: int = 0) -> str:
        """Run a docker command to its end, check its exit code, and give its output."""
        done = self.try_docker(*arguments)
        if done.returncode != code:
            shown = f"{done.stdout[-SHOWN_OUTPUT:]}{done.stderr}"
            raise CommandError(f"docker {arguments} ended with {done.returncode}\n{shown}")
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

    def feed(self, members: Members, *arguments: str) -> None:
        """Run a docker command that reads a tar; a member's content is that of a file, or these bytes, or none."""
        with (
            tempfile.TemporaryFile("w+") as told,
            subprocess.Popen(
                [*self.command, *arguments],
                stdin=subprocess.PIPE,
                stdout=told,
                stderr=told,
                env=_environment(Path(self.command[2])),
            ) as running,
        ):
            assert running.stdin
            with contextlib.suppress(BrokenPipeError), running.stdin as pipe:  # then it has ended, and told why
                _write_tar(pipe, members)
            if code := running.wait(COMMAND_WITHIN_S):
                told.seek(0)
                raise CommandError(f"docker {arguments} ended with {code}\n{told.read()[-SHOWN_OUTPUT:]}")

    def build(self, context: Path, image: str, *options: str) -> None:
        """Build an image with the classic builder, and without any network."""
        self.docker("build", "--network", "none", "--tag", image, *options, context)

    def remove_images(self) -> None:
        """Remove every image that no container uses, with what it was built from."""
        self.docker("image", "prune", "--all", "--force")

    def logs(self, container: str) -> str:
        """What a container has written to both its outputs."""
        done = self.try_docker("logs", container)
        return done.stdout + done.stderr


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


def _listening(tcp: str | None, certificates: Certificates | None) -> list[str]:
    if tcp is None:
        return []
    if certificates is None:
        return ["--host", tcp]
    files = zip(("--tlscacert", "--tlscert", "--tlskey"), ("ca.pem", "cert.pem", "key.pem"), strict=True)
    return ["--host", tcp, "--tlsverify", *(f"{option}={certificates.server / file}" for option, file in files)]


def _processes_below(pid: int) -> Iterator[int]:
    """The processes that this one started and those that they did, parents first, in the ids of this namespace."""
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        for child in _read(thread / "children").split():
            yield int(child)
            yield from _processes_below(int(child))


def _is_still(pid: int) -> bool:
    """Whether it is stopped, or no longer there at all."""
    return not (stat := _read(Path(f"/proc/{pid}/stat"))) or stat.rpartition(")")[2].split()[0] in "TZ"


def _read(path: Path) -> str:
    """What the kernel tells about a process or thread; nothing of one that has ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(pid, number)


def _write_tar(pipe: IO[bytes], members: Members) -> None:
    with tarfile.open(fileobj=pipe, mode="w|") as tar:
        for member, content in members:
            if isinstance(content, Path):
                with content.open("rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member, io.BytesIO(content) if content is not None else None)
