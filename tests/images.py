"""Images for the tests, made without a registry: of any layers a test wants, and one to build others on.

Sizes are in bytes. Contents are held in memory.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from engines import ROOT, Engine, Members
from servers import StartError

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
WORDS = (b"rock", b"kelp", b"tide", b"cargo", b"anchor", b"harbour", b"lighthouse", b"shore")


def build(
    engine: Engine,
    image: str,
    layers: Sequence[Mapping[str, bytes]],
    *,
    base: str = "scratch",
    instructions: Sequence[str] = (),
) -> str:
    """Build an image whose every layer holds these files, from nothing or on top of another, and give its id.

    Equal files are equal layers, whenever they are built, on every engine of one release: another may write other
    headers. The image's id is new each time, for an image is dated.

    :param instructions: further lines of its Dockerfile: ENV, LABEL, CMD and the like.
    """
    copies = [f"COPY {number}/ /" for number in range(len(layers))]
    dockerfile = "\n".join([f"FROM {base}", *copies, *instructions]).encode()
    engine.feed(_context(dockerfile, layers), "build", "--quiet", "--network", "none", "--tag", image, "-")
    return engine.docker("image", "inspect", "--format", "{{.Id}}", image).strip()


def diff_ids(engine: Engine, image: str) -> list[str]:
    """The digests of an image's layers, as their tars are: without compression."""
    listed: list[str] = json.loads(engine.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))
    return listed


def random_bytes(size_bytes: int, seed: int = 0) -> bytes:
    """What no compression makes smaller, the same for the same seed."""
    return random.Random(seed).randbytes(size_bytes)


def text_bytes(size_bytes: int, seed: int = 0) -> bytes:
    """What compresses to about a tenth, the same for the same seed."""
    chosen = random.Random(seed).choices(WORDS, k=size_bytes // 5 + 1)  # the shortest, and a space
    return b" ".join(chosen)[:size_bytes]


def _context(dockerfile: bytes, layers: Sequence[Mapping[str, bytes]]) -> Members:
    yield _file("Dockerfile", len(dockerfile)), dockerfile
    for number, files in enumerate(layers):
        folders = {folder for path in files for folder in PurePosixPath(path.lstrip("/")).parents}
        for folder in sorted(folders):  # with a date, which a folder that is only implied would not have
            yield _directory(f"{number}/{folder}"), None
        for path, content in files.items():
            yield _file(f"{number}/{path.lstrip('/')}", len(content)), content


def import_base_image(engine: Engine, directory: Path) -> str:
    """Make an image of this machine's own Debian packages: a shell, curl, Python with pip.

    All the wheels that a build of this project needs are in it, fetched into `directory` with the pip of this
    machine, and so with its settings: no build needs a network, and no setting stands in a file of this project.

    :raises StartError: this machine is no Debian, or lacks some of these packages.
    """
    paths = _package_paths()
    wheels = directory / "wheels"
    fetch_wheels(wheels)
    engine.feed(_base_members(paths, wheels), "import", "--change", 'CMD ["bash"]', "-", BASE_IMAGE)
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


def _base_members(paths: Iterable[str], wheels: Path) -> Members:
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
