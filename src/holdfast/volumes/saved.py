"""What was saved under a name, in whichever layout."""

from __future__ import annotations

from datetime import datetime

from holdfast.errors import NotFoundError, TargetError
from holdfast.model.names import SourceName
from holdfast.model.snapshot import shown
from holdfast.progress import Progress
from holdfast.storage.cache import Cache
from holdfast.storage.store import Store
from holdfast.volumes.restore import Options, Restored, restore
from holdfast.volumes.snapshots import Snapshot, open_snapshot
from holdfast.volumes.tarball import Tarball, find_tarball, restore_tarball

Found = Snapshot | Tarball


def find_saved(
    store: Store,
    cache: Cache,
    name: SourceName,
    *,
    prefers_tarball: bool = False,
    tag: str | None = None,
    at: datetime | None = None,
) -> Found:
    """Find a snapshot, or where there is none the tarball that lies under a path's name; or the other way round.

    With ``tag`` or ``at`` only snapshots are looked at: a tarball has no history here.

    :raises NotFoundError: there is nothing.
    """
    tarball = find_tarball(store.bucket, name) if prefers_tarball and tag is None and at is None else None
    if tarball is not None:
        return tarball
    try:
        return open_snapshot(store, cache, name, tag=tag, at=at)
    except NotFoundError:
        tarball = find_tarball(store.bucket, name) if tag is None and at is None else None
        if tarball is None:
            raise
        return tarball


def is_file(found: Found) -> bool:
    """Whether it is a single file."""
    return not found.is_directory if isinstance(found, Tarball) else found.config.source.kind == "file"


def restore_found(
    found: Found,
    options: Options,
    *,
    file_name: bytes | None = None,
    exclude: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Restored:
    """Restore it, as :func:`restore` and :func:`restore_tarball` do.

    ``file_name`` is what a single file must be called in its place.
    """
    if isinstance(found, Tarball):
        return restore_tarball(found, options, file_name, exclude, progress)
    if file_name is not None:
        _check_called(found, file_name)
    return restore(found, options, progress)


def told(found: Found) -> dict[str, object]:
    """Give what commands and faces tell of it, as plain values."""
    if isinstance(found, Tarball):
        return {"name": str(found.name), "key": found.key}
    return {"name": str(found.name), "tag": found.tag.name, "digest": str(found.digest)}


def _check_called(snapshot: Snapshot, name: bytes) -> None:
    entry = next(snapshot.entries(), None)
    if entry is None or entry.path != name:
        was = shown(entry.path) if entry is not None else "nothing"
        raise TargetError(f"{snapshot.name} led to a file called {was!r}, and leads to {shown(name)!r} now")
