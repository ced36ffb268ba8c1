"""Trees of files for the tests: made with everything a file system can hold, and taken apart to the last attribute."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

IS_ROOT = os.geteuid() == 0
KIB, MIB = 1024, 1024 * 1024
LONG_PAST = -1_234_567_890_123_456_789  # 1930
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

Facts = dict[str, object]


def fingerprint(root: Path | str | bytes, *, lacking: tuple[str, ...] = ()) -> dict[bytes, Facts]:
    """Everything of a tree, by path: what stat, getxattr, readlink and read show, names that are one file, and holes.

    ``lacking`` are facts to leave out. Only inode numbers, access and change times, and sockets are never in it.
    """
    tree: dict[bytes, Facts] = {}
    names: dict[tuple[int, int], list[bytes]] = {}
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for path, facts, identity in _walk(folder, b""):
            tree[path] = facts
            if facts["kind"] != "directory":
                names.setdefault(identity, []).append(path)
                facts["names"] = names[identity]
    finally:
        os.close(folder)
    for shared in names.values():
        shared.sort()
    for facts in tree.values():
        for fact in lacking:
            facts.pop(fact, None)
    return tree


def _walk(folder: int, base: bytes) -> Iterator[tuple[bytes, Facts, tuple[int, int]]]:
    status = os.fstat(folder)
    yield base or b".", _facts(folder, b".", status), (status.st_dev, status.st_ino)
    for name in sorted(map(os.fsencode, os.listdir(folder))):
        path = base + b"/" + name if base else name
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISSOCK(status.st_mode):
            continue
        if stat.S_ISDIR(status.st_mode):
            below = os.open(name, _DIRECTORY, dir_fd=folder)
            try:
                yield from _walk(below, path)
            finally:
                os.close(below)
        else:
            yield path, _facts(folder, name, status), (status.st_dev, status.st_ino)


def _facts(folder: int, name: bytes, status: os.stat_result) -> Facts:
    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symlink",
        stat.S_IFIFO: "fifo",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
    }
    kind = kinds[stat.S_IFMT(status.st_mode)]
    facts: Facts = {
        "kind": kind,
        "mode": oct(stat.S_IMODE(status.st_mode)),
        "owner": (status.st_uid, status.st_gid),
        "mtime_ns": status.st_mtime_ns,
        "xattrs": xattrs(b"/proc/self/fd/%d/%b" % (folder, name)),
    }
    if kind == "symlink":
        facts["target"] = os.readlink(name, dir_fd=folder)
    elif "device" in kind:
        facts["device"] = (os.major(status.st_rdev), os.minor(status.st_rdev))
    elif kind == "file":
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
        try:
            facts["size"] = status.st_size
            facts["data"] = list(data_extents(descriptor))
            os.lseek(descriptor, 0, os.SEEK_SET)
            with os.fdopen(os.dup(descriptor), "rb") as file:
                facts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        finally:
            os.close(descriptor)
    return facts


def xattrs(path: bytes) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def data_extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """The stretches of a file that are no holes."""
    end, size = 0, os.fstat(descriptor).st_size
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # a hole up to the end
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, min(end, size)


def differences(old: dict[bytes, Facts], new: dict[bytes, Facts]) -> list[str]:
    """What differs between two fingerprints, in sentences."""
    found = [f"{path!r} is gone" for path in old.keys() - new.keys()]
    found += [f"{path!r} is new" for path in new.keys() - old.keys()]
    for path in old.keys() & new.keys():
        found += [
            f"{path!r} {fact}: {old[path].get(fact)!r} became {new[path].get(fact)!r}"
            for fact in old[path] | new[path]
            if old[path].get(fact) != new[path].get(fact)
        ]
    return sorted(found)


def assert_same(old: dict[bytes, Facts], new: dict[bytes, Facts]) -> None:
    found = differences(old, new)
    assert not found, "\n".join(found[:20])
    assert old


def random_bytes(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def write(path: Path | bytes, content: bytes | str = b"", *, mtime_ns: int | None = None) -> None:
    """Make a file and the directories above it."""
    path = os.fsencode(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns))


def write_sparse(path: Path, size: int, *pieces: tuple[int, bytes]) -> None:
    """Make a file of holes with some pieces of data in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)


