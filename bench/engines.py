"""Docker Engines of the benchmark's own: one that images are pushed from, and some that they are pulled into.

Each is dockerd in namespaces of processes and mounts of its own: when the first of its processes is killed, the kernel
ends all others and every mount. Its data lie on the disk, below the run's directory, as they do for everybody.

The engine is this machine's own, or one of a tree (the root directory of another Debian, say) that
HOLDFAST_BENCH_DOCKER28 names; HOLDFAST_BENCH_IMAGE_STORE=containerd has that one keep images in containerd's store.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from bench.measure import CommandFailed
from bench.peers import first_line
from bench.servers import ServerFailed

_READY_TIMEOUT_S = 60.0
_DOCKER_TIMEOUT_S = 600.0

# The shells stay, to take in the processes whose parents have ended: dockerd does not.
_HERE = '"$@" || exit $?'
_IN_A_TREE = """
set -e; home=$1; tree=$2; shift 2
mount -t tmpfs tmpfs "$home/above"; mkdir "$home/above/files" "$home/above/work"
mount -t overlay -o "lowerdir=$tree,upperdir=$home/above/files,workdir=$home/above/work" overlay "$home/root"
mount -t proc proc "$home/root/proc"; mount --rbind /sys "$home/root/sys"; mount --rbind /dev "$home/root/dev"
mkdir -p "$home/root$home"; mount --bind "$home" "$home/root$home"
chroot "$home/root" "$@" || exit $?
"""


def docker_program() -> str:
    """Return the docker command: named by DOCKER, or on PATH."""
    return os.environ.get("DOCKER") or "docker"


def dockerd_program() -> str:
    """Return the engine: named by DOCKERD, or on PATH."""
    return os.environ.get("DOCKERD") or "dockerd"


def dockerd_version(env: Mapping[str, str]) -> str:
    """Return what the engine says of itself, and how it keeps images. Raises as first_line does."""
    tree = _tree()
    if tree is None:
        return first_line((dockerd_program(), "--version"), env)
    store = "containerd's" if _in_containerd() else "classic"
    return f"{first_line(('chroot', tree, 'dockerd', '--version'), env)}, {store} image store"


def _tree() -> str | None:
    return os.environ.get("HOLDFAST_BENCH_DOCKER28") or None


def _in_containerd() -> bool:
    return os.environ.get("HOLDFAST_BENCH_IMAGE_STORE") == "containerd"


class Engine:
    """One Docker Engine, running."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        """Start one that keeps its data, socket and log in ``directory``, and wait until it answers.

        Raises ServerFailed where it does not start.
        """
        self.host = f"unix://{directory}/sock"
        self._directory = directory
        self._env = {**env, "DOCKER_BUILDKIT": "0"}  # every engine has the classic builder
        self._process = self._start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def docker(self, *arguments: str, stdin: IO[bytes] | None = None) -> str:
        """Run a docker command on this engine, not measured, and return what it prints.

        Raises CommandFailed when it fails.
        """
        done = self._try_docker(*arguments, stdin=stdin)
        if done.returncode != 0:
            raise CommandFailed(f"docker {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr.strip()}")
        return done.stdout

    def image_id(self, image: str) -> str:
        """Return the id of ``image``. Raises CommandFailed where the engine has no such image."""
        return self.docker("image", "inspect", "--format", "{{.Id}}", image).strip()

    def clear(self) -> None:
        """Remove all images and their layers.

        Raises CommandFailed when something is left.
        """
        self.docker("image", "prune", "--all", "--force")
        if left := self.docker("image", "ls", "--all", "--quiet"):
            raise CommandFailed(f"{self.host}: these images could not be removed: {left.split()}")

    def stop(self) -> None:
        """Kill it with all that it started."""
        if self._process.poll() is None:
            # The first process of its namespace: unshare waits for that one, and ends with it.
            with suppress(OSError):
                for child in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        tree = _tree()
        dockerd = dockerd_program() if tree is None else "dockerd"
        for program in (docker_program(), "unshare", "setpriv", *([dockerd] if tree is None else [])):
            if shutil.which(program) is None:
                raise ServerFailed(f"`{program}` not found")
        if os.geteuid() != 0:
            raise ServerFailed("dockerd needs root")
        for name in ("above", "root"):
            (self._directory / name).mkdir(parents=True)
        script = (_HERE, "sh") if tree is None else (_IN_A_TREE, "sh", str(self._directory), tree)
        argv = [
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("--mount-proc", "sh", "-c", *script, dockerd, "--host", self.host),
            *("--data-root", f"{self._directory}/data", "--exec-root", f"{self._directory}/exec"),
            *("--pidfile", f"{self._directory}/pid", "--iptables=false", "--ip6tables=false", "--bridge=none"),
            *(("--feature", "containerd-snapshotter=true") if tree and _in_containerd() else ()),
        ]
        with (self._directory / "dockerd.log").open("wb") as log:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, start_new_session=True
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerFailed(f"dockerd ended with {self._process.returncode}; see {self._directory}/dockerd.log")
            if self._try_docker("version").returncode == 0:
                return
            time.sleep(0.1)
        raise ServerFailed(f"dockerd was not ready after {_READY_TIMEOUT_S:.0f} s; see {self._directory}/dockerd.log")

    def _try_docker(self, *arguments: str, stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (docker_program(), "--host", self.host, *arguments),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            capture_output=True,
            text=True,
            env=self._env,
            timeout=_DOCKER_TIMEOUT_S,
            check=False,
        )


class Engines:
    """The engines of a run, each started when it is first asked for."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self._directory = directory
        self._env = dict(env)
        self._running: list[Engine] = []

    def source(self) -> Engine:
        """Return the engine that images are pushed from."""
        return self._first(1)[0]

    def targets(self, count: int) -> list[Engine]:
        """Return ``count`` engines that images are pulled into."""
        return self._first(1 + count)[1:]

    def close(self) -> None:
        """End all of them."""
        for engine in self._running:
            engine.stop()

    def _first(self, count: int) -> list[Engine]:
        for number in range(len(self._running), count):
            self._running.append(Engine(self._directory / f"engine-{number}", self._env))
        return self._running[:count]
