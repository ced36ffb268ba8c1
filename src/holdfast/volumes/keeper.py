"""Saves and restores paths of this machine by name, and only below the roots."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from holdfast.archive.scan import Rules
from holdfast.config import Layout
from holdfast.errors import NotFoundError, ObjectNotFound
from holdfast.model.names import SourceName
from holdfast.model.urls import BucketUrl
from holdfast.progress import Progress
from holdfast.storage.backends import open_bucket
from holdfast.storage.cache import Cache
from holdfast.storage.store import Store, blob_key
from holdfast.volumes import backup
from holdfast.volumes.own import own_folders, own_identities
from holdfast.volumes.restore import Mode, Options
from holdfast.volumes.roots import Roots
from holdfast.volumes.saved import Found, find_saved, is_file, restore_found, told
from holdfast.volumes.snapshots import Listed, list_snapshots
from holdfast.volumes.tarball import Tarball, find_tarball, save_tarball


@dataclass(frozen=True, slots=True)
class Manner:
    """How a server saves: ``level`` is zstd's in snapshots (None: not at all), ``gzip`` is about tarballs."""

    layout: Layout = "registry"
    level: int | None = None
    gzip: bool = True
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job, as plain values, and whether all of it could be done."""

    told: dict[str, Any]
    complete: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a keeper is made of, as plain values that another process can be given."""

    store: BucketUrl
    cache: Path
    roots: Roots
    manner: Manner

    def keeper(self) -> Keeper:
        """Make one, in this process."""
        return Keeper(Store(open_bucket(self.store)), Cache(self.cache), self.roots, self.manner)


class Keeper:
    """The paths below some roots, in one store. Safe from any thread."""

    def __init__(self, store: Store, cache: Cache, roots: Roots, manner: Manner) -> None:
        self.store = store
        self._cache = cache
        self._roots = roots
        self._manner = manner

    def save(self, name: SourceName, progress: Progress) -> Outcome:
        """Save a directory or file, as :func:`back_up` or :func:`save_tarball` do."""
        rules = Rules(exclude=self._manner.exclude, folders=own_identities(self.store, self._cache))
        with self._roots.existing(name.name) as place:
            source = backup.Source(name, place.path, place.kind, place.folder)
            if self._manner.layout == "tarball":
                return self._save_tarball(source, rules, progress)
            options = backup.Options(rules, self._manner.level)
            done = backup.back_up(self.store, self._cache, source, options=options, progress=progress)
        known = {**done.told(), "repository": str(name.repository)}
        return Outcome({**known, **self._where(blob_key(done.digest), f'"{done.digest}"')}, done.complete)

    def _save_tarball(self, source: backup.Source, rules: Rules, progress: Progress) -> Outcome:
        saved = save_tarball(self.store.bucket, source, compress=self._manner.gzip, rules=rules, progress=progress)
        return Outcome({**saved.told(), **self._where(saved.key, saved.etag)}, saved.complete)

    def _where(self, key: str, etag: str) -> dict[str, object]:
        """Give what micro-s3-persistence told of an upload, in its words."""
        url = self.store.bucket.url
        bucket, full = (url.directory, key) if url.scheme == "file" else (url.bucket, f"{url.prefix}/{key}".lstrip("/"))
        location = f"{url.scheme}://{quote(f'{bucket}/{full}')}"
        return {"ETag": etag, "Location": location, "Key": full, "key": full, "Bucket": bucket}

    def restore(
        self, name: SourceName, mode: Mode, *, tag: str | None, at: datetime | None, progress: Progress
    ) -> Outcome:
        """Restore what was saved under a name, as :func:`restore_found` does."""
        found = self._find(name, tag, at)
        single = is_file(found)
        with self._roots.writable(name.name, "file" if single else "directory") as place:
            options = Options(
                target=os.path.dirname(place.path) if single else place.path,
                opened=place.folder,
                mode=mode,
                spare=own_folders(self.store, self._cache),
            )
            restored = restore_found(
                found,
                options,
                file_name=os.path.basename(place.path) if single else None,
                exclude=self._manner.exclude,
                progress=progress,
            )
        return Outcome({**told(found), **restored.told()}, restored.complete)

    def _find(self, name: SourceName, tag: str | None, at: datetime | None) -> Found:
        prefers_tarball = self._manner.layout == "tarball"
        try:
            return find_saved(self.store, self._cache, name, prefers_tarball=prefers_tarball, tag=tag, at=at)
        except ObjectNotFound:
            raise
        except NotFoundError as error:
            raise NotFoundError(str(error)) from error  # its hint names what else is saved: not for everybody

    def history(self, name: SourceName) -> tuple[list[Listed], Tarball | None]:
        """Give the snapshots of a path, oldest first, and the tarball that lies under its name."""
        return _snapshots(self.store, name), find_tarball(self.store.bucket, name)


@dataclass(frozen=True, slots=True)
class Save:
    """What a worker is asked to save."""

    name: SourceName

    def run(self, keeper: Keeper, progress: Progress) -> Outcome:
        """Do it."""
        return keeper.save(self.name, progress)


@dataclass(frozen=True, slots=True)
class Restore:
    """What a worker is asked to restore, and how."""

    name: SourceName
    mode: Mode
    tag: str | None
    at: datetime | None

    def run(self, keeper: Keeper, progress: Progress) -> Outcome:
        """Do it."""
        return keeper.restore(self.name, self.mode, tag=self.tag, at=self.at, progress=progress)


def _snapshots(store: Store, name: SourceName) -> list[Listed]:
    with suppress(NotFoundError):
        return list(list_snapshots(store, name))
    return []
