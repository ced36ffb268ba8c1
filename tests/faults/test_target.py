"""A target or a store that cannot take what it is given: nothing is deleted, and the next run goes on."""

import errno
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from backups import Rig, contents, leftovers, state
from holdfast.archive.extract import Tree
from holdfast.errors import HoldfastError, NoSpaceError, TargetError, Unavailable
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    (rig.source / "folder").mkdir()
    for number in range(20):
        (rig.source / "folder" / f"{number:02}").write_bytes(os.urandom(100_000))
    (rig.source / "large").write_bytes(os.urandom(4_000_000))
    (rig.source / "small").write_bytes(b"small")
    rig.backup()
    return rig


def _mount(path, *options):
    path.mkdir(exist_ok=True)
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("a small file system can only be mounted by root")
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", path]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")


@pytest.fixture
def mounted(tmp_path):
    """mounted("size=1m"): a file system of its own."""
    made = []

    def mount(*options):
        path = tmp_path / f"mounted-{len(made)}"
        _mount(path, *options)
        made.append(path)
        return path

    yield mount
    for path in made:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.parametrize("mode", ["replace", "merge"])
def test_a_full_disk_deletes_nothing_and_more_room_lets_it_go_on(rig, mounted, mode):
    disk = mounted("size=3m")
    target = disk / "target"
    (target / "surplus").mkdir(parents=True)
    (target / "surplus" / "file").write_bytes(b"precious")
    (target / "small").write_bytes(b"older")

    with pytest.raises(NoSpaceError) as caught:
        rig.restore(target, mode=mode)

    assert "make room" in (caught.value.hint or "")
    assert leftovers(target) == []
    got = contents(target)
    assert got["surplus/file"] == b"precious"
    assert got["small"] in (b"older", b"small")
    whole = contents(rig.source)
    for name, content in got.items():
        assert name in ("small", "surplus", "surplus/file") or content == whole[name]

    subprocess.run(["mount", "-o", "remount,size=30m", disk], check=True)
    done = rig.restore(target)
    assert done.kept > 0
    assert state(target) == state(rig.source)


def test_a_disk_without_inodes(rig, mounted):
    disk = mounted("size=30m,nr_inodes=10")

    with pytest.raises(NoSpaceError):
        rig.restore(disk / "target")
    assert leftovers(disk) == []


@pytest.mark.parametrize("at", range(1, 26, 3))
@pytest.mark.parametrize("step", ["pwrite", "ftruncate", "fchmod", "rename", "utime", "close-less open"])
def test_a_disk_that_fills_at_any_file(rig, monkeypatch, step, at):
    """Whatever step says so, and at whichever file."""
    target = rig.new_target()
    target.mkdir()
    (target / "large").write_bytes(b"older")
    (target / "folder").mkdir()
    (target / "folder" / "03").write_bytes(b"older")
    name = "open" if step == "close-less open" else step
    real, left = getattr(os, name), [at]

    def full(*arguments, **given):
        if name != "open" or arguments[1] & os.O_CREAT:
            left[0] -= 1
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **given)

    monkeypatch.setattr(os, name, full)
    try:
        with suppress(NoSpaceError):
            rig.restore(target)
    finally:
        monkeypatch.undo()

    assert leftovers(target) == []
    whole, got = contents(rig.source), contents(target)
    assert got["large"] in (b"older", whole["large"])
    assert got["folder/03"] in (b"older", whole["folder/03"])
    for path, content in got.items():
        assert content in (whole[path], b"older"), path
    rig.restore(target)
    assert state(target) == state(rig.source)


@pytest.mark.parametrize("at", range(1, 24, 3))
@pytest.mark.parametrize("step", ["pwrite", "fchmod", "rename", "utime"])
def test_one_file_that_cannot_be_written_costs_only_itself(rig, monkeypatch, step, at):
    target = rig.new_target()
    target.mkdir()
    (target / "surplus").write_bytes(b"kept, for not everything worked")
    real, left = getattr(os, step), [at]

    def fail(*arguments, **given):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.EFBIG, "File too large")
        return real(*arguments, **given)

    monkeypatch.setattr(os, step, fail)
    done = rig.restore(target)
    monkeypatch.undo()

    assert leftovers(target) == []
    if left[0] <= 0:
        assert not done.complete
        if {failed.path for failed in done.failed} - {"", "folder"}:  # directories' own metadata come last of all
            assert (target / "surplus").exists()
    whole, got = contents(rig.source), contents(target)
    for path, content in got.items():
        assert path == "surplus" or content == whole[path]
    rig.restore(target)
    assert state(target) == state(rig.source)


