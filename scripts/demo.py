"""A real directory backed up, changed, backed up again, destroyed, restored and compared.

usage: demo.py [DIRECTORY]        default: Python's own library

DIRECTORY is only read: everything happens to a copy, in a temporary directory that is removed in the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 1 << 20
SHOWN_DIFFERENCES = 20
EXTRAS = "holdfast-demo"  # what few directories have, so that every kind of entry takes part

Record = dict[str, object]


def main() -> None:
    """Run the demonstration; the exit code is 1 if anything came back different."""
    given = Path(sys.argv[1]).resolve() if sys.argv[1:] else None
    if given and not given.is_dir():
        sys.exit(f"{given} is not a directory")
    base = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    os.environ["XDG_CACHE_HOME"] = str(base / "cache")
    try:
        identical = demonstrate(given, base / "data", f"file://{base / 'store'}")
    finally:
        shutil.rmtree(base)
    sys.exit(0 if identical else 1)


def demonstrate(given: Path | None, data: Path, store: str) -> bool:
    """Take `data`, a copy of `given`, through a backup's life in `store`; return whether it survived."""
    step(f"copying {given or 'the Python library'} to {data}")
    copy(given, data)
    add_extras(data / EXTRAS)

    step(f"backing it up to {store}")
    first = backup(data, store)

    step("changing the copy: " + ", ".join(change(data)))
    before = dict(records(data))

    step("backing it up again")
    second = backup(data, store)
    print(f"  {size(second['bytes_stored'])} stored, after {size(first['bytes_stored'])} the first time")
    print(indent(holdfast("snapshots", str(data), "--store", store)))

    step("destroying the copy")
    shutil.rmtree(data)

    step("restoring it (ext4 is slow to create what was deleted just before)")
    began = time.monotonic()
    holdfast("restore", str(data), "--store", store, "--target", str(data), "--json")
    print(f"  {time.monotonic() - began:.1f} s")

    step("comparing types, modes, owners, times (ns), link targets, hard links, attributes and contents")
    return compare(before, dict(records(data)))


