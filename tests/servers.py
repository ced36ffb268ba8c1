"""Real servers for the tests: each runs on free ports of the loopback and ends by its process id."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config

S = TypeVar("S")

ACCESS_KEY, SECRET_KEY, REGION = "holdfast-tests", "holdfast-tests-secret", "us-east-1"
READY_WITHIN_S = 30
POLL_EVERY_S = 0.05
ATTEMPTS = 3  # a port that was free may be taken before the server binds it

DOCKER28_VARIABLE = "HOLDFAST_TEST_DOCKER28"  # names a root directory in which a newer dockerd is installed
PROGRAMS = {  # what a test says it needs -> the executable that proves it is there
    "acl": "setfacl",
    "attr": "getfattr",
    "docker": "dockerd",
    "docker-compose": "docker-compose",
    "docker-registry": "docker-registry",
    "docker28": f"{os.environ.get(DOCKER28_VARIABLE) or f'${DOCKER28_VARIABLE}'}/usr/sbin/dockerd",
    "rclone": "rclone",
    "restic": "restic",
    "seaweedfs": "weed",
    "skopeo": "skopeo",
    "tar": "tar",
    "zstd": "zstd",
}


class StartError(Exception):
    """A server ended, or did not answer in time; the message ends with its log."""


def find_program(name: str) -> Path | None:
    """The executable of one of PROGRAMS, from this Python's environment first, then from PATH, if it is no path."""
    own = Path(sys.executable).parent
    found = shutil.which(PROGRAMS[name], path=f"{own}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    return Path(found) if found else None


def free_ports(count: int) -> list[int]:
    """Distinct ports of the loopback that nothing listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def answers(url: str, status: int = 200) -> bool:
    """Whether a GET is answered, without a proxy, with this status."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as response:
            return bool(response.status == status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code == status
    except OSError:
        return False


class Server:
    """A child process that dies with the tests. `stop` kills it: nothing it holds outlives the run."""

    def __init__(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str]) -> None:
        if setpriv := shutil.which("setpriv"):  # also when the tests themselves are killed
            command = [setpriv, "--pdeathsig", "KILL", *command]
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def wait_until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while not ready():
            if (code := self._process.poll()) is not None:
                raise StartError(f"ended with {code}\n{self._log_end()}")
            if time.monotonic() > deadline:
                self.stop()
                raise StartError(f"no answer within {READY_WITHIN_S} s\n{self._log_end()}")
            time.sleep(POLL_EVERY_S)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until it has ended by itself; its exit code."""
        return self._process.wait(timeout_s)

    def _log_end(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


def _started(start: Callable[[], S]) -> S:
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(StartError):
            return start()
    return start()


def _clean_environment(home: Path) -> dict[str, str]:
    """What a server inherits: none of the AWS settings, CA bundles or proxies of the user."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return kept | {"HOME": str(home)}


@dataclass(frozen=True)
class SeaweedFS:
    """An S3 service of its own, with one administrator. Buckets are created only when asked for, as on AWS."""

    endpoint: str
    server: Server
    ports: tuple[int, ...]
    access_key: str = ACCESS_KEY
    secret_key: str = field(default=SECRET_KEY, repr=False)
    region: str = REGION

    @classmethod
    def start(cls, program: Path, directory: Path) -> SeaweedFS:
        """Start one whose data, log and identities live in `directory`, and wait until it takes requests."""
        return _started(lambda: cls._start(program, directory))

    @classmethod
    def _start(cls, program: Path, directory: Path) -> SeaweedFS:
        data = directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True)
        identities = directory / "identities.json"
        key = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities.write_text(json.dumps({"identities": [{"name": "tests", "credentials": [key], "actions": actions}]}))
        ports = free_ports(8)
        parts = ("master", "volume", "filer", "s3")
        numbers = dict(zip([f"{part}.port{kind}" for part in parts for kind in ("", ".grpc")], ports, strict=True))
        command = [
            program,
            f"-logdir={directory}",
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=1000",
            "-volume.minFreeSpace=1",
            "-s3",
            f"-s3.config={identities}",
            "-s3.autoCreateBucket=false",  # AWS answers NoSuchBucket, so must this
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"-{name}={number}" for name, number in numbers.items()),
        ]
        # A bucket takes volumes of its own at its first write: 2 at a time is faster than the usual 7.
        env = _clean_environment(directory) | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "2"}
        server = Server(command, directory / "weed.log", env)
        started = cls(f"http://127.0.0.1:{numbers['s3.port']}", server, tuple(ports))
        server.wait_until(lambda: answers(f"{started.endpoint}/status") and started._lists_buckets())
        return started

    def stop(self) -> None:
        self.server.stop()
        for port in self.ports:  # it places sockets there whatever it is told
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    def client(self) -> Any:
        """A boto3 client for this server, as its administrator."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(proxies={}, retries={"max_attempts": 2, "mode": "standard"}),
        )

    def _lists_buckets(self) -> bool:
        """Whether the server has read its identities: until then it refuses every key."""
        try:
            self.client().list_buckets()
        except Exception:  # noqa: BLE001  whatever it is, it is not ready
            return False
        return True


@dataclass(frozen=True)
class S3Bucket:
    """A bucket of a SeaweedFS for one test, perhaps below a prefix, with what a client needs to reach it."""

    seaweedfs: SeaweedFS
    name: str
    prefix: str = ""

    @property
    def url(self) -> str:
        path = f"{self.name}/{self.prefix}" if self.prefix else self.name
        return f"s3://{path}?endpoint={self.endpoint}&region={self.seaweedfs.region}"

    @property
    def endpoint(self) -> str:
        return self.seaweedfs.endpoint

    @property
    def access_key(self) -> str:
        return self.seaweedfs.access_key

    @property
    def secret_key(self) -> str:
        return self.seaweedfs.secret_key

    @property
    def env(self) -> dict[str, str]:
        """Variables that give the AWS SDKs this bucket's credentials; the fixture has set them already."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.seaweedfs.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def client(self) -> Any:
        return self.seaweedfs.client()

    def exists(self) -> bool:
        return self.name in [bucket["Name"] for bucket in self.client.list_buckets()["Buckets"]]

    def create(self) -> None:
        self.client.create_bucket(Bucket=self.name)

    def delete(self) -> None:
        """Remove the bucket with all it holds, if it is there."""
        with contextlib.suppress(self.client.exceptions.NoSuchBucket):
            self.client.delete_bucket(Bucket=self.name)  # SeaweedFS deletes full buckets too

    def keys(self) -> list[str]:
        """Every key below the prefix, in order, relative to it."""
        below = f"{self.prefix}/" if self.prefix else ""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=below)
        return [item["Key"].removeprefix(below) for page in pages for item in page.get("Contents", [])]


