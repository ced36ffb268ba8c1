"""Data set I: an image of 600 MB in four layers, and the same image with a layer of 20 MB more.

Every layer is the same mix: machine code, text, and files that are compressed already. Text and compressed files are
made by rule from fixed seeds. Machine code cannot be made by rule, so it is taken from the programs and libraries of
this machine: the images of two machines differ, those of one data directory never do.

The context of a build is written by a process of its own (``python -m bench.images``), as the other data sets are, and
goes to the engine as a stream: nothing of it lies on the disk. What is kept is what ``docker save`` makes of both.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from bench.datasets import REPOSITORY_ROOT, TextSource
from bench.engines import Engine

FORMAT = 1  # raised whenever the content changes, so that an older image is not reused
NAME = "bench-image"
FIRST, SECOND = f"{NAME}:1", f"{NAME}:2"

_MB = 1_000_000
_LAYERS = 4
_LAYER_BYTES = 150 * _MB
_UPDATE_BYTES = 20 * _MB
_CODE_SHARE = 0.46
_COMPRESSED_SHARE = 0.12  # the rest is text
_TEXT_FILE_BYTES = 96_000
_COMPRESSED_FILE_BYTES = 600_000
_MAX_CODE_FILE_BYTES = 16 * _MB  # so that no single program is most of a layer
_MIN_FILE_BYTES = 512
_CODE_ROOTS = ("/usr/lib", "/usr/bin", "/usr/sbin")
_ELF = b"\x7fELF"
_MTIME_S = 1_700_000_000
_FILES_PER_DIRECTORY = 40


class ImageSet:
    """Both images, in the engine that they are pushed from.

    ``<parent>/I.tar`` holds them between runs; ``<parent>/I.json`` says how they were made.
    """

    def __init__(self, parent: Path, scale: float) -> None:
        self._tar = parent / "I.tar"
        self._state_path = parent / "I.json"
        self._scale = scale
        self.ids: dict[str, str] = {}
        """The id of each image, by its name."""

    def ensure(self, engine: Engine) -> None:
        """Bring both images into ``engine``, from an earlier run's file, or made now.

        Raises CommandFailed when the engine refuses.
        """
        state = {"format": FORMAT, "scale": self._scale}
        if self._found_state() == state:
            engine.docker("load", "--quiet", "--input", str(self._tar))
        else:
            self._state_path.unlink(missing_ok=True)
            self._tar.parent.mkdir(parents=True, exist_ok=True)
            self._build(engine, FIRST)
            self._build(engine, SECOND)
            engine.docker("save", "--output", str(self._tar), FIRST, SECOND)
            self._state_path.write_text(json.dumps(state) + "\n")
        self.ids = {name: engine.image_id(name) for name in (FIRST, SECOND)}

    def _found_state(self) -> object:
        try:
            return json.loads(self._state_path.read_text()) if self._tar.exists() else None
        except (FileNotFoundError, ValueError):
            return None

    def _build(self, engine: Engine, name: str) -> None:
        argv = [sys.executable, "-m", "bench.images", name, "--scale", repr(self._scale)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=REPOSITORY_ROOT) as context:
            engine.docker("build", "--quiet", "--tag", name, "-", stdin=context.stdout)
        if context.returncode != 0:
            raise subprocess.CalledProcessError(context.returncode, argv)


# --------------------------------------------------------------------------------------- the build's context


def _write_context(name: str, scale: float) -> None:
    """Write the context that makes image ``name``, as a tar, to standard output."""
    code = _machine_code()
    source = TextSource()
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        if name == FIRST:
            copies = "".join(f"COPY layer-{number} /\n" for number in range(_LAYERS))
            _add(tar, "Dockerfile", f'FROM scratch\n{copies}CMD ["/none"]\n'.encode())
            for number in range(_LAYERS):
                _add_layer(tar, f"layer-{number}", round(_LAYER_BYTES * scale), code, source)
        else:
            _add(tar, "Dockerfile", f"FROM {FIRST}\nCOPY update /\n".encode())
            _add_layer(tar, "update", round(_UPDATE_BYTES * scale), code, source)


def _add_layer(
    tar: tarfile.TarFile, layer: str, size_bytes: int, code: Iterator[tuple[str, bytes]], source: TextSource
) -> None:
    """Add the files of one layer: ``size_bytes`` in all, in the shares above."""
    rng = random.Random(f"holdfast-bench/I/{layer}")
    code_bytes, compressed_bytes = round(size_bytes * _CODE_SHARE), round(size_bytes * _COMPRESSED_SHARE)

    missing = code_bytes
    while missing > 0:
        path, content = next(code)
        _add(tar, f"{layer}{path}.{layer}", content[:missing])
        missing -= len(content)
    for number, size in enumerate(_sizes(rng, compressed_bytes, _COMPRESSED_FILE_BYTES)):
        _add(tar, _path(f"{layer}/srv/{layer}", number, "gz"), rng.randbytes(size))
    for number, size in enumerate(_sizes(rng, size_bytes - code_bytes - compressed_bytes, _TEXT_FILE_BYTES)):
        _add(tar, _path(f"{layer}/opt/{layer}", number, "txt"), source.text(rng, size))


def _machine_code() -> Iterator[tuple[str, bytes]]:
    """Yield the programs and libraries of this machine, again and again, in an order that is the same every time."""
    paths = sorted(path for root in _CODE_ROOTS for path in _programs(root))
    random.Random("holdfast-bench/I/code").shuffle(paths)
    for path in cycle(paths):
        yield path, Path(path).read_bytes()


def _programs(root: str) -> Iterator[str]:
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode) and _MIN_FILE_BYTES <= found.st_size <= _MAX_CODE_FILE_BYTES:
                with open(path, "rb") as file:
                    if file.read(len(_ELF)) == _ELF:
                        yield path


def _sizes(rng: random.Random, total_bytes: int, mean_bytes: int) -> Iterator[int]:
    """Yield sizes around ``mean_bytes`` (exponential) that sum up to ``total_bytes``."""
    missing = total_bytes
    while missing > 0:
        size = min(missing, max(_MIN_FILE_BYTES, round(rng.expovariate(1 / mean_bytes))))
        yield size
        missing -= size


def _path(below: str, number: int, suffix: str) -> str:
    return f"{below}/{number // _FILES_PER_DIRECTORY}/{number}.{suffix}"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o644, _MTIME_S
    tar.addfile(member, io.BytesIO(content))


def main() -> None:
    """Write the context of an image, in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.images")
    parser.add_argument("name", choices=(FIRST, SECOND))
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    _write_context(options.name, options.scale)


if __name__ == "__main__":
    main()