def copy(given: Path | None, data: Path) -> None:
    """Copy with all that `cp -a` keeps; of Python's library, leave out what others installed into it."""
    if given:
        sources = [f"{given}/."]
    else:
        library = Path(sysconfig.get_path("stdlib"))
        sources = [str(path) for path in sorted(library.iterdir()) if not path.name.endswith("-packages")]
    data.mkdir()
    result = subprocess.run(["cp", "-a", "--", *sources, str(data)], stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        print(f"  {len(result.stderr.splitlines())} paths could not be copied: {result.stderr.splitlines()[0]}")


def add_extras(extras: Path) -> None:
    """Make one entry of each unusual kind."""
    extras.mkdir()
    (extras / "one").write_text("one file, two names\n")
    (extras / "two").hardlink_to(extras / "one")
    (extras / "dangling").symlink_to("nowhere/at all")
    os.mkfifo(extras / "fifo")
    (extras / "setuid").touch()
    (extras / "setuid").chmod(0o4750)
    Path(os.fsdecode(os.fsencode(extras) + b"/not utf-8: \xff")).touch()
    with (extras / "sparse").open("wb") as file:
        file.seek(8 << 20)
        file.write(b"behind a hole")
    try:
        os.setxattr(extras / "one", "user.holdfast", b"kept\0too")
    except OSError as error:
        print(f"  without extended attributes: {error.strerror}")
    os.utime(extras / "dangling", ns=(1, 1_000_000_000_123_456_789), follow_symlinks=False)


def change(data: Path) -> list[str]:
    """Change a little of everything; return what was done."""
    largest = max((path for path in files(data)), key=lambda path: (path.lstat().st_size, path))
    largest.chmod(largest.stat().st_mode | stat.S_IWUSR)
    with largest.open("r+b") as file:
        file.seek(largest.stat().st_size // 2)
        file.write(b"a few bytes in the middle")
    extras = data / EXTRAS
    (extras / "new").write_text("a new file\n")
    (extras / "setuid").unlink()
    (extras / "fifo").rename(extras / "renamed")
    (extras / "sparse").chmod(0o600)
    inside = f"25 bytes within {largest.name} ({size(largest.stat().st_size)})"
    return [inside, "one file added, one deleted, one renamed, one given another mode"]


def files(data: Path) -> Iterator[Path]:
    """Every regular file of one name outside the extras."""
    for path, status in walk(data):
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and EXTRAS not in path.parts:
            yield path


def walk(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every path of the tree with its status, in an order that depends on names alone."""
    yield top, top.lstat()
    with os.scandir(top) as listing:
        entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))
        else:
            yield Path(entry.path), entry.stat(follow_symlinks=False)


def records(top: Path) -> Iterator[tuple[str, Record]]:
    """All there is to know about each entry, by its path below `top`. Sockets are of a process, not of a tree."""
    first_names: dict[tuple[int, int], str] = {}
    for path, status in walk(top):
        if stat.S_ISSOCK(status.st_mode):
            continue
        name = str(path.relative_to(top))
        record: Record = {
            "type": stat.S_IFMT(status.st_mode),
            "mode": oct(stat.S_IMODE(status.st_mode)),
            "owner": (status.st_uid, status.st_gid),
            "mtime_ns": status.st_mtime_ns,
            "attributes": attributes(path),
        }
        if stat.S_ISLNK(status.st_mode):
            record["target"] = path.readlink()
        elif stat.S_ISREG(status.st_mode):
            record["size"] = status.st_size
            record["content"] = content(path)
        elif not stat.S_ISDIR(status.st_mode):
            record["device"] = status.st_rdev
        if not stat.S_ISDIR(status.st_mode):
            record["links"] = status.st_nlink, first_names.setdefault((status.st_dev, status.st_ino), name)
        yield name, record


def attributes(path: Path) -> dict[str, bytes]:
    """The extended attributes, where the system has them: ACLs and capabilities are among them."""
    if not hasattr(os, "listxattr"):
        return {}
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:  # a file system without them
        return {}
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(names)}


def content(path: Path) -> str:
    """A hash of the content, read in blocks."""
    hasher = hashlib.blake2b()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def compare(before: dict[str, Record], after: dict[str, Record]) -> bool:
    """Say what differs, or that nothing does."""
    differences = [
        f"{name!r}: {what}"
        for name in sorted(before.keys() | after.keys())
        for what in differing(before.get(name), after.get(name))
    ]
    if not differences:
        print(f"{len(before)} entries: identical")
        return True
    for line in differences[:SHOWN_DIFFERENCES]:
        print(f"  {line}")
    print(f"{len(differences)} differences")
    return False


def differing(before: Record | None, after: Record | None) -> Iterator[str]:
    """What distinguishes two records of one path."""
    if before is None or after is None:
        yield "missing" if after is None else "came from nowhere"
        return
    for key in before.keys() | after.keys():
        if before.get(key) != after.get(key):
            yield f"{key} was {before.get(key)}, is {after.get(key)}"


def backup(source: Path, store: str) -> dict[str, Any]:
    """Back up with the command; print and return its figures."""
    result: dict[str, Any] = json.loads(holdfast("backup", str(source), "--store", store, "--json"))
    print(
        f"  {result['files']} files, {result['directories']} directories; {size(result['bytes_read'])} read, "
        f"{size(result['bytes_new'])} new, {size(result['bytes_stored'])} stored; {result['seconds']:.1f} s"
    )
    return result


def holdfast(*arguments: str) -> str:
    """Run one command; return its standard output, or end with its error."""
    command = [sys.executable, "-m", "holdfast", *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        sys.exit(f"holdfast {arguments[0]} ended with {result.returncode}")
    return result.stdout


def step(text: str) -> None:
    """Say what comes next."""
    print(f"* {text}", flush=True)


def indent(text: str) -> str:
    """Set a command's output off."""
    return "\n".join(f"  {line}" for line in text.splitlines())


def size(count: int) -> str:
    """Bytes for people."""
    kib, mib = 1 << 10, 1 << 20
    return f"{count / mib:.1f} MiB" if count >= mib else f"{count / kib:.1f} KiB" if count >= kib else f"{count} bytes"


if __name__ == "__main__":
    main()
