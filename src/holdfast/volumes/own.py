"""Our own directories on this machine: no backup goes into them, and no restore removes them."""

from __future__ import annotations

import os
from contextlib import suppress

from holdfast.storage.cache import Cache
from holdfast.storage.store import Store


def own_folders(store: Store, cache: Cache) -> tuple[bytes, ...]:
    """Give the cache's directory, and the store's where it lies on this machine."""
    url = store.bucket.url
    return tuple(map(os.fsencode, [str(cache.folder), *([url.directory] if url.scheme == "file" else [])]))


def own_identities(store: Store, cache: Cache) -> frozenset[tuple[int, int]]:
    """Give (device, inode) of our own directories, made first: only what is there can be told apart in a source."""
    url = store.bucket.url
    if url.scheme == "file" and url.flag("create", default=True):
        store.bucket.make()
    with suppress(OSError):
        cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = set()
    for folder in own_folders(store, cache):
        if os.path.isdir(folder):
            status = os.stat(folder)
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)
