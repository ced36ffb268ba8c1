"""Saves and restores of tarballs that fail anywhere: nothing half-done is visible, and nothing is taken away."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backups import contents, leftovers, memory_bucket
from faulty import ALL, FaultyBucket
from holdfast.errors import AccessDenied, HoldfastError, NoSpaceError, Unavailable
from holdfast.storage.backends import objects
from tarball_rig import bring_back, found, save
from trees import write

CRASHING = Path(__file__).with_name("crashing_tarballs.py")
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(objects, "_PIECE_BYTES", 20_000)


def _fill(source):
    for number in range(8):
        write(source / "folder" / f"{number}", os.urandom(10_000))
    write(source / "big", os.urandom(200_000))
    write(source / "was-folder", "file")
    write(source / "was-file" / "below", "folder")
    os.link(source / "big", source / "second")
    return source


def _old(target):
    write(target / "folder" / "1", "older")
    write(target / "folder" / "surplus", "stays")
    write(target / "surplus" / "file", "stays too")
    write(target / "big", "older")
    write(target / "was-folder" / "below", "in a folder")
    write(target / "was-file", "a file")
    return target


def _calls(bucket, work):
    counting = FaultyBucket(bucket)
    work(counting)
    return len(counting.calls)


@pytest.mark.parametrize("how", ["once", "dead", "lost"])
@pytest.mark.parametrize(
    "error", [lambda: Unavailable("the line is dead"), lambda: AccessDenied("refused")], ids=["unavailable", "denied"]
)
def test_a_save_that_fails_anywhere(tmp_path, how, error):
    bucket = memory_bucket()
    source = _fill(tmp_path / "source")
    before = contents(source)
    save(bucket, source)
    (source / "more").write_bytes(b"more")
    total = _calls(bucket, lambda b: save(b, source))
    assert total >= 2
    save(bucket, source, compress=False)
    (source / "more").unlink()
    save(bucket, source)
    (source / "more").write_bytes(b"more")
    for at in range(1, total + 1):
        with pytest.raises(HoldfastError):
            save(FaultyBucket(bucket, at=at, how=how, error=error), source)

        bring_back(bucket, source, tmp_path / f"{at}")
        assert contents(tmp_path / f"{at}") in (before, contents(source))


@pytest.mark.parametrize("mode", ["replace", "merge"])
@pytest.mark.parametrize("how", ["once", "dead"])
def test_a_restore_that_fails_anywhere_takes_nothing_away(tmp_path, how, mode):
    bucket = memory_bucket()
    source = _fill(tmp_path / "source")
    save(bucket, source)
    new = contents(source)
    total = _calls(bucket, lambda b: bring_back(b, source, tmp_path / "first"))
    assert total > 10
    for at in range(1, total + 2):
        target = _old(tmp_path / f"{mode}-{at}")
        before = contents(target)
        if mode == "merge":
            (target / "was-folder" / "below").unlink()
            del before["was-folder/below"]
        try:
            bring_back(FaultyBucket(bucket, at=at, kinds=ALL, how=how), source, target, mode=mode)
        except Unavailable:
            after = contents(target)
            for name, content in before.items():
                if content is None:
                    continue
                if name == "was-file" and mode == "merge":
                    continue  # a merge takes a file for a folder as it goes
                assert after[name] in (content, new.get(name)), (at, name)
            assert not leftovers(target), at
        else:
            assert at > total

        bring_back(bucket, source, target, mode=mode)
        if mode == "replace":
            assert contents(target) == new
        else:
            assert new.items() <= contents(target).items()
        assert not leftovers(target)


@pytest.mark.parametrize("at", [1, 5, 12])
def test_a_full_disk(tmp_path, monkeypatch, at):
    bucket = memory_bucket()
    source = _fill(tmp_path / "source")
    save(bucket, source)
    target = _old(tmp_path / "target")
    before, new = contents(target), contents(source)
    real, count = os.write, [0]

    def full(descriptor, data):
        count[0] += 1
        if count[0] >= at:
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoSpaceError):
        bring_back(bucket, source, target)
    monkeypatch.undo()

    after = contents(target)
    assert all(after[name] in (content, new.get(name)) for name, content in before.items() if content is not None)
    assert not leftovers(target)


@pytest.mark.parametrize("what", ["saves", "restores"])
@pytest.mark.timeout(200)
def test_a_process_that_dies_at_any_step(tmp_path, what):
    done = subprocess.run(
        [sys.executable, CRASHING, what, tmp_path], capture_output=True, text=True, timeout=190, check=False
    )

    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) > 20


_WORK = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from tarball_rig import bring_back, save
what, url, source, target = sys.argv[1:]
bucket = open_bucket(BucketUrl.parse(url))
if what == "save":
    save(bucket, Path(source))
else:
    print("begun", flush=True)
    bring_back(bucket, Path(source), Path(target))
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
"""


def _work(*arguments):
    work = _WORK.format(tests=str(Path(__file__).parents[1]))
    return [sys.executable, "-c", work, *map(str, arguments)]


@pytest.mark.needs("seaweedfs")
def test_killed_in_the_middle_of_a_replacing_restore(tmp_path, s3_bucket):
    source, target = tmp_path / "source", _old(tmp_path / "target")
    _fill(source)
    for number in range(400):
        write(source / "folder" / f"more-{number}", os.urandom(30_000))
    before, new = contents(target), contents(source)
    subprocess.run(_work("save", s3_bucket.url, source, target), check=True, capture_output=True)
    with subprocess.Popen(_work("restore", s3_bucket.url, source, target), stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        while process.poll() is None and not (target / "folder" / "more-200").exists():
            pass
        process.send_signal(signal.SIGKILL)

    after = contents(target)
    if after != new:
        there = set(after.values())
        for name, content in before.items():
            assert content is None or after.get(name) in (content, new.get(name)) or content in there, name
    subprocess.run(_work("restore", s3_bucket.url, source, target), check=True, capture_output=True)
    assert contents(target) == new


@pytest.mark.needs("seaweedfs")
@pytest.mark.timeout(120)
def test_a_large_directory_takes_no_more_memory_than_a_small_one(tmp_path, s3_bucket):
    source, small = tmp_path / "source", tmp_path / "small"
    rng = random.Random(1)
    for number in range(1_000):
        write(source / f"{number % 20}" / f"{number}", rng.randbytes(100_000))
    write(source / "large", b"".join(rng.randbytes(10 * MIB) for _ in range(20)))
    write(small / "file", "small")
    peaks = {}
    for what in ("save", "restore"):
        for path in (small, source):
            command = _work(what, s3_bucket.url, path, tmp_path / f"{path.name}-back")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            peaks[what, path.name] = int(done.stdout.split()[-1]) // 1024

    assert contents(tmp_path / "source-back") == contents(source)
    for what in ("save", "restore"):
        assert peaks[what, "source"] - peaks[what, "small"] < 100, peaks


def test_the_object_found_may_be_gone_before_it_is_read(tmp_path):
    bucket = memory_bucket()
    save(bucket, _fill(tmp_path / "source"))
    tarball = found(bucket, tmp_path / "source")
    bucket.delete(tarball.key)

    with pytest.raises(Unavailable):
        list(tarball.contents())
