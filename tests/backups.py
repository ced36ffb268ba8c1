"""Backing up and restoring without the command line, and comparing what came back."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from holdfast.model.names import SourceName
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import objects, open_bucket
from holdfast.storage.bucket import Bucket
from holdfast.storage.cache import Cache
from holdfast.storage.store import Store
from holdfast.volumes import backup, restore
from holdfast.volumes.snapshots import Snapshot, open_snapshot

_numbers = itertools.count(1)


def memory_bucket() -> Bucket:
    """A new, empty bucket in memory; the ones before are let go of, for those who still hold them."""
    objects._memory_stores.clear()  # noqa: SLF001 - nothing else ends a store in memory
    return open_bucket(BucketUrl.parse(f"memory://trial-{os.getpid()}-{next(_numbers)}"))


@dataclass
class Rig:
    """A source, a bucket and a cache, below one folder."""

    folder: Path
    bucket: Bucket = field(default_factory=memory_bucket)
    name: SourceName = SourceName(b"trial")  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        self.source = self.folder / "source"
        self.source.mkdir(parents=True, exist_ok=True)
        self.cache = Cache(self.folder / "cache")

    @property
    def store(self) -> Store:
        return Store(self.bucket)

    def on(self, bucket: Bucket) -> Rig:
        """The same source and cache with another bucket."""
        return Rig(self.folder, bucket, self.name)

    def fresh_cache(self) -> Cache:
        """A cache that nobody has used yet."""
        self.cache = Cache(self.folder / f"cache-{next(_numbers)}")
        return self.cache

    def backup(self, progress=None, **options) -> backup.Done:
        source = backup.Source.of_path(os.fsencode(self.source), self.name)
        return backup.back_up(self.store, self.cache, source, options=backup.Options(**options), progress=progress)

    def open(self, tag: str | None = None, *, cache: Cache | None = None, at: datetime | None = None) -> Snapshot:
        return open_snapshot(self.store, cache or self.cache, self.name, tag=tag, at=at)

    def restore(self, target: Path, tag: str | None = None, *, progress=None, **options) -> restore.Restored:
        options = restore.Options(target=os.fsencode(target), **options)
        return restore.restore(self.open(tag), options, progress)

    def new_target(self) -> Path:
        return self.folder / f"target-{next(_numbers)}"

    def restored(self, tag: str | None = None) -> dict[bytes, tuple]:
        """The state of a snapshot restored into a directory of its own."""
        target = self.new_target()
        done = self.restore(target, tag)
        assert done.complete
        return state(target)


def state(root: str | bytes | Path) -> dict[bytes, tuple]:
    """Everything that a restore must bring back, by relative path (the root itself is empty)."""
    top = os.fsencode(root)
    found: dict[bytes, tuple] = {}
    links: dict[tuple[int, int], bytes] = {}

    def look(path: bytes, relative: bytes) -> None:
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        content: object = None
        if kind == stat.S_IFLNK:
            content = os.readlink(path)
        elif kind == stat.S_IFREG:
            with open(path, "rb") as file:
                content = (status.st_size, hashlib.file_digest(file, "sha256").hexdigest())
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = status.st_rdev
        first = relative
        if status.st_nlink > 1 and kind != stat.S_IFDIR:
            first = links.setdefault((status.st_dev, status.st_ino), relative)
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names))
        found[relative] = (
            kind,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            content,
            first,
            xattrs,
        )
        if kind == stat.S_IFDIR:
            for name in sorted(os.listdir(path)):
                look(path + b"/" + name, relative + b"/" + name if relative else name)

    look(top, b"")
    return found


def contents(root: Path) -> dict[str, bytes | str | None]:
    """Files' bytes, symlinks' targets and None for directories, by relative path."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = None
    return found


def leftovers(root: Path) -> list[str]:
    """Names below a directory that only work under way may have."""
    return [str(path) for path in root.rglob(".holdfast-*")]
