"""What reads ahead with threads of its own, and is left before its end, by the garbage collector perhaps."""

import threading

import pytest

from backups import memory_bucket
from holdfast.images.catalog import list_images
from holdfast.model.digest import Digest
from holdfast.model.names import LATEST, Repository, Tag
from holdfast.storage import store as storing
from holdfast.storage.backends import objects
from holdfast.storage.dogestry import DogestryLayout
from holdfast.storage.store import Store

DATA = bytes(range(256)) * 64
IMAGE = Digest.of(b"")


def _blob(store):
    return store.open_blob(Digest.of(DATA), len(DATA))


def _stream(store):
    return store.bucket.open_stream("object").pieces


def _tags(store):
    return DogestryLayout(store.bucket).tags()


@pytest.mark.parametrize("begin", [_blob, _stream, _tags, list_images])
def test_what_is_left_before_its_end_waits_for_no_thread(monkeypatch, begin):
    monkeypatch.setattr(storing, "_PIECE_BYTES", 1024)
    monkeypatch.setattr(objects, "_PIECE_BYTES", 1024)
    store = Store(memory_bucket())
    store.put_blob(Repository("app"), Digest.of(DATA), DATA)
    store.bucket.put("object", DATA)
    for tag in (LATEST, Tag("1")):
        store.set_tag(Repository("app"), tag, store.put_manifest(Repository("app"), b"{}"))
        DogestryLayout(store.bucket).set_tag("app", str(tag), IMAGE.hex)
    reading = begin(store)
    next(reading)

    # In a thread that just begins, threading's own lock is taken, and waiting for another thread would take it again.
    monkeypatch.setattr(threading.Thread, "join", lambda *_: pytest.fail("it waited for a thread"))
    reading.close()

    assert list(reading) == []