@dataclass(frozen=True)
class Registry:
    """A CNCF Distribution registry over plain HTTP; `host` is what stands before a repository's name."""

    host: str
    server: Server

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @classmethod
    def start(cls, program: Path, directory: Path, store: S3Bucket | Path) -> Registry:
        """Serve what lies in `store`, a bucket or a directory, and wait until it answers."""
        return _started(lambda: cls._start(program, directory, store))

    @classmethod
    def _start(cls, program: Path, directory: Path, store: S3Bucket | Path) -> Registry:
        (port,) = free_ports(1)
        host = f"127.0.0.1:{port}"
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "config.yml"
        config.write_text(json.dumps(cls._config(host, store)))  # JSON is YAML
        # AWS_CA_BUNDLE would make its S3 driver fail on plain HTTP; this environment has none.
        server = Server([program, "serve", config], directory / "registry.log", _clean_environment(directory))
        server.wait_until(lambda: answers(f"http://{host}/v2/"))
        return cls(host, server)

    @staticmethod
    def _config(host: str, store: S3Bucket | Path) -> dict[str, object]:
        storage: dict[str, object] = {"delete": {"enabled": True}}  # no cache: others write to this store too
        if isinstance(store, Path):
            storage["filesystem"] = {"rootdirectory": str(store)}
        else:
            storage["s3"] = {
                "bucket": store.name,
                "rootdirectory": store.prefix,
                "regionendpoint": store.endpoint,
                "region": store.seaweedfs.region,
                "accesskey": store.access_key,
                "secretkey": store.secret_key,
                "secure": False,
                "v4auth": True,
            }
        http = {"addr": host, "secret": "one secret for all replicas"}
        return {"version": "0.1", "log": {"level": "warn"}, "storage": storage, "http": http}

    def stop(self) -> None:
        self.server.stop()
