"""The snapshot before: whether it can be used, what of it is kept, and which of its layers are left behind."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from holdfast.archive import tar
from holdfast.archive.metadata import kind_of
from holdfast.errors import DamageError, NotFoundError
from holdfast.model.digest import Digest
from holdfast.model.names import LATEST, SourceName
from holdfast.model.snapshot import Entry, LayerRow, sort_key, weight
from holdfast.progress import Progress
from holdfast.storage.cache import Cache
from holdfast.storage.store import Store
from holdfast.volumes.snapshots import Snapshot, snapshot_tags

_SMALL_LAYERS = 1024
_MOST_AHEAD_S = 10


def find_parent(store: Store, cache: Cache, name: SourceName, progress: Progress) -> Snapshot | None:
    """Open the latest snapshot of a source; None where there is none, or it cannot be used (which is warned about)."""
    try:
        parent = Snapshot(store, cache, name.repository, _latest(store, name))
    except NotFoundError:
        return None
    except DamageError as error:
        progress.warn(f"the snapshot before cannot be used, so everything is stored anew: {error}")
        return None
    if (parent.config.machine_id or parent.config.host) != (machine_id() or platform.node()):
        progress.warn(f"the snapshot before was made on another machine, {parent.config.host}")
    return parent


def _latest(store: Store, name: SourceName) -> Digest:
    try:
        return store.resolve(name.repository, LATEST)
    except DamageError:
        return store.resolve(name.repository, snapshot_tags(store, name)[-1])


def layers_to_drop(rows: list[LayerRow], bare: int, target: int) -> set[int]:
    """Choose the layers of the parent to leave behind: what still lives in them is read from the source again.

    What a snapshot needs is what its references weigh, and a header for each of the ``bare`` paths without contents.
    While its layers hold more than twice that, the least used one goes. And where more than a thousand small layers
    (below a quarter of ``target`` bytes) have come together, all of the small ones go: a long chain of small backups
    stays short.
    """
    dropped = set()
    held = sum(row.tar_bytes for row in rows)
    needed = sum(row.live_bytes for row in rows) + bare * weight(0) + len(rows) * len(tar.END)
    for row in sorted(rows, key=lambda row: row.live_bytes / row.tar_bytes if row.tar_bytes else 0):
        if held <= 2 * needed:
            break
        dropped.add(row.id)
        held -= row.tar_bytes - row.live_bytes  # what lives in it is stored again
    small = {row.id for row in rows if row.tar_bytes * 4 < target}
    return dropped | small if len(small) > _SMALL_LAYERS else dropped


class Merge:
    """Walks the parent's entries beside the paths that are found, both in the same order.

    ``forget`` is called with every entry that is not kept.
    """

    def __init__(self, entries: Iterator[Entry], forget: Callable[[Entry], None]) -> None:
        self._entries = entries
        self._forget = forget
        self._next = next(entries, None)
        self._matched: Entry | None = None

    def at(self, path: bytes) -> Entry | None:
        """Give the parent's entry of a path. Unless ``keep`` follows, it is forgotten."""
        self._drop_matched()
        entry = self._next
        if entry is None:
            return None
        if entry.path != path:
            key = sort_key(path)
            while entry is not None and sort_key(entry.path) < key:
                self._forget(entry)
                entry = next(self._entries, None)
            self._next = entry
            if entry is None or entry.path != path:
                return None
        self._matched = entry
        self._next = next(self._entries, None)
        return entry

    def keep(self) -> list[Entry]:
        """Keep the entry that ``at`` gave: gives it, and those in which it goes on."""
        assert self._matched is not None  # noqa: S101 - at() gave it
        kept = [self._matched]
        self._matched = None
        while self._next is not None and self._next.kind == "+":
            kept.append(self._next)
            self._next = next(self._entries, None)
        return kept

    def end(self) -> None:
        """Forget what is left."""
        self._drop_matched()
        while self._next is not None:
            self._forget(self._next)
            self._next = next(self._entries, None)

    def _drop_matched(self) -> None:
        if self._matched is None:
            return
        self._forget(self._matched)
        self._matched = None
        while self._next is not None and self._next.kind == "+":
            self._forget(self._next)
            self._next = next(self._entries, None)


def is_unchanged(old: Entry, status: os.stat_result, first: bytes | None) -> bool:
    """Whether a path is as the parent has it, told from its metadata alone."""
    if old.ctime_ns != status.st_ctime_ns or old.mtime_ns != status.st_mtime_ns or old.inode != status.st_ino:
        return False
    if first is not None:
        return old.kind == "h" and old.target == first
    kind = kind_of(status.st_mode)
    return old.kind == kind and (kind != "f" or old.size == status.st_size)


def time_after(parent: Snapshot | None) -> datetime:
    """Give the time of the new snapshot: now, but never the same second as the one before it, for tags sort by time."""
    now = datetime.now(UTC)
    if parent is None:
        return now
    earliest = datetime.fromisoformat(parent.config.created) + timedelta(seconds=1)
    # A parent from a clock that ran ahead is no reason to claim its time.
    return earliest if now < earliest < now + timedelta(seconds=_MOST_AHEAD_S) else now


def machine_id() -> str:
    """Give what tells this machine from others, or nothing where it has no such thing."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
