"""A layer that one writes and several read, each at its own pace."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import zstandard

from fake_engine import gzipped, layer_of
from holdfast.archive.blobs import checked
from holdfast.archive.frames import seek_table
from holdfast.errors import DamageError, NoSpaceError, Unavailable
from holdfast.images.catalog import StoredLayer
from holdfast.images.feeds import SharedLayer, open_directly
from holdfast.images.spool import Spool
from holdfast.model.digest import Digest

DATA = layer_of(3_000_000, "feed")


class CountingSpool(Spool):
    """Remembers the files that it gave."""

    def __init__(self):
        super().__init__(None)
        self.files = []

    def open(self):
        self.files.append(super().open())
        return self.files[-1]


@pytest.fixture
def spool():
    spool = CountingSpool()
    yield spool
    gc.collect()
    assert all(file.closed for file in spool.files), "a temporary file was left behind"


def _pieces(data=DATA, size=100_000):
    return iter([data[at : at + size] for at in range(0, len(data), size)])


def _read(shared):
    try:
        size, pieces = shared.open()
        data = b"".join(pieces)
        assert len(data) == size
        return data
    finally:
        shared.leave()


@pytest.mark.parametrize("size", [len(DATA), None], ids=["stated", "not stated"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_all_readers_get_all_of_it(spool, size, when):
    shared = SharedLayer(spool, readers=4, size=size)
    with ThreadPoolExecutor(4) as pool:
        if when == "after":
            shared.fill(_pieces())
        reading = [pool.submit(_read, shared) for _ in range(4)]
        if when == "before":
            shared.fill(_pieces())

    assert [future.result() for future in reading] == [DATA] * 4
    assert len(spool.files) == 1


def test_readers_read_while_it_is_still_written(spool):
    begun = threading.Event()
    shared = SharedLayer(spool, readers=1, size=len(DATA))

    def pieces():
        yield DATA[:500_000]
        assert begun.wait(60), "nobody read what was there"
        yield DATA[500_000:]

    def read():
        _, opened = shared.open()
        first = next(opened)
        begun.set()
        data = bytes(first) + b"".join(opened)
        shared.leave()
        return data

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        shared.fill(pieces())

    assert reading.result() == DATA


@pytest.mark.parametrize("size", [len(DATA), None], ids=["stated", "not stated"])
@pytest.mark.parametrize("after", [0, 3, 30])
def test_what_goes_wrong_while_it_is_written_is_told_to_all(spool, size, after):
    shared = SharedLayer(spool, readers=3, size=size)

    def pieces():
        yield from list(_pieces())[:after]
        raise Unavailable("the bucket is gone")

    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(_read, shared) for _ in range(3)]
        shared.fill(pieces())

    for future in reading:
        with pytest.raises(Unavailable, match="the bucket is gone"):
            future.result()


def test_no_reader_gets_the_end_of_what_is_altered(spool):
    shared = SharedLayer(spool, readers=1, size=len(DATA))
    shared.fill(checked(_pieces(), Digest.of(b"other"), len(DATA), "layer 7"))

    with pytest.raises(DamageError, match="layer 7 is altered"):
        _read(shared)


@pytest.mark.parametrize("stated", [0, 1, len(DATA) - 1, len(DATA) + 1])
def test_a_stated_size_that_is_wrong_is_damage(spool, stated):
    shared = SharedLayer(spool, readers=2, size=stated)
    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(_read, shared) for _ in range(2)]
        shared.fill(_pieces())

    for future in reading:
        with pytest.raises(DamageError):
            future.result()


def test_what_is_given_up_is_told(spool):
    shared = SharedLayer(spool, readers=1)
    shared.abandon()

    with pytest.raises(Unavailable):
        _read(shared)


def test_nothing_more_is_written_once_nobody_wants_it(spool):
    shared = SharedLayer(spool, readers=2, size=len(DATA))
    taken = 0

    def pieces():
        nonlocal taken
        for piece in _pieces():
            taken += 1
            if taken == 3:
                shared.leave()
                shared.leave()
            yield piece

    shared.fill(pieces())

    assert taken == 3


def test_a_layer_of_no_bytes_is_read_as_such(spool):
    for size in (0, None):
        shared = SharedLayer(spool, readers=1, size=size)
        shared.fill(iter([]))
        assert _read(shared) == b""


def test_no_room_for_it_is_told_to_all():
    class Full(Spool):
        def open(self):
            return open("/dev/full", "r+b", buffering=0)

    shared = SharedLayer(Full("/var/tmp"), readers=2, size=len(DATA))
    shared.fill(_pieces())

    for _ in range(2):
        with pytest.raises(NoSpaceError, match="/var/tmp") as refused:
            _read(shared)
        assert "--tempdir" in refused.value.hint


# For one engine alone


def _layer(blob, stated):
    return StoredLayer(Digest.of(DATA), Digest.of(blob), len(blob), "x", partial(_pieces, blob), lambda: stated)


def test_as_it_is_it_goes_straight_through(spool):
    layer = _layer(gzipped(DATA), None)
    size, pieces = open_directly(layer, layer.open(), spool, raw=False)

    assert b"".join(pieces) == gzipped(DATA)
    assert size == len(gzipped(DATA))
    assert not spool.files


def test_it_is_unpacked_on_its_way_where_it_says_how_large_it_is(spool):
    layer = _layer(zstandard.compress(DATA), len(DATA))
    size, pieces = open_directly(layer, layer.open(), spool, raw=True)

    assert (size, b"".join(pieces)) == (len(DATA), DATA)
    assert not spool.files


def test_it_is_unpacked_by_way_of_a_file_where_it_does_not(spool):
    layer = _layer(zstandard.compress(DATA), None)
    size, pieces = open_directly(layer, layer.open(), spool, raw=True)

    assert (size, b"".join(pieces)) == (len(DATA), DATA)
    assert len(spool.files) == 1


def test_a_file_that_nobody_reads_to_its_end_is_gone_all_the_same(spool):
    layer = _layer(zstandard.compress(DATA), None)
    _, pieces = open_directly(layer, layer.open(), spool, raw=True)
    next(pieces)
    pieces.close()

    assert spool.files[0].closed


def test_a_blob_that_breaks_off_leaves_no_file(spool):
    layer = _layer(zstandard.compress(DATA), None)

    def breaking():
        yield from list(layer.open())[:3]
        raise Unavailable("the bucket is gone")

    with pytest.raises(Unavailable):
        open_directly(layer, breaking(), spool, raw=True)
    assert spool.files[0].closed


@pytest.mark.parametrize("stated", [0, len(DATA) - 1, len(DATA) + 1])
def test_a_blob_that_lies_about_its_size_is_named(spool, stated):
    frame = zstandard.compress(DATA)
    layer = _layer(frame + seek_table([(len(frame), stated)]), stated)
    _, pieces = open_directly(layer, layer.open(), spool, raw=True)

    given = 0
    with pytest.raises(DamageError, match=layer.digest.hex):
        for piece in pieces:
            given += len(piece)
    assert given <= stated or stated > len(DATA)
