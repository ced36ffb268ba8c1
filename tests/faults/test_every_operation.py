"""The bucket fails at its N-th operation, for every N: nothing half-done is ever visible, and the next run works."""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from backups import Rig, contents, leftovers, memory_bucket, state
from faulty import ALL, READS, WRITES, FaultyBucket
from holdfast.archive import frames
from holdfast.errors import AccessDenied, HoldfastError, ObjectNotFound, Unavailable
from holdfast.model.names import LATEST
from holdfast.progress import Progress
from holdfast.volumes.look import find
from holdfast.volumes.snapshots import list_snapshots

BLOBS = "docker/registry/v2/blobs"


@pytest.fixture(autouse=True)
def small_layers(monkeypatch):
    monkeypatch.setattr(frames, "LAYER_BYTES", 256 * 1024)


def _fill(rig):
    (rig.source / "folder").mkdir()
    (rig.source / "link").symlink_to("folder")
    for number in range(8):
        (rig.source / "folder" / f"{number}").write_bytes(bytes([number]) + os.urandom(100_000))
    (rig.source / "big").write_bytes(os.urandom(1_500_000))


def _change(rig):
    (rig.source / "folder" / "3").write_bytes(os.urandom(150_000))
    (rig.source / "folder" / "5").unlink()
    (rig.source / "more").write_bytes(os.urandom(300_000))


def _operations(rig, work):
    bucket = FaultyBucket(rig.bucket)
    work(rig.on(bucket))
    return len(bucket.calls)


def _all_whole(rig, expected):
    """Every snapshot that a user is shown restores to one of the states it can be."""
    listed = [one.tag for one in list_snapshots(rig.store)]
    for tag in listed:
        assert rig.restored(tag.name) in expected
    if listed:
        assert rig.restored() in expected
        assert rig.open(at=datetime.now(UTC)).tag in listed
    for version in find(rig.store, rig.cache, "*"):
        assert set(version.tags) <= {tag.name for tag in listed}
    return listed


@pytest.mark.parametrize("how", ["once", "dead", "lost"])
def test_a_first_backup_that_fails_anywhere(tmp_path, how):
    template = Rig(tmp_path / "template")
    _fill(template)
    total = _operations(template, Rig.backup)
    failed = 0
    for at in range(1, total + 5):
        rig = Rig(tmp_path / f"{at}")
        rig.source.rmdir()
        rig.source.symlink_to(template.source)
        bucket = FaultyBucket(rig.bucket, at=at, how=how)
        try:
            rig.on(bucket).backup()
        except Unavailable:
            failed += 1
        rig.fresh_cache()
        assert len(_all_whole(rig, [state(template.source)])) <= 1

        done = rig.backup()

        assert done.tag in _all_whole(rig, [state(template.source)])
        assert rig.store.resolve(rig.name.repository, LATEST)
    assert failed >= total - 3


@pytest.mark.parametrize("error", [lambda: AccessDenied("refused"), lambda: ObjectNotFound("no bucket")], ids=str)
def test_a_second_backup_that_is_refused_anywhere_leaves_the_first(tmp_path, error):
    template = Rig(tmp_path / "template")
    _fill(template)
    source_then = state(template.source)
    total = 70
    for at in range(1, total, 2):
        rig = Rig(tmp_path / f"{at}", memory_bucket())
        _fill(rig)
        rig.backup()
        then = state(rig.source)
        assert then.keys() == source_then.keys()
        _change(rig)
        bucket = FaultyBucket(rig.bucket, at=at, kinds=WRITES | READS, how="dead", error=error)
        with contextlib.suppress(HoldfastError):
            rig.on(bucket).backup()
        assert rig.restored() in (then, state(rig.source))
        _all_whole(rig, [then, state(rig.source)])

        rig.backup()

        assert rig.restored() == state(rig.source)
        _all_whole(rig, [then, state(rig.source)])
        if not bucket.hit:
            break


def test_finished_layers_are_not_sent_again(tmp_path):
    """Whatever has been stored when a backup dies is found by the next one."""
    rig = Rig(tmp_path)
    rng_files = 24
    for number in range(rng_files):
        (rig.source / f"{number:02}").write_bytes(bytes([number]) + os.urandom(100_000))
    whole = rng_files * 100_001
    bucket = FaultyBucket(rig.bucket, at=9, kinds=frozenset({"put"}), how="dead", matching=f"{BLOBS}")
    with pytest.raises(Unavailable):
        rig.on(bucket).backup()
    there = sum(one.size for one in rig.bucket.objects(BLOBS))
    assert there > whole / 3

    second = FaultyBucket(rig.bucket)
    done = rig.on(second).backup()

    # A layer that was put but not noted yet, at most those under way, may be sent twice.
    assert second.sent <= whole - there + 2 * 300_000 + 20_000
    assert done.config.counts.bytes_new < whole
    assert rig.restored() == state(rig.source)
    assert not [path for path in (rig.cache.folder / "unfinished").rglob("*") if path.is_file()]