def test_a_limit_on_file_sizes(rig, tmp_path):
    """As a shell's `ulimit -f` sets it: the large file fails, the rest is there."""
    store = tmp_path / "store"
    on_disk = Rig(tmp_path, open_bucket(BucketUrl.parse(f"file://{store}")))
    on_disk.backup()
    target = tmp_path / "limited"
    command = [sys.executable, "-m", "holdfast", "restore", "trial", "--store", f"file://{store}", "--target", target]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 2000; exec "$@"', "sh", *command], capture_output=True, text=True, check=False
    )

    assert done.returncode == 3, done.stderr
    assert "large: File too large" in done.stderr
    assert leftovers(target) == []
    whole = contents(rig.source)
    assert contents(target) == {name: content for name, content in whole.items() if name != "large"}


def test_a_read_only_target(rig, mounted):
    disk = mounted("size=30m")
    (disk / "small").write_bytes(b"older")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    with pytest.raises(TargetError) as caught:
        rig.restore(disk)
    assert "Read-only" in str(caught.value)
    with pytest.raises(TargetError):
        rig.restore(disk / "below")
    assert contents(disk) == {"small": b"older"}


@pytest.mark.parametrize("below", [False, True])
def test_a_file_where_the_target_should_be(rig, tmp_path, below):
    (tmp_path / "file").write_bytes(b"precious")

    with pytest.raises(TargetError) as caught:
        rig.restore(tmp_path / "file" / "below" if below else tmp_path / "file")
    assert "stands where a directory is needed" in str(caught.value)
    assert (tmp_path / "file").read_bytes() == b"precious"


@pytest.mark.parametrize("mode", ["replace", "merge"])
def test_a_file_where_a_directory_should_be(rig, mode):
    target = rig.new_target()
    target.mkdir()
    (target / "folder").write_bytes(b"a file")

    assert rig.restore(target, mode=mode).complete
    assert state(target) == state(rig.source)


def test_a_directory_where_a_file_should_be(rig):
    target = rig.new_target()
    (target / "small" / "below").mkdir(parents=True)
    (target / "small" / "below" / "file").write_bytes(b"precious")

    merged = rig.restore(target, mode="merge")
    assert not merged.complete
    assert [failed.path for failed in merged.failed] == ["small"]
    assert (target / "small" / "below" / "file").read_bytes() == b"precious"
    assert (target / "large").read_bytes() == (rig.source / "large").read_bytes()

    assert rig.restore(target).complete
    assert state(target) == state(rig.source)


def test_a_directory_that_cannot_be_made_costs_only_what_is_below(rig, monkeypatch):
    real = Tree.make_folder

    def refuse(self, path):
        if path == b"folder":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(self, path)

    monkeypatch.setattr(Tree, "make_folder", refuse)
    target = rig.new_target()
    done = rig.restore(target)

    assert [failed.path for failed in done.failed] == ["folder"]
    assert set(contents(target)) == {"large", "small"}


# The store


def test_a_store_on_a_full_disk_says_so_and_goes_on_with_more_room(rig, mounted):
    disk = mounted("size=3m")
    full = Rig(rig.folder, open_bucket(BucketUrl.parse(f"file://{disk}/store")))

    with pytest.raises(Unavailable) as caught:
        full.backup()
    assert "free some space" in (caught.value.hint or "")
    assert leftovers(disk) in ([], [f"{disk}/store/.holdfast-tmp"])
    assert not list((disk / "store" / ".holdfast-tmp").iterdir())

    subprocess.run(["mount", "-o", "remount,size=30m", disk], check=True)
    full.backup()
    assert full.restored() == state(rig.source)


def test_a_read_only_store(rig, mounted):
    disk = mounted("size=30m")
    there = Rig(rig.folder, open_bucket(BucketUrl.parse(f"file://{disk}/store")))
    there.backup()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    with pytest.raises(HoldfastError) as caught:
        there.backup()
    assert "Read-only" in str(caught.value)
    there.fresh_cache()
    assert there.restored() == state(rig.source)  # reading needs nothing


@pytest.mark.parametrize("what", ["a file", "below a file"])
def test_a_store_that_is_no_directory(rig, tmp_path, what):
    (tmp_path / "file").write_bytes(b"precious")
    place = tmp_path / "file" / ("below" if what == "below a file" else "")

    with pytest.raises(HoldfastError):
        Rig(rig.folder, open_bucket(BucketUrl.parse(f"file://{place}"))).backup()
    assert Path(tmp_path / "file").read_bytes() == b"precious"
