import itertools
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backups import Rig
from forge import forge
from holdfast.archive import pages
from holdfast.archive.chunks import Chunker
from holdfast.archive.pages import decode_page, in_order, page_name
from holdfast.errors import DamageError
from holdfast.model.snapshot import RECORD, Entry, is_safe, sort_key
from holdfast.storage.cache import Cache
from holdfast.volumes.snapshots import Snapshot

component = st.binary(min_size=1, max_size=6).filter(lambda c: not set(c) & set(b"/\0") and c not in (b".", b".."))
path = st.lists(component, max_size=4).map(b"/".join)
records = st.lists(
    st.builds(RECORD.pack, st.binary(min_size=32, max_size=32), st.integers(0, 3), st.integers(0, 2**40), st.just(9)),
    max_size=4,
).map(b"".join)
fields = {
    "path": path,
    "mode": st.integers(0, 0o7777),
    "uid": st.integers(0, 2**32 - 1),
    "gid": st.integers(0, 2**32 - 1),
    "size": st.integers(0, 2**63 - 1),
    "mtime_ns": st.integers(-(2**63), 2**64 - 1),
    "ctime_ns": st.integers(0, 2**64 - 1),
    "inode": st.integers(0, 2**64 - 1),
    "xattrs": st.one_of(st.none(), st.lists(st.tuples(st.just(b"user.a"), st.binary(max_size=9)), max_size=2)),
    "chunks": records,
}
names = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)
numbers = st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2)
entries = st.one_of(
    st.builds(Entry, kind=st.sampled_from("fdp"), target=st.none(), **fields),
    st.builds(Entry, kind=st.just("l"), target=names, **fields),
    st.builds(Entry, kind=st.just("h"), target=path.filter(bool), **fields),
    st.builds(Entry, kind=st.sampled_from("cb"), target=numbers, **fields),
)
trees = st.lists(entries, max_size=40, unique_by=lambda entry: entry.path).map(
    lambda found: sorted(found, key=lambda entry: sort_key(entry.path))
)


@given(trees)
def test_a_page_gives_its_entries_back(tree):
    data = msgspec.msgpack.encode(tree)

    assert list(in_order(decode_page(data, page_name(data)))) == tree


@given(trees, st.randoms(use_true_random=False))
def test_any_other_order_is_refused(tree, rng):
    shuffled = [*tree]
    rng.shuffle(shuffled)
    if shuffled != tree:
        with pytest.raises(DamageError):
            list(in_order(shuffled))


@given(st.binary(max_size=30))
def test_a_path_is_safe_exactly_if_it_stays_below(name):
    parts = name.split(b"/")
    stays = not name or (b"\0" not in name and all(part not in (b"", b".", b"..") for part in parts))

    assert is_safe(name) == stays


@given(st.lists(path, max_size=20, unique=True))
def test_order_is_a_walks(found):
    """A directory comes before its content, and all of its content before whatever follows it."""
    ordered = sorted(found, key=sort_key)

    assert ordered == sorted(found, key=lambda p: p.split(b"/") if p else [])


def _random_tree(rng):
    found = {}
    for _ in range(rng.randrange(60)):
        path = b"/".join(rng.choice([b"a", b"b.c", b"\xff", b"long" * 9]) + b"%d" % rng.randrange(4) for _ in range(3))
        path = b"/".join(path.split(b"/")[: rng.randrange(4)])
        chunks = b"".join(RECORD.pack(rng.randbytes(32), 0, 1, 2) for _ in range(rng.randrange(4)))
        found[path] = Entry(path, "f", 0o644, 0, 0, 7, rng.randrange(3), 0, 0, None, None, chunks)
    return sorted(found.values(), key=lambda one: sort_key(one.path))


def _changed(rng, tree):
    """A few paths more, a few less."""
    kept = {one.path: one for one in tree if rng.random() < 0.8}
    kept |= {one.path: one for one in _random_tree(rng) if rng.random() < 0.3}
    return sorted(kept.values(), key=lambda one: sort_key(one.path))


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.booleans())
def test_an_index_in_a_store_gives_its_entries_back(seed, tiny):
    """A chain of indexes, each reusing the pages of the one before, read through the store with no cache."""
    rng = random.Random(seed)
    chain = [_random_tree(rng)]
    chain += [_changed(rng, chain[-1]) for _ in range(4)]
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(pages, "_ENTRIES_A_PAGE", 3)
        if tiny:
            patch.setattr(pages, "BLOB_BYTES", 200)
            patch.setattr(pages, "_PENDING_BYTES", 100)
            patch.setattr(pages, "MOST_BLOBS", 3)
        rig = Rig(Path(folder))
        parent = None
        for tree in chain:
            digest = forge(rig.store, rig.name, tree, parent=parent)
            parent = Snapshot(rig.store, Cache(Path(folder) / digest.hex), rig.name.repository, digest)
            assert list(parent.entries()) == tree
            for entry in tree[:3]:
                below = [
                    e for e in tree if e.path == entry.path or e.path.startswith(entry.path + b"/") or not entry.path
                ]
                assert list(parent.select([entry.path])) == below


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 3_000_000), st.lists(st.integers(5_000, 700_000), min_size=1, max_size=20))
def test_chunks_put_together_are_the_file_however_it_is_fed(seed, size, steps):
    data = random.Random(seed).randbytes(size)

    def cut(feeds):
        chunker = Chunker()
        found, cut, at = [], 0, 0
        for step in feeds:
            at = min(at + step, size)
            for length in chunker.cut(data[cut:at], last=at == size):
                found.append(data[cut : cut + length])
                cut += length
            if at == size:
                return found
        raise AssertionError

    whole = cut([size])
    assert b"".join(whole) == data
    assert cut(itertools.cycle(steps)) == whole
