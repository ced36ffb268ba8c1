"""Only what lies below a root is opened, whatever the path looks like and whoever exchanges it meanwhile."""

import os

import pytest

from holdfast.errors import ForbiddenError, NotFoundError, TargetError, UsageError
from holdfast.volumes import roots as module
from holdfast.volumes.roots import Roots, mounted


@pytest.fixture
def top(tmp_path):
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/file").write_bytes(b"kelp")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_bytes(b"private")
    (tmp_path / "database").mkdir()
    return os.fsencode(tmp_path)


@pytest.fixture
def roots(top):
    return Roots([top + b"/data"])


def test_what_is_below(roots, top):
    with roots.existing(top + b"/data/file") as place:
        assert (place.kind, place.path) == ("file", top + b"/data/file")
        assert sorted(os.listdir(place.folder)) == ["file", "sub"]
    with roots.existing(top + b"/data/sub") as place:
        assert (place.kind, os.listdir(place.folder)) == ("directory", [])
    with roots.existing(top + b"/data") as place:
        assert (place.kind, sorted(os.listdir(place.folder))) == ("directory", ["file", "sub"])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(place.folder)


@pytest.mark.parametrize(
    "path", [b"", b"/secret", b"/secret/key", b"/database", b"/data/../secret", b"/datafile", b"/.."]
)
def test_what_is_not(roots, top, path):
    for attempt in (roots.existing(top + path), roots.writable(top + path, "file")):
        with pytest.raises(ForbiddenError, match="not below a root"), attempt:
            pass
    with pytest.raises(ForbiddenError):
        roots.check(top + path)


def test_symlinks_lead_where_they_lead(roots, top):
    os.symlink(b"sub", top + b"/data/inside")
    os.symlink(b"../secret", top + b"/data/outside")
    os.symlink(b"/", top + b"/data/sub/root")
    os.symlink(b"loop", top + b"/data/loop")
    with roots.existing(top + b"/data/inside") as place:
        assert place.path == top + b"/data/sub"
    for path in (b"/data/outside", b"/data/outside/key", b"/data/sub/root", b"/data/sub/root/etc/passwd"):
        with pytest.raises(ForbiddenError), roots.existing(top + path):
            pass
        with pytest.raises(ForbiddenError), roots.writable(top + path, "directory"):
            pass
    with pytest.raises((NotFoundError, UsageError, ForbiddenError)), roots.existing(top + b"/data/loop"):
        pass


def test_a_directory_exchanged_for_a_symlink_meanwhile(roots, top, monkeypatch):
    resolve = roots._resolve  # noqa: SLF001 - the moment between looking and opening

    def resolve_then_exchange(path):
        found = resolve(path)
        os.rename(top + b"/data/sub", top + b"/data/was")
        os.symlink(b"../secret", top + b"/data/sub")
        return found

    monkeypatch.setattr(roots, "_resolve", resolve_then_exchange)
    os.mkdir(top + b"/data/sub/deep")
    with pytest.raises(NotFoundError), roots.existing(top + b"/data/sub/key"):
        pass
    os.unlink(top + b"/data/sub")
    os.rename(top + b"/data/was", top + b"/data/sub")
    with pytest.raises(TargetError, match="symlink"), roots.writable(top + b"/data/sub/deep/new", "file"):
        pass
    assert os.listdir(top + b"/secret") == [b"key"]


def test_the_way_to_what_is_written_is_made(roots, top):
    with roots.writable(top + b"/data/new/deep", "directory") as place:
        assert os.listdir(place.folder) == []
    assert os.path.isdir(top + b"/data/new/deep")
    with roots.writable(top + b"/data/other/file", "file") as place:
        assert os.listdir(place.folder) == []
    assert not os.path.exists(top + b"/data/other/file")
    with pytest.raises(TargetError, match="stands where"), roots.writable(top + b"/data/file/x", "file"):
        pass
    with pytest.raises(TargetError, match="directory here"), roots.writable(top + b"/data", "file"):
        pass


def test_nothing_there(roots, top):
    with pytest.raises(NotFoundError, match="there is no"), roots.existing(top + b"/data/nothing"):
        pass
    with pytest.raises(NotFoundError), roots.existing(top + b"/data/file/below"):
        pass
    os.mkfifo(top + b"/data/fifo")
    with pytest.raises(UsageError, match="neither"), roots.existing(top + b"/data/fifo"):
        pass
    with pytest.raises(UsageError, match="too long"), roots.existing(top + b"/data/" + b"x" * 300):
        pass


