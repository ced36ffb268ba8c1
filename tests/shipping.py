"""Images between real engines and a store, by the command line of Holdfast."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from commandline import Holdfast
from engines import Engine, Members
from holdfast.cli.main import app
from holdfast.cli.render import View
from holdfast.errors import HoldfastError, exit_code
from servers import SECRET_KEY, S3Bucket

MIB = 1 << 20
BLOBS = "docker/registry/v2/blobs/sha256"
PROGRAM = "/bin/cat"
OF_THE_ENGINE = (".dockerenv", "dev", "etc", "proc", "sys")  # what every container has, whatever its image
_COMMAND = get_command(app)
EPOCH = "2026-01-02T03:04:05Z"


@dataclass(frozen=True)
class Ship:
    """A store, and the ways into it and out of it."""

    store: str

    def push(self, engine: Engine, image: str, *options: str, code: int = 0, **env: str) -> Any:
        """Push out of an engine and give the result document."""
        return self._run(["push", self.store, image], options, code, engine.env | env)

    def pull(self, engine: Engine, image: str, *options: str, code: int = 0, **env: str) -> Any:
        """Pull into one engine and give the result document."""
        return self._run(["pull", self.store, image], options, code, engine.env | env)

    def pull_into(self, hosts: Sequence[str], image: str, *options: str, code: int = 0, **env: str) -> Any:
        """Pull into several engines and give the result document."""
        return self._run(["pull", self.store, image, "--pullhosts", ",".join(hosts)], options, code, env)

    def list(self) -> list[str]:
        """The names and tags in the store."""
        return [f"{one['name']}:{one['tag']}" for one in self.listed()]

    def listed(self) -> Any:
        return self._run(["list", self.store], (), 0, {})["images"]

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a command on this store and leave it running; the caller ends it."""
        command, *rest = arguments
        return Holdfast(self.store, env).start(command, self.store, *rest)

    def _run(self, arguments: list[str], options: Sequence[str], code: int, env: Mapping[str, str]) -> Any:
        """Run the command line in this process: one of its own takes longer to begin than most of what is done here."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as environment, redirect_stdout(out), redirect_stderr(err):
            for name, value in env.items():
                environment.setenv(name, value)
            ended_with = _exit_code([*arguments, "--json", *options])
        assert ended_with == code, f"{arguments} ended with {ended_with}\n{err.getvalue()}\n{out.getvalue()}"
        assert SECRET_KEY not in out.getvalue() + err.getvalue()
        return json.loads(out.getvalue())


def _exit_code(arguments: Sequence[str]) -> int:
    try:
        return _COMMAND.main(args=[*arguments], standalone_mode=False) or 0
    except HoldfastError as error:
        View(json=True).fail(error)
        return exit_code(error)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, Any, str]:
    """Wait for the end of what was started: its exit code, its document, and its errors."""
    out, err = process.communicate(timeout=100)
    error = err.decode(errors="replace")
    assert "Traceback" not in error, error
    return process.returncode, json.loads(out) if out else None, error


def keeps_blobs(engine: Engine) -> bool:
    return "containerd" in engine.release


def id_in(engine: Engine, image: str) -> str | None:
    """The id that an engine has an image by, None where it has none."""
    done = engine.try_docker("image", "inspect", "--format", "{{.Id}}", image)
    return done.stdout.strip() if done.returncode == 0 else None


def files(engine: Engine, image: str) -> dict[str, bytes]:
    """The files that a container of an image has, but for those that every container has."""
    container = engine.docker("create", "--network", "none", image, "/none").strip()
    try:
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder, "tar")
            engine.docker("export", "--output", exported, container)
            with tarfile.open(exported) as tar:
                return {member.name: tar.extractfile(member).read() for member in tar if _is_own(member)}  # type: ignore[union-attr]
    finally:
        engine.docker("rm", container)


def _is_own(member: tarfile.TarInfo) -> bool:
    return member.isfile() and member.name.partition("/")[0] not in OF_THE_ENGINE


def import_program(engine: Engine, image: str) -> None:
    """Make an image of one layer in which there is a program that runs: ``cat``."""
    listed = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout
    libraries = [word for word in listed.split() if word.startswith("/")]
    engine.feed(_programs([PROGRAM, *libraries]), "import", "--change", f'ENTRYPOINT ["{PROGRAM}"]', "-", image)


def _programs(paths: Sequence[str]) -> Members:
    for path in paths:
        member = tarfile.TarInfo(path.lstrip("/"))
        member.size, member.mode = os.stat(path).st_size, 0o755
        yield member, Path(path)


def layer(**contents: bytes) -> bytes:
    """A layer with these files, uncompressed; an empty one without any."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def load(engine: Engine, image: str, layers: Sequence[bytes], **config: object) -> str:
    """Make an engine have an image of these layers, without building it; it is the same one wherever it is made.

    Gives its config's digest.
    """
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers]},
        "history": [{"created": EPOCH, "created_by": f"layer {number}"} for number in range(len(layers))],
    }
    described = json.dumps(document).encode()
    digest = hashlib.sha256(described).hexdigest()
    engine.feed(_saved(image, layers, described, digest), "load", "--quiet")
    return f"sha256:{digest}"


def _saved(image: str, layers: Sequence[bytes], described: bytes, digest: str) -> Members:
    named = {hashlib.sha256(one).hexdigest(): one for one in layers}
    paths = [f"{hashlib.sha256(one).hexdigest()}/layer.tar" for one in layers]
    tagged = image if ":" in image.rpartition("/")[2] else f"{image}:latest"
    listed = [{"Config": f"{digest}.json", "RepoTags": [tagged], "Layers": paths}]
    yield _member(f"{digest}.json", described), described
    for name, content in named.items():
        yield _member(f"{name}/layer.tar", content), content
    manifest = json.dumps(listed).encode()
    yield _member("manifest.json", manifest), manifest


def _member(name: str, content: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    return member


def read_blob(bucket: S3Bucket, digest: str) -> bytes:
    """The bytes that lie under a digest in a bucket in the layout registry."""
    content: bytes = bucket.client.get_object(Bucket=bucket.name, Key=blob_key(bucket, digest))["Body"].read()
    return content


def blob_key(bucket: S3Bucket, digest: str) -> str:
    hexadecimal = digest.removeprefix("sha256:")
    key = f"{BLOBS}/{hexadecimal[:2]}/{hexadecimal}/data"
    return f"{bucket.prefix}/{key}" if bucket.prefix else key


def layers_in(bucket: S3Bucket, digest: str) -> list[Any]:
    """The descriptors of the layers of a manifest in a bucket, bottom first."""
    listed: list[Any] = json.loads(read_blob(bucket, digest))["layers"]
    return listed


def skopeo(*arguments: str | Path) -> str:
    """Run skopeo with registries of this machine, over plain HTTP; gives its output."""
    program = shutil.which("skopeo")
    assert program
    done = subprocess.run(
        [program, "--insecure-policy", *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
