import errno
import os
import stat
import threading
import time

import pytest

from holdfast.errors import AccessDenied, AlreadyExists, BucketError, ObjectNotFound, Unavailable
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends.disk import DiskBucket
from holdfast.storage.bucket import PROBE_KEY


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def bucket(root):
    return DiskBucket(BucketUrl.parse(f"file://{root}"))


def _temporaries(root):
    folder = root / ".holdfast-tmp"
    return os.listdir(folder) if folder.exists() else []


def test_gives_back_what_it_took(bucket):
    bucket.put("a/b/c", b"kelp")

    assert bucket.get("a/b/c", limit=4) == b"kelp"
    assert bucket.size("a/b/c") == 4
    assert bytes(bucket.get_range("a/b/c", 1, 2)) == b"el"
    assert bytes(bucket.get_range("a/b/c", 2, 100)) == b"lp"
    assert bytes(bucket.get_range("a/b/c", 100, 5)) == b""


def test_many_buffers_are_one_object(bucket):
    parts = [bytes([n % 256]) * (n % 7) for n in range(3_000)]
    bucket.put("k", [memoryview(part) if n % 2 else part for n, part in enumerate(parts)])

    assert bucket.get("k", limit=100_000) == b"".join(parts)


def test_a_short_write_is_gone_on_with(monkeypatch, bucket):
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, buffers: real(fd, [buffers[0][:3]]))
    bucket.put("k", [b"abcdefgh", b"", b"ij"])

    assert bucket.get("k", limit=100) == b"abcdefghij"


def test_put_replaces_and_create_does_not(bucket):
    bucket.put("k", b"1")
    bucket.put("k", b"2")
    with pytest.raises(AlreadyExists):
        bucket.create("k", b"3")
    bucket.create("other", b"4")

    assert bucket.get("k", limit=9) == b"2"
    assert bucket.get("other", limit=9) == b"4"


def test_of_many_creators_one_wins(bucket):
    won = []
    start = threading.Barrier(8)

    def create(number):
        start.wait()
        try:
            bucket.create("k", b"%d" % number)
        except AlreadyExists:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert bucket.get("k", limit=9) == b"%d" % won[0]
    assert len(won) == 1


def test_what_is_not_there(bucket):
    assert bucket.size("a/b") is None
    assert bucket.names("a") == ([], [])
    assert list(bucket.objects("")) == []
    bucket.delete("a/b")
    for read in (lambda: bucket.get("a/b", limit=1), lambda: bucket.get_range("a/b", 0, 1)):
        with pytest.raises(ObjectNotFound):
            read()


def test_an_object_larger_than_the_limit_is_refused(bucket):
    bucket.put("k", b"12345")

    with pytest.raises(BucketError):
        bucket.get("k", limit=4)


@pytest.mark.parametrize("key", ["../k", "a/../k", "a//k", "./k", "/k", "a/", "a\0b", ".holdfast-tmp/x"])
def test_a_key_cannot_lead_outside(bucket, root, key):
    with pytest.raises(BucketError):
        bucket.put(key, b"x")

    assert not (root.parent / "k").exists()


def test_listing(bucket):
    for key in ("a/1", "a/b/2", "a/b/c/3", "ab/4", "5"):
        bucket.put(key, b"x")

    assert sorted(o.key for o in bucket.objects("a")) == ["a/1", "a/b/2", "a/b/c/3"]
    assert sorted(o.key for o in bucket.objects("")) == ["5", "a/1", "a/b/2", "a/b/c/3", "ab/4"]
    assert bucket.names("a") == (["b"], ["1"])
    assert bucket.names("") == (["a", "ab"], ["5"])


def test_what_is_being_written_is_never_listed(bucket, root, monkeypatch):
    seen = []
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            seen.append((len(_temporaries(root)), bucket.names(""), list(bucket.objects("")), bucket.size("a/k")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    bucket.put("a/k", b"kelp")

    assert seen == [(1, ([], []), [], None)]
    assert bucket.names("") == (["a"], [])


def test_bytes_are_durable_before_the_name_and_the_name_before_the_answer(bucket, root, monkeypatch):
    bucket.put("a/first", b"")  # the folders are there
    steps = []
    for name in ("fsync", "replace", "link"):
        real = getattr(os, name)

        def note(*args, name=name, real=real):
            if name == "fsync":
                folder = stat.S_ISDIR(os.fstat(args[0]).st_mode)
                steps.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{args[0]}")) if folder else "sync")
            else:
                steps.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, note)

    bucket.put("a/k", b"kelp")
    assert steps == ["sync", "replace", "sync a"]
    steps.clear()
    bucket.create("a/l", b"kelp")
    assert steps == ["sync", "link", "sync a"]
    steps.clear()
    bucket.put("a/new/k", b"kelp")
    assert steps == ["sync", "sync a", "replace", "sync new"]


@pytest.mark.parametrize("step", ["fsync", "replace", "writev"])
def test_a_write_that_fails_leaves_what_was_there(bucket, root, monkeypatch, step):
    bucket.put("a/k", b"old")

    def fail(*_args):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(Unavailable):
        bucket.put("a/k", b"new")
    monkeypatch.undo()

    assert bucket.get("a/k", limit=9) == b"old"
    assert _temporaries(root) == []


def test_a_full_disk_says_so(bucket, root, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(Unavailable) as caught:
        bucket.put("a/k", b"new")

    assert "free some space" in (caught.value.hint or "")
    assert _temporaries(root) == []
    assert bucket.size("a/k") is None


def test_no_permission_says_so(bucket, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    bucket.put("k", b"x")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AccessDenied):
        bucket.get("k", limit=1)


def test_old_leftovers_go_and_young_ones_stay(bucket, root):
    bucket.prepare_for_writing()
    old, young = root / ".holdfast-tmp" / "old", root / ".holdfast-tmp" / "young"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))

    bucket.prepare_for_writing()

    assert _temporaries(root) == ["young"]


def test_preparing_creates_the_bucket_and_finds_conditional_writes(bucket, root):
    assert not bucket.exists()
    assert bucket.prepare_for_writing() is True
    assert bucket.exists()
    assert bucket.size(PROBE_KEY) == 0
    assert bucket.prepare_for_writing() is True


def test_reading_creates_nothing(bucket, root):
    bucket.names("")
    bucket.size("k")
    list(bucket.objects(""))

    assert not root.exists()


def test_create_false_is_obeyed(root):
    with pytest.raises(ObjectNotFound) as caught:
        DiskBucket(BucketUrl.parse(f"file://{root}?create=false")).prepare_for_writing()

    assert "create=false" in (caught.value.hint or "")
    assert not root.exists()


def test_others_cannot_read_a_store(bucket, root):
    bucket.put("a/k", b"secret")

    assert stat.S_IMODE((root / "a/k").stat().st_mode) == 0o600
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_bucket_that_was_removed_can_be_made_again(bucket, root):
    bucket.put("a/k", b"x")
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    root.rmdir()

    bucket.prepare_for_writing()
    bucket.put("a/k", b"y")

    assert bucket.get("a/k", limit=9) == b"y"


def test_a_name_that_is_too_long_for_the_file_system(bucket):
    bucket.put("a/b", b"")
    with pytest.raises(ObjectNotFound):
        bucket.open_stream("a/" + "x" * 300)
    with pytest.raises(BucketError, match="too long"):
        bucket.put("a/" + "x" * 300, b"")


def test_no_object_lies_below_another(bucket):
    bucket.put("a", b"")
    with pytest.raises(BucketError, match="no directory") as caught:
        bucket.put("a/b", b"")
    assert not caught.value.retryable