def test_notes_of_layers_that_are_gone_are_no_harm(tmp_path):
    rig = Rig(tmp_path)
    _fill(rig)
    bucket = FaultyBucket(rig.bucket, at=4, kinds=frozenset({"put"}), how="dead", matching=BLOBS)
    with pytest.raises(Unavailable):
        rig.on(bucket).backup()
    for one in list(rig.bucket.objects(BLOBS)):
        rig.bucket.delete(one.key)

    rig.backup()

    assert rig.restored() == state(rig.source)


def test_notes_cut_short_or_altered_are_no_harm(tmp_path):
    for damage in (
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:40] + b"x" + data[41:],
    ):
        rig = Rig(tmp_path / str(id(damage)))
        _fill(rig)
        bucket = FaultyBucket(rig.bucket, at=4, kinds=frozenset({"put"}), how="dead", matching=BLOBS)
        with pytest.raises(Unavailable):
            rig.on(bucket).backup()
        (notes,) = [path for path in (rig.cache.folder / "unfinished").rglob("*") if path.is_file()]
        notes.write_bytes(damage(notes.read_bytes()))

        rig.backup()

        assert rig.restored() == state(rig.source)


def _old_target(rig):
    """A target that has other things than the snapshot."""
    target = rig.new_target()
    (target / "folder").mkdir(parents=True)
    (target / "folder" / "1").write_bytes(b"older")
    (target / "folder" / "surplus").write_bytes(b"keep me until the end")
    (target / "surplus").mkdir()
    (target / "surplus" / "file").write_bytes(b"me too")
    (target / "big").write_bytes(b"older, and short")
    return target


@pytest.mark.parametrize("how", ["once", "dead", "short"])
def test_a_restore_that_fails_anywhere_takes_nothing_away(tmp_path, how):
    rig = Rig(tmp_path)
    _fill(rig)
    rig.backup()
    rig.fresh_cache()
    total = _operations(rig, lambda r: r.restore(r.new_target()))
    new = contents(rig.source)
    failed = 0
    for at in range(1, total + 2):
        target = _old_target(rig)
        before = contents(target)
        rig.fresh_cache()
        bucket = FaultyBucket(rig.bucket, at=at, kinds=ALL, how=how)
        try:
            rig.on(bucket).restore(target)
        except HoldfastError:
            failed += 1
            after = contents(target)
            for name, content in before.items():
                assert after[name] in (content, new.get(name)), name
            for name, content in after.items():
                assert content in (before.get(name), new.get(name)), name
        assert leftovers(target) == []

        rig.fresh_cache()
        rig.restore(target)

        assert state(target) == state(rig.source)
    assert failed >= total - (1 if how != "short" else total - 2)


def test_a_restore_that_fails_gives_back_what_it_moved_aside(tmp_path):
    """Where the snapshot has a file, the target has a directory, and the other way round."""
    rig = Rig(tmp_path)
    _fill(rig)
    rig.backup()
    rig.fresh_cache()
    total = _operations(rig, lambda r: r.restore(r.new_target()))
    for at in range(1, total + 1):
        target = rig.new_target()
        (target / "big").mkdir(parents=True)
        (target / "big" / "inside").write_bytes(b"precious")
        (target / "link").mkdir()
        (target / "link" / "inside").write_bytes(b"precious too")
        (target / "folder").write_bytes(b"a file where a directory belongs")
        rig.fresh_cache()
        try:
            rig.on(FaultyBucket(rig.bucket, at=at, how="dead")).restore(target)
        except HoldfastError:
            kept = [path.read_bytes() for path in target.rglob("*") if path.is_file() and not path.is_symlink()]
            assert b"precious" in kept
            assert b"precious too" in kept
            assert b"a file where a directory belongs" in kept
            for name in ("big", "link", "folder"):  # the old, back in its place, or the new
                assert os.path.lexists(target / name), at
        rig.fresh_cache()
        rig.restore(target)
        assert state(target) == state(rig.source)


def test_two_backups_of_one_source_at_once_both_count(tmp_path):
    rig = Rig(tmp_path)
    _fill(rig)
    rigs = [rig.on(rig.bucket) for _ in range(4)]
    for number, one in enumerate(rigs):
        one.cache = type(rig.cache)(tmp_path / f"own-cache-{number}")
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(Rig.backup, rigs))

    tags = _all_whole(rig, [state(rig.source)])
    assert {one.tag for one in done} <= set(tags)


def test_a_store_without_conditional_writes_is_told(tmp_path):
    class Careless(FaultyBucket):
        def create(self, key, data):
            self.inner.put(key, data)

    rig = Rig(tmp_path)
    _fill(rig)
    progress = Progress()
    rig.on(Careless(rig.bucket)).backup(progress)

    assert any("conditional writes" in warning for warning in progress.warnings)
    assert rig.restored() == state(rig.source)
