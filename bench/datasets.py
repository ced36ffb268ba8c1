"""The data that is backed up: made by rule, the same on every machine, and the changes made to it.

A   60,000 text files, 397 MiB in total, in nested directories.
B   two database-like files of 1 GiB: 8 KiB pages with a header and rows that are partly random.
M   1,000,000 files of 8 bytes in 1,000 directories.

Generators run in a process of their own (``python -m bench.datasets``): a child's peak memory as the kernel
accounts it is never below that of the process it was started from, so the measuring process must stay small.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

MIB = 1 << 20
REPOSITORY_ROOT = Path(__file__).resolve().parent.parent

FORMAT = 1  # raised whenever a generator changes, so that data of an older one is not reused

A_FILES = 60_000
A_BYTES = 397 * MIB
A_FILES_PER_DIRECTORY = 40
_BY_RANK_SHARE = 0.7  # of the words, whose length follows their rank; the others have any length
A_MIN_FILE_BYTES = 120
A_MAX_FILE_BYTES = 2 * MIB

PAGE_BYTES = 8192
B_FILES = 2
B_FILE_BYTES = 1024 * MIB
B_RANDOM_BYTES_PER_ROW = 72
B_TEXT_BYTES_PER_ROW = 156

M_FILES = 1_000_000
M_DIRECTORIES = 1_000

CHANGED_SHARE = 0.01


# ---------------------------------------------------------------------------------------------------- text


def _vocabulary(rng: random.Random, count: int) -> list[str]:
    """Return ``count`` different invented words, the short ones first as in a natural language."""
    onsets = ["", *"bcdfghjklmnprstvwz", "br", "ch", "cl", "dr", "fl", "gr", "pl", "pr", "sh", "st", "th", "tr"]
    nuclei = ["a", "e", "i", "o", "u", "ea", "ou", "io", "ai"]
    codas = ["", "", "", "n", "r", "s", "t", "l", "d", "m", "ng", "nt", "st", "ck"]
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = 1 + int(math.log1p(len(words)) / 3.2) if rng.random() < _BY_RANK_SHARE else rng.randint(1, 4)
        word = "".join(rng.choice(onsets) + rng.choice(nuclei) + rng.choice(codas) for _ in range(syllables))
        words.setdefault(word)
    return list(words)


def _lines(seed: str, count: int) -> list[bytes]:
    """Return ``count`` lines of text, each of 4 to 14 words drawn by Zipf's law."""
    rng = random.Random(seed)
    words = _vocabulary(rng, 20_000)
    weights = list(accumulate(1.0 / (rank + 2.7) for rank in range(len(words))))
    lines = []
    for _ in range(count):
        chosen = rng.choices(words, cum_weights=weights, k=rng.randint(4, 14))
        lines.append((" ".join(chosen) + rng.choice((".", ",", ";", "", ""))).encode())
    return lines


class TextSource:
    """Text by the piece. The pool is wide enough that whole lines seldom recur within a compressor's window."""

    def __init__(self, lines: int = 300_000) -> None:
        self._lines = _lines("holdfast-bench/text", lines)
        self._mean_bytes = sum(map(len, self._lines)) / len(self._lines) + 1

    def text(self, rng: random.Random, size_bytes: int) -> bytes:
        """Return exactly ``size_bytes`` of text that ends with a newline."""
        parts: list[bytes] = []
        missing = size_bytes
        while missing > 0:
            more = rng.choices(self._lines, k=int(missing / self._mean_bytes) + 2)
            parts += more
            missing -= sum(map(len, more)) + len(more)
        return b"\n".join(parts)[: size_bytes - 1] + b"\n"

    def one_string(self) -> bytes:
        """Return the whole pool as one run of text, for slices of a fixed length."""
        return b" ".join(self._lines)


# ------------------------------------------------------------------------------------------------------- A


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    size_bytes: int