def test_a_root_that_is_a_symlink_and_the_root_of_all(top):
    os.symlink(b"data", top + b"/link")
    with Roots([top + b"/link"]).existing(top + b"/link/file") as place:
        assert place.path == top + b"/data/file"
    with Roots([b"/"]).existing(top + b"/data/file") as place:
        assert place.kind == "file"
    with Roots([b"/"]).existing(b"/") as place:
        assert place.kind == "directory"


def test_a_root_does_not_move_with_what_stands_at_its_path(top):
    """Who can write in a root may put a symlink where another root was."""
    os.mkdir(top + b"/data/sub/deep")
    nested = Roots([top + b"/data", top + b"/data/sub/deep"])
    os.rename(top + b"/data/sub", top + b"/data/was")
    os.symlink(b"../secret", top + b"/data/sub")
    os.mkdir(top + b"/secret/deep")

    for path in (b"/data/sub", b"/data/sub/deep", b"/data/sub/deep/new"):
        with pytest.raises(ForbiddenError), nested.existing(top + path):
            pass
        with pytest.raises(ForbiddenError), nested.writable(top + path, "directory"):
            pass
    assert os.listdir(top + b"/secret/deep") == []


def test_a_root_in_another_that_is_exchanged_meanwhile(top, monkeypatch):
    os.mkdir(top + b"/data/sub/deep")
    nested = Roots([top + b"/data/sub/deep"])
    resolve = nested._resolve  # noqa: SLF001 - the moment between looking and opening

    def resolve_then_exchange(path):
        found = resolve(path)
        os.rename(top + b"/data/sub", top + b"/data/was")
        os.symlink(b"../secret", top + b"/data/sub")
        os.mkdir(top + b"/secret/deep")
        return found

    monkeypatch.setattr(nested, "_resolve", resolve_then_exchange)
    with pytest.raises(NotFoundError), nested.existing(top + b"/data/sub/deep"):
        pass


def test_a_root_below_what_cannot_be_listed(top):
    os.chmod(top + b"/data", 0o311)
    with Roots([top + b"/data/sub"]).existing(top + b"/data/sub") as place:
        assert os.listdir(place.folder) == []
    os.chmod(top + b"/data", 0o755)


def test_our_own_directories_are_nobodys(top):
    os.makedirs(top + b"/data/store/blobs")
    os.symlink(b"store/blobs", top + b"/data/way")
    os.symlink(b"data/store", top + b"/store")
    own = Roots([top + b"/data"], [top + b"/store", top + b"/data/cache"])
    for path in (b"/data/store", b"/data/store/blobs", b"/data/way", b"/data/cache/new"):
        with pytest.raises(ForbiddenError, match="own"):
            own.check(top + path)
        with pytest.raises(ForbiddenError), own.writable(top + path, "directory"):
            pass
    assert own.check(top + b"/data/stored") == top + b"/data/stored"


MOUNTS = b"""\
613 512 0:52 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/l
614 613 0:55 / /proc rw,nosuid - proc proc rw
615 613 0:56 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k
616 615 0:57 / /dev/pts rw,nosuid - devpts devpts rw
618 617 0:27 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw
619 615 0:54 / /dev/mqueue rw,nosuid - mqueue mqueue rw
621 613 254:1 /docker/containers/1/resolv.conf {top}/resolv.conf rw - ext4 /dev/vda1 rw
622 613 254:1 /docker/volumes/v/_data {top}/data rw,relatime - ext4 /dev/vda1 rw
623 613 254:1 /docker/volumes/w/_data {top}/with\\040space rw shared:2 master:3 - ext4 /dev/vda1 rw
624 613 0:60 / /run/secrets ro,relatime - tmpfs tmpfs ro
625 613 254:1 /docker/volumes/c/_data {top}/cache rw - ext4 /dev/vda1 rw
626 613 254:1 /docker/volumes/c/_data {top}/cache/below rw - ext4 /dev/vda1 rw
a line that is none
"""


def test_the_volumes_of_a_container(top):
    for name in (b"with space", b"cache/below"):
        os.makedirs(top + b"/" + name)
    with open(top + b"/resolv.conf", "wb"):
        pass
    text = MOUNTS.replace(b"{top}", top)

    assert mounted(text)[-2:] == [top + b"/data", top + b"/with space"]
    found = Roots.of_container([top + b"/cache"], text)
    assert found.roots == (top + b"/data", top + b"/with space")


def test_no_container_and_no_volume(top, monkeypatch):
    monkeypatch.setattr(module, "is_container", lambda: False)
    with pytest.raises(UsageError, match="no root is named") as caught:
        Roots.of_container()
    assert "HOLDFAST_PERSIST_ROOTS" in caught.value.hint
    with pytest.raises(UsageError, match="no volume is mounted"):
        Roots.of_container((), b"613 512 0:52 / / rw,relatime master:1 - overlay overlay rw\n")