def rewrite(path: Path, offset: int, data: bytes) -> None:
    """Change a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def touch_silently(path: Path, offset: int, data: bytes) -> None:
    """Change a file in place and put its modification time back: only its change time tells."""
    status = path.stat()
    rewrite(path, offset, data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


def make_small(root: Path) -> Path:
    """A few files and directories, one of each common kind."""
    write(root / "a.txt", "alpha\n")
    write(root / "b/c.txt", "gamma\n")
    write(root / "b/deep/er/d.bin", random_bytes(300 * KIB, 7))
    write(root / "z.log", "log\n")
    (root / "link").symlink_to("b/c.txt")
    (root / "empty").mkdir()
    return root


def make_rich(root: Path) -> Path:  # one of everything, in a row
    """A tree with everything that a backup must bring back; what needs root is in it if we are root."""
    root.mkdir(parents=True)
    _modes(root / "modes")
    _times(root / "times")
    _links(root / "links")
    _sparse(root / "sparse")
    _names(root / "names")
    _deep(root / "deep")
    make_attributes(root / "attributes")
    _lookalikes(root)
    os.mkfifo(root / "fifo", 0o640)
    if IS_ROOT:
        _privileged(root / "root")
    with socket.socket(socket.AF_UNIX) as listener:  # left out
        here = os.getcwd()  # a socket's path must be short
        try:
            os.chdir(root)
            listener.bind("socket")
        finally:
            os.chdir(here)
    os.utime(root, ns=(1, 1_000_000_000_123_456_789))
    return root


def _modes(at: Path) -> None:
    for mode in (0o000, 0o400, 0o755, 0o777, 0o4755, 0o2755, 0o6711, 0o1644):
        write(at / f"file-{mode:04o}", f"{mode}")
        (at / f"file-{mode:04o}").chmod(mode)
        (at / f"dir-{mode:04o}").mkdir()
        if IS_ROOT or mode & 0o700 == 0o700:
            write(at / f"dir-{mode:04o}" / "in", "inside")
            (at / f"dir-{mode:04o}").chmod(mode)
    write(at / "empty")
    (at / "empty-dir").mkdir()
    write(at / "twin-1", "the same contents")
    write(at / "twin-2", "the same contents")
    if not IS_ROOT:
        (at / "file-0000").unlink()


def _times(at: Path) -> None:
    at.mkdir()
    (at / "symlink").symlink_to("nowhere")
    os.utime(at / "symlink", ns=(0, 1_111_111_111_987_654_321), follow_symlinks=False)
    for number, time_ns in enumerate((0, 1, -1, LONG_PAST, 1_600_000_000_999_999_999, 9_999_999_999_000_000_001)):
        write(at / f"file-{number}", "x", mtime_ns=time_ns)
        (at / f"dir-{number}").mkdir()
        write(at / f"dir-{number}/in", "y")
        os.utime(at / f"dir-{number}", ns=(0, time_ns))


def _links(at: Path) -> None:
    write(at / "first", random_bytes(50 * KIB, 3))
    (at / "second").hardlink_to(at / "first")
    (at / "a/b").mkdir(parents=True)
    (at / "a/b/third").hardlink_to(at / "first")
    (at / "zero").touch()
    (at / "zero-too").hardlink_to(at / "zero")
    for name, target in {
        "dangling": "no/such/thing",
        "absolute": "/etc/hostname",
        "up": "../../../..",
        "to-dir": "a",
        "loop": "loop",
        "spaced": "a name\nof two lines ",
        "long": "x/" * 400,
    }.items():
        (at / name).symlink_to(target)
    os.symlink(b"bytes-\xff\xfe", os.fsencode(at / "not-utf8"))
    os.link(at / "dangling", at / "dangling-too", follow_symlinks=False)
    os.mkfifo(at / "pipe")
    os.link(at / "pipe", at / "pipe-too")


def _sparse(at: Path) -> None:
    piece = random_bytes(20 * KIB, 5)
    write_sparse(at / "leading", 4 * MIB, (4 * MIB - len(piece), piece))
    write_sparse(at / "trailing", 4 * MIB, (0, piece))
    write_sparse(at / "middle", 9 * MIB, (0, piece), (5 * MIB, piece[::-1]))
    write_sparse(at / "all-hole", 3 * MIB)
    write_sparse(at / "small", 256 * KIB, (128 * KIB, b"in the middle"))
    write_sparse(at / "small-all-hole", 64 * KIB)
    write_sparse(at / "odd", 1 * MIB + 12345, (64 * KIB, b"odd"))
    write(at / "zeros", bytes(2 * MIB))  # data, not holes


def _names(at: Path) -> None:
    at.mkdir()
    for name in (
        b" space ", b"-rf", b"--", b"new\nline", b"tab\t", b"quote'\"", b"back\\slash", b"*?[a]", b"~", b"#", b"!x",
        b"\xff\xfe\x80", b"\xc3\x28", "ünï".encode(), "e\u0301".encode(), "\U0001f40b".encode(), b"\x01\x7f", b"a.b",
        b"n" * 255, "ü".encode() * 127, b".holdfast-0123456789abcdef0123456789abcdef", b"a", b"a!", b"\xed\xa0\x80",
        b"@latest",
    ):  # fmt: skip
        write(os.fsencode(at) + b"/" + name, b"called " + name)
        if len(name) < 250:
            os.mkdir(os.fsencode(at) + b"/" + name + b".d")
            write(os.fsencode(at) + b"/" + name + b".d/" + name, b"in it")


def _deep(at: Path) -> None:
    """Paths of more than 4,096 bytes, which no system call takes whole."""
    at.mkdir()
    folder = os.open(at, _DIRECTORY)
    for depth in range(60):
        name = b"%02d" % depth + b"d" * 90
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, _DIRECTORY, dir_fd=folder)
        os.close(folder)
        folder = below
    with open(os.open(b"bottom", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder), "wb") as file:
        file.write(b"here")
    os.symlink(b"bottom", b"link", dir_fd=folder)
    os.link(b"bottom", b"again", src_dir_fd=folder, dst_dir_fd=folder)
    os.close(folder)


def make_attributes(at: Path) -> None:
    """Extended attributes and access lists."""
    write(at / "file", "attributes")
    (at / "dir").mkdir()
    write(at / "dir/plain", "none")
    for path in (at / "file", at / "dir"):
        with contextlib.suppress(OSError):  # a file system without them
            os.setxattr(path, "user.empty", b"")
            os.setxattr(path, "user.bytes", bytes(range(256)) * 4)
            os.setxattr(path, "user.ünï", b"name")
    if shutil.which("setfacl"):
        for arguments in (
            ["-m", "u:12345:rw,g:54321:r,m::rw", "file"],
            ["-m", "u:12345:rwx", "dir"],
            ["-d", "-m", "u:12345:rwx,g:54321:rx", "dir"],
        ):
            subprocess.run(["setfacl", *arguments], cwd=at, check=True, capture_output=True)
        write(at / "dir/inherits", "an access list from its directory")
        (at / "dir/sub").mkdir()


def _lookalikes(root: Path) -> None:
    """What a user may have that looks like our own."""
    write(root / ".holdfast/parts/sparse/middle/00000000000000000000", "not a part")
    write(root / ".holdfast/parts/x", "nor this")
    write(root / "docker/registry/v2/blobs/sha256/00/data", "no blob")


def _privileged(at: Path) -> None:
    at.mkdir()
    for number, owner in enumerate(((1, 2), (2**21 - 1, 2**21), (2**21 + 5, 2**31), (2**32 - 2, 2**32 - 2))):
        write(at / f"owned-{number}", "x")
        os.chown(at / f"owned-{number}", *owner)
        (at / f"dir-{number}").mkdir()
        os.chown(at / f"dir-{number}", *owner)
        (at / f"link-{number}").symlink_to("x")
        os.chown(at / f"link-{number}", *owner, follow_symlinks=False)
    write(at / "setuid", "#!")
    os.chown(at / "setuid", 77, 88)
    (at / "setuid").chmod(0o6755)
    os.mknod(at / "char", 0o620 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(at / "block", 0o660 | stat.S_IFBLK, os.makedev(259, 1_000_000))
    os.chown(at / "block", 5, 6)
    os.link(at / "char", at / "char-too")
    with contextlib.suppress(OSError):
        os.setxattr(at / "link-0", "trusted.note", b"on a symlink", follow_symlinks=False)
    if setcap := shutil.which("setcap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        write(at / "capable", "elf")
        subprocess.run([setcap, "cap_net_raw+ep", at / "capable"], check=True, capture_output=True)