def _a_files(scale: float) -> list[_File]:
    """Lay out data set A: names and sizes (log-normal, most of them small), no contents."""
    rng = random.Random("holdfast-bench/A/layout")
    count = max(100, round(A_FILES * scale))
    total = round(A_BYTES * count / A_FILES)
    names = _vocabulary(rng, 2_000)[100:]
    suffixes = (".txt", ".md", ".html", ".css", ".js", ".py", ".csv", ".json", ".log", ".conf")

    directories = [""]
    for number in range(max(3, count // A_FILES_PER_DIRECTORY)):
        # A parent among the earlier ones: a tree of uneven depth, as trees are.
        parent = directories[min(rng.randrange(len(directories)), rng.randrange(len(directories)))]
        directories.append(f"{parent}{rng.choice(names)}-{number}/")

    raw = [min(max(rng.lognormvariate(7.9, 1.25), A_MIN_FILE_BYTES), A_MAX_FILE_BYTES) for _ in range(count)]
    factor = total / sum(raw)
    sizes = [max(A_MIN_FILE_BYTES, int(size * factor)) for size in raw]
    sizes[-1] = max(A_MIN_FILE_BYTES, sizes[-1] + total - sum(sizes))

    return [
        _File(f"{rng.choice(directories)}{rng.choice(names)}-{number}{rng.choice(suffixes)}", size)
        for number, size in enumerate(sizes)
    ]


def _write_a(root: Path, files: list[_File], source: TextSource, round_number: int) -> None:
    for file in files:
        rng = random.Random(f"holdfast-bench/A/{round_number}/{file.path}")
        with open(root / file.path, "wb", buffering=0) as out:
            out.write(source.text(rng, file.size_bytes))


def generate_a(root: Path, scale: float) -> None:
    """Write data set A below ``root``."""
    files = _a_files(scale)
    for directory in sorted({os.path.dirname(file.path) for file in files}):
        (root / directory).mkdir(parents=True, exist_ok=True)
    _write_a(root, files, TextSource(), 0)


def change_a(root: Path, scale: float, round_number: int) -> None:
    """Rewrite 1 % of A's files with new text of the same length; another set of files each round."""
    files = _a_files(scale)
    rng = random.Random(f"holdfast-bench/A/change/{round_number}")
    chosen = rng.sample(files, max(1, round(len(files) * CHANGED_SHARE)))
    _write_a(root, chosen, TextSource(), round_number)


# ------------------------------------------------------------------------------------------------------- B

_PAGE_HEADER = struct.Struct("<QIHHHHI")  # log position, checksum, flags, lower, upper, special, page number
_ROW_HEADER = struct.Struct("<QIHH")  # row id, transaction, attribute count, flags
_ROW_BYTES = _ROW_HEADER.size + B_RANDOM_BYTES_PER_ROW + B_TEXT_BYTES_PER_ROW
_ROWS_PER_PAGE = (PAGE_BYTES - _PAGE_HEADER.size) // (_ROW_BYTES + 2)
_POINTERS = struct.pack(f"<{_ROWS_PER_PAGE}H", *(PAGE_BYTES - _ROW_BYTES * (row + 1) for row in range(_ROWS_PER_PAGE)))
_GAP = b"\0" * (PAGE_BYTES - _PAGE_HEADER.size - len(_POINTERS) - _ROW_BYTES * _ROWS_PER_PAGE)
_PAGES_PER_BLOCK = 128


def _pages(rng: random.Random, text: bytes, first_page: int, count: int, transaction: int) -> Iterator[bytes]:
    """Yield ``count`` pages: header, line pointers, free space, then rows of (header, random bytes, text)."""
    last_offset = len(text) - B_TEXT_BYTES_PER_ROW
    per_page = _ROWS_PER_PAGE * B_RANDOM_BYTES_PER_ROW
    noise = rng.randbytes(per_page * count)
    at = 0
    pack = _ROW_HEADER.pack
    uniform = rng.random
    for page in range(first_page, first_page + count):
        pieces = [_POINTERS, _GAP]
        row_id = page * _ROWS_PER_PAGE
        for row in range(row_id, row_id + _ROWS_PER_PAGE):
            offset = int(uniform() * last_offset)
            pieces += (
                pack(row, transaction, 7, 2306),
                noise[at : at + B_RANDOM_BYTES_PER_ROW],
                text[offset : offset + B_TEXT_BYTES_PER_ROW],
            )
            at += B_RANDOM_BYTES_PER_ROW
        body = b"".join(pieces)
        lower = _PAGE_HEADER.size + len(_POINTERS)
        header = _PAGE_HEADER.pack(
            (transaction << 40) + page * PAGE_BYTES, zlib.crc32(body), 0, lower, lower + len(_GAP), PAGE_BYTES, page
        )
        yield header + body


def _b_name(number: int) -> str:
    return f"base/{16384 + number}"


def _b_pages(scale: float) -> int:
    """Pages in each of B's files."""
    return max(4 * _PAGES_PER_BLOCK, round(B_FILE_BYTES * scale) // PAGE_BYTES)


def _generate_b_file(root: Path, number: int, pages: int) -> None:
    text = TextSource().one_string()
    with open(root / _b_name(number), "wb", buffering=0) as out:
        for first in range(0, pages, _PAGES_PER_BLOCK):
            rng = random.Random(f"holdfast-bench/B/0/{number}/{first}")
            out.write(b"".join(_pages(rng, text, first, min(_PAGES_PER_BLOCK, pages - first), 1)))


def generate_b(root: Path, scale: float) -> None:
    """Write data set B below ``root``, one process per file."""
    (root / "base").mkdir(parents=True)
    with ProcessPoolExecutor(B_FILES) as pool:
        work = [pool.submit(_generate_b_file, root, number, _b_pages(scale)) for number in range(B_FILES)]
        for each in work:
            each.result()


def change_b(root: Path, scale: float, round_number: int, scatter_run: int) -> None:
    """Rewrite 1 % of B's pages: half as one contiguous run, half scattered over both files.

    ``scatter_run`` is how many neighbouring pages are rewritten at each scattered place; 1 is single pages.
    """
    per_file = _b_pages(scale)
    total = per_file * B_FILES
    count = max(2, round(total * CHANGED_SHARE))
    run = count // 2
    rng = random.Random(f"holdfast-bench/B/change/{round_number}")

    # The run lies within one file.
    start = rng.randrange(B_FILES) * per_file + rng.randrange(per_file - run)
    changed = set(range(start, start + run))
    places = iter(rng.sample(range(total // scatter_run), total // scatter_run))
    while len(changed) < count:
        place = next(places) * scatter_run
        changed.update(range(place, min(place + scatter_run, place + count - len(changed))))

    text = TextSource().one_string()
    handles = [os.open(root / _b_name(number), os.O_WRONLY) for number in range(B_FILES)]
    try:
        for page in sorted(changed):
            number, within = divmod(page, per_file)
            seeded = random.Random(f"holdfast-bench/B/{round_number}/{number}/{within}")
            data = next(_pages(seeded, text, within, 1, round_number + 1))
            os.pwrite(handles[number], data, within * PAGE_BYTES)
    finally:
        for handle in handles:
            os.close(handle)


# ------------------------------------------------------------------------------------------------------- M


def _generate_m_part(root: Path, first: int, last: int, per_directory: int) -> None:
    for number in range(first, last):
        directory = root / f"d{number:04d}"
        directory.mkdir()
        start = number * per_directory
        for file in range(start, start + per_directory):
            handle = os.open(f"{directory}/f{file:07d}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(handle, b"%08x" % file)
            os.close(handle)


def generate_m(root: Path, scale: float) -> None:
    """Write data set M below ``root``: every file has 8 bytes of its own."""
    directories = max(2, round(M_DIRECTORIES * scale))
    per_directory = M_FILES // M_DIRECTORIES
    half = directories // 2
    with ProcessPoolExecutor(2) as pool:
        work = [pool.submit(_generate_m_part, root, *span, per_directory) for span in ((0, half), (half, directories))]
        for each in work:
            each.result()


# --------------------------------------------------------------------------------------------- the data set


class Dataset:
    """One data set on disk, made when it is not there, and the number of changes it has seen.

    The directory ``<parent>/<name>`` holds the data alone; ``<parent>/<name>.json`` says how it was made.
    """

    def __init__(self, name: str, parent: Path, scale: float) -> None:
        self.name = name
        self.path = parent / name
        self._state_path = parent / f"{name}.json"
        self._scale = scale
        self.round_number = 0

    def ensure(self) -> bool:
        """Make the data, or take what an earlier run left. Return whether it had to be made."""
        state = {"format": FORMAT, "name": self.name, "scale": self._scale}
        try:
            found = json.loads(self._state_path.read_text())
        except (FileNotFoundError, ValueError):
            found = {}
        if {key: found.get(key) for key in state} == state and found.get("complete"):
            self.round_number = int(found["round"])
            return False
        self._state_path.unlink(missing_ok=True)
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        self._child("generate")
        self._save()
        return True

    def change(self, scatter_run: int = 1) -> None:
        """Change 1 % of the data; never the same change twice. ``scatter_run`` is for B (see change_b)."""
        self.round_number += 1
        # Saved first: a round that was cut short must not be taken again as a new one.
        self._save()
        self._child("change", "--scatter-run", str(scatter_run))

    def warm(self) -> None:
        """Read everything once, so that no tool is the first to fetch it from the disk."""
        self._child("warm")

    def _save(self) -> None:
        state = {
            "format": FORMAT,
            "name": self.name,
            "scale": self._scale,
            "round": self.round_number,
            "complete": True,
        }
        self._state_path.write_text(json.dumps(state) + "\n")

    def _child(self, action: str, *more: str) -> None:
        argv = [sys.executable, "-m", "bench.datasets", action, self.name, str(self.path)]
        argv += ["--scale", repr(self._scale), "--round", str(self.round_number)]
        subprocess.run([*argv, *more], check=True, cwd=REPOSITORY_ROOT)


def _warm(root: Path) -> None:
    buffer = bytearray(MIB)
    for directory, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(directory, name), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def main() -> None:
    """Generate, change or read one data set (the measuring process calls this in a child)."""
    parser = argparse.ArgumentParser(prog="python -m bench.datasets")
    parser.add_argument("action", choices=("generate", "change", "warm"))
    parser.add_argument("name", choices=("A", "B", "M"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--scatter-run", type=int, default=1)
    options = parser.parse_args()
    root: Path = options.path
    if options.action == "warm":
        _warm(root)
    elif options.action == "generate":
        root.mkdir(parents=True, exist_ok=True)
        {"A": generate_a, "B": generate_b, "M": generate_m}[options.name](root, options.scale)
    elif options.name == "A":
        change_a(root, options.scale, options.round)
    elif options.name == "B":
        change_b(root, options.scale, options.round, options.scatter_run)
    else:
        parser.error("data set M has no changes")


if __name__ == "__main__":
    main()
