"""Stored bytes that are cut short, altered or gone: named, never restored, and no obstacle to the next backup."""

import os
import time

import pytest

from backups import Rig, contents, leftovers, state
from faulty import blob_key, read
from holdfast.archive import frames, metadata, pages
from holdfast.errors import DamageError, exit_code
from holdfast.model.digest import Digest
from holdfast.model.snapshot import INDEX_HEADER
from holdfast.progress import Progress
from holdfast.volumes.look import dump

DAMAGES = {
    "gone": None,
    "empty": lambda data: b"",
    "halved": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "first byte": lambda data: bytes([data[0] ^ 1]) + data[1:],
    # More than the headers between two files: those are for tar alone, and a restore never looks at them.
    "the middle": lambda data: (
        data[: len(data) // 2]
        + bytes(byte ^ 0x10 for byte in data[len(data) // 2 :][:2000])
        + data[len(data) // 2 + 2000 :]
    ),
    "last byte": lambda data: data[:-1] + bytes([data[-1] ^ 0x80]),
    "other bytes": lambda data: os.urandom(len(data)),
}
damages = pytest.mark.parametrize("damage", DAMAGES)


@pytest.fixture
def rig(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "LAYER_BYTES", 200_000)
    monkeypatch.setattr(pages, "_ENTRIES_A_PAGE", 4)
    rig = Rig(tmp_path)
    for folder in "abc":
        (rig.source / folder).mkdir()
        for number in range(6):
            (rig.source / folder / str(number)).write_bytes(os.urandom(40_000))
    (rig.source / "big").write_bytes(os.urandom(1_500_000))
    (rig.source / "hard").hardlink_to(rig.source / "a" / "1")
    (rig.source / "empty").touch()
    (rig.source / "link").symlink_to("a")
    rig.backup()
    return rig


def _damage(rig, key, damage):
    data = read(rig.bucket, key)
    if DAMAGES[damage] is None:
        rig.bucket.delete(key)
    else:
        rig.bucket.put(key, DAMAGES[damage](data))
    return data


def _blobs(rig):
    snapshot = rig.open()
    layers = [row.digest for row, _ in snapshot.layers.values()]
    return snapshot, layers


def _fails(rig, target):
    with pytest.raises(DamageError) as caught:
        rig.restore(target)
    assert exit_code(caught.value) == 5
    assert leftovers(target) == []
    return caught.value


def _target_with_surplus(rig):
    target = rig.new_target()
    target.mkdir()
    (target / "surplus").write_bytes(b"not in the snapshot")
    return target


@damages
def test_a_damaged_layer_costs_its_own_files_and_nothing_else(rig, damage):
    snapshot, layers = _blobs(rig)
    assert len(layers) > 3
    held = {}
    for entry in snapshot.entries():
        for at in range(0, len(entry.chunks), 48):
            layer = int.from_bytes(entry.chunks[at + 32 : at + 36], "little")
            held.setdefault(snapshot.layers[layer][0].digest, set()).add(entry.path)
    whole = contents(rig.source)
    for digest in layers[:2] + layers[-1:]:
        original = _damage(rig, blob_key(digest), damage)
        target = _target_with_surplus(rig)
        error = _fails(rig, target)

        assert digest in str(error)
        assert set(error.paths) <= held.get(digest, set()) | {b"hard"}
        assert error.paths
        got = contents(target)
        assert got.pop("surplus") == b"not in the snapshot"
        for name, content in whole.items():
            if os.fsencode(name) in error.paths:
                assert name not in got
            elif name != "hard":
                assert got[name] == content
        assert not set(got) - set(whole)
        rig.bucket.put(blob_key(digest), original)
        rig.restore(target)
        assert state(target) == state(rig.source)


@damages
def test_dump_of_a_damaged_file_gives_no_wrong_byte(rig, damage):
    _snapshot, layers = _blobs(rig)
    for digest in layers:
        _damage(rig, blob_key(digest), damage)
    whole = (rig.source / "big").read_bytes()
    got = b""
    with pytest.raises(DamageError):
        for piece in dump(rig.open(), b"big"):
            got += bytes(piece)

    assert whole.startswith(got)


@damages
@pytest.mark.parametrize("what", ["index", "config", "manifest", "link"])
def test_what_leads_to_the_contents_is_damaged(rig, what, damage):
    snapshot = rig.open()
    link = "docker/registry/v2/repositories/volumes/trial/_manifests/tags/latest/current/link"
    key = {
        "index": blob_key(snapshot.manifest.layers[0].digest),
        "config": blob_key(snapshot.manifest.config.digest),
        "manifest": blob_key(str(snapshot.digest)),
        "link": link,
    }[what]
    original = _damage(rig, key, damage)
    rig.fresh_cache()
    target = _target_with_surplus(rig)
    if what == "link" and damage == "gone":
        rig.restore(target)  # the tag is gone, and the snapshot's own tag is still there
        assert state(target) == state(rig.source)
        return
    error = None
    try:
        rig.restore(target)
    except DamageError as caught:
        error = caught
    if error is None:  # bytes that nobody reads: the magic number, the length
        assert what == "index"
        assert state(target) == state(rig.source)
    else:
        named = {"link": "latest", "index": snapshot.manifest.layers[0].digest}.get(what, key.split("/")[-2])
        assert named in str(error)
        got = contents(target)
        assert got.pop("surplus") == b"not in the snapshot"
        whole = contents(rig.source)
        for name, content in got.items():
            assert whole[name] == content
        assert leftovers(target) == []
    rig.bucket.put(key, original)
    rig.restore(target)
    assert state(target) == state(rig.source)


def test_every_part_of_an_index_is_checked(rig):
    """Flip each of many bytes of the index: either it is noticed, or the restore is exact all the same."""
    snapshot = rig.open()
    digest = snapshot.manifest.layers[0].digest
    whole = read(rig.bucket, blob_key(digest))
    length = int(snapshot.manifest.layers[0].annotations[INDEX_HEADER].partition(":")[0])
    noticed = 0
    for at in range(0, len(whole), 37):
        rig.bucket.put(blob_key(digest), whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        rig.fresh_cache()
        target = rig.new_target()
        try:
            rig.restore(target)
        except DamageError as error:
            noticed += 1
            assert digest in str(error)
        else:
            assert at < pages.PREFIX_SIZE
            assert state(target) == state(rig.source)
    assert noticed > 20
    assert length > 100


def test_the_cache_alone_does_not_hide_a_lost_layer(rig):
    _snapshot, layers = _blobs(rig)
    rig.bucket.delete(blob_key(layers[0]))

    _fails(rig, rig.new_target())


def _changed(rig):
    (rig.source / "a" / "new").write_bytes(b"new")
    (rig.source / "b" / "2").write_bytes(os.urandom(50_000))


@pytest.mark.parametrize("cached", [True, False], ids=["warm cache", "cold cache"])
@pytest.mark.parametrize("change", [True, False], ids=["changed", "unchanged"])
@pytest.mark.parametrize("damage", ["gone", "halved", "empty"])
@pytest.mark.parametrize("what", ["a layer", "every layer", "index", "config", "manifest", "link"])
def test_a_backup_after_damage_just_works(rig, what, damage, change, cached):
    snapshot, layers = _blobs(rig)
    keys = {
        "a layer": [blob_key(layers[1])],
        "every layer": [blob_key(digest) for digest in layers],
        "index": [blob_key(snapshot.manifest.layers[0].digest)],
        "config": [blob_key(snapshot.manifest.config.digest)],
        "manifest": [blob_key(str(snapshot.digest))],
        "link": ["docker/registry/v2/repositories/volumes/trial/_manifests/tags/latest/current/link"],
    }[what]
    for key in keys:
        _damage(rig, key, damage)
    if change:
        _changed(rig)
    if not cached:
        rig.fresh_cache()

    progress = Progress()
    rig.backup(progress)
    rig.fresh_cache()

    assert rig.restored() == state(rig.source)
    if what not in ("link", "index"):  # of a lost index, pages may be at hand in the cache
        assert progress.warnings
    rig.backup()
    rig.fresh_cache()
    assert rig.restored() == state(rig.source)


@pytest.mark.parametrize("what", ["index", "config", "manifest"])
@pytest.mark.parametrize("damage", ["first byte", "the middle", "last byte", "other bytes"])
def test_a_backup_after_an_alteration_of_the_parent_just_works(rig, what, damage):
    snapshot = rig.open()
    digest = {
        "index": snapshot.manifest.layers[0].digest,
        "config": snapshot.manifest.config.digest,
        "manifest": str(snapshot.digest),
    }[what]
    _damage(rig, blob_key(digest), damage)
    rig.fresh_cache()
    _changed(rig)

    rig.backup()
    rig.fresh_cache()

    if what != "index" or damage != "first byte":  # the magic number is read by other programs only
        assert rig.restored() == state(rig.source)


def test_a_chain_whose_older_index_is_lost_is_written_anew(rig, monkeypatch):
    """The newest index is whole, but takes pages from one that is gone."""
    monkeypatch.setattr(metadata, "time_ns", lambda: time.time_ns() + 10**10)  # nothing counts as changed just now
    rig.backup()
    (rig.source / "c" / "5").write_bytes(b"changed")
    rig.backup()
    snapshot = rig.open()
    older = snapshot.header.indexes[1].digest
    rig.bucket.delete(blob_key(older))
    rig.fresh_cache()
    assert older in str(_fails(rig, rig.new_target()))

    (rig.source / "c" / "3").write_bytes(b"changed")
    rig.backup()
    rig.fresh_cache()
    assert rig.restored() == state(rig.source)


def test_two_layers_swapped_are_noticed(rig):
    _snapshot, layers = _blobs(rig)
    one, other = read(rig.bucket, blob_key(layers[0])), read(rig.bucket, blob_key(layers[1]))
    rig.bucket.put(blob_key(layers[0]), other)
    rig.bucket.put(blob_key(layers[1]), one)

    error = _fails(rig, rig.new_target())

    assert layers[0] in str(error) or layers[1] in str(error)


def test_a_manifest_of_another_snapshot_is_noticed(rig):
    digest = rig.open().digest
    rig.bucket.put(blob_key(str(digest)), b'{"schemaVersion": 2}')
    rig.fresh_cache()

    with pytest.raises(DamageError) as caught:
        rig.open()
    assert str(digest) in str(caught.value)
    assert Digest.of(b"") != digest


def test_what_stood_in_the_place_of_a_damaged_file_is_given_back(rig):
    _, layers = _blobs(rig)
    for digest in layers:
        _damage(rig, blob_key(digest), "other bytes")
    target = rig.new_target()
    (target / "big" / "below").mkdir(parents=True)
    (target / "big" / "below" / "file").write_bytes(b"precious")

    assert b"big" in _fails(rig, target).paths
    assert (target / "big" / "below" / "file").read_bytes() == b"precious"
