"""Directories and files that are saved as one object, and come back."""

import errno
import gzip
import io
import os
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from backups import contents, leftovers, memory_bucket
from holdfast.archive.extract import Tree
from holdfast.archive.scan import Rules
from holdfast.errors import BusyError, DamageError, SourceError, TargetError, Unavailable, UsageError
from holdfast.model.names import SourceName
from holdfast.model.urls import BucketUrl
from holdfast.progress import Progress
from holdfast.storage.backends import open_bucket
from holdfast.volumes.backup import Source
from holdfast.volumes.restore import Options
from holdfast.volumes.tarball import find_tarball, restore_tarball, save_tarball
from tarball_rig import archive, as_whole_seconds, bring_back, found, name_of, place, save
from trees import IS_ROOT, assert_same, fingerprint, make_rich, make_small, write

OLD = {"isdirectory": "true", "iscompressed": "false", "content_type": "application/x-tar"}


@pytest.fixture
def bucket():
    return memory_bucket()


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_everything_comes_back(tmp_path, compress, where):
    url = f"file://{tmp_path}/store"
    bucket = memory_bucket() if where == "memory" else open_bucket(BucketUrl.parse(url))
    source = make_rich(tmp_path / "source")
    old = as_whole_seconds(fingerprint(source, lacking=("data",)))
    progress = Progress()

    saved = save(bucket, source, compress=compress, progress=progress)

    assert saved.complete
    assert saved.key == str(source).strip("/")
    assert (saved.is_directory, saved.is_compressed) == (True, compress)
    assert saved.etag == found(bucket, source).etag
    assert saved.stored_bytes == found(bucket, source).size == progress.bytes_stored
    assert saved.counts.files + saved.counts.directories + saved.counts.others == len(old)
    for target in (tmp_path / "new", make_small(tmp_path / "old")):
        restored = bring_back(bucket, source, target)
        assert restored.complete
        assert_same(old, as_whole_seconds(fingerprint(target, lacking=("data",))))
        assert restored.written == saved.counts.files
        assert restored.bytes_written == saved.counts.bytes


def test_an_empty_directory_and_an_empty_file(tmp_path, bucket):
    (tmp_path / "empty").mkdir(mode=0o711)
    (tmp_path / "nothing").write_bytes(b"")
    for name in ("empty", "nothing"):
        save(bucket, tmp_path / name)

    bring_back(bucket, tmp_path / "empty", tmp_path / "target")
    bring_back(bucket, tmp_path / "nothing", tmp_path / "target")

    assert contents(tmp_path / "target") == {"nothing": b""}
    assert (tmp_path / "target").stat().st_mode & 0o7777 == 0o711


def test_one_file_comes_back_and_nothing_beside_it_is_touched(tmp_path, bucket):
    write(tmp_path / "source" / "index.js", "new")
    (tmp_path / "source" / "index.js").chmod(0o4750)
    saved = save(bucket, tmp_path / "source" / "index.js")
    target = tmp_path / "target"
    write(target / "index.js", "old")
    write(target / "other", "other")

    bring_back(bucket, tmp_path / "source" / "index.js", target, mode="replace")
    bring_back(bucket, tmp_path / "source" / "index.js", target, name=b"renamed")

    assert not saved.is_directory
    assert contents(target) == {"index.js": b"new", "other": b"other", "renamed": b"new"}
    assert (target / "index.js").stat().st_mode & 0o7777 == 0o4750


def test_an_open_directory_is_used_whatever_stands_at_its_path(tmp_path, bucket):
    source = make_small(tmp_path / "source")
    write(tmp_path / "decoy" / "secret", "x")
    for name, kind in (("folder", "directory"), ("a.txt", "file")):
        opened = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
        path = os.fsencode(tmp_path / "decoy") if kind == "directory" else os.fsencode(tmp_path / "decoy" / name)
        save_tarball(bucket, Source(SourceName(b"/x/" + name.encode()), path, kind, opened))
        os.close(opened)
    target = tmp_path / "target"
    target.mkdir()
    opened = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    for name in ("folder", "a.txt"):
        tarball = find_tarball(bucket, SourceName(b"/x/" + name.encode()))
        restore_tarball(tarball, Options(target=b"/nowhere", opened=opened, mode="merge"))
    os.close(opened)

    assert contents(target) == contents(source)


def test_replace_removes_the_rest_and_merge_does_not(tmp_path, bucket):
    source = make_small(tmp_path / "source")
    save(bucket, source)
    for mode in ("merge", "replace"):
        target = tmp_path / mode
        write(target / "a.txt", "older")
        write(target / "surplus" / "deep" / "file", "x")
        write(target / "b" / "more", "y")
        write(target / (".holdfast-" + "0" * 32), "left by a killed restore")

        restored = bring_back(bucket, source, target, mode=mode)

        surplus = {"surplus": None, "surplus/deep": None, "surplus/deep/file": b"x", "b/more": b"y"}
        assert contents(target) == contents(source) | (surplus if mode == "merge" else {})
        assert restored.deleted == ([] if mode == "merge" else ["surplus", "b/more"])


def test_what_is_never_removed(tmp_path, bucket):
    source = make_small(tmp_path / "source")
    save(bucket, source)
    target = tmp_path / "target"
    write(target / "var" / "store" / "blob", "x")
    write(target / "var" / "other", "y")
    write(target / "gone", "z")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(target / "socket"))

        bring_back(bucket, source, target, spare=(os.fsencode(target / "var" / "store"),))

    assert (target / "socket").is_socket()
    assert (target / "var" / "store" / "blob").read_bytes() == b"x"
    assert not (target / "gone").exists()


def test_files_and_directories_change_places(tmp_path, bucket):
    source, target = tmp_path / "source", tmp_path / "target"
    write(source / "was-folder", "file now")
    write(source / "was-file" / "below", "folder now")
    write(source / "was-link" / "below", "folder too")
    save(bucket, source)
    write(target / "was-folder" / "below", "x")
    write(target / "was-file", "y")
    write(tmp_path / "outside" / "below", "untouched")
    (target / "was-link").symlink_to(tmp_path / "outside")

    restored = bring_back(bucket, source, target)

    assert restored.complete
    assert contents(target) == contents(source)
    assert contents(tmp_path / "outside") == {"below": b"untouched"}
    assert not leftovers(target)


def test_merge_never_puts_a_file_in_the_place_of_a_full_directory(tmp_path, bucket):
    source, target = tmp_path / "source", tmp_path / "target"
    write(source / "full", "file now")
    write(source / "empty", "file now")
    write(source / "other", "other")
    save(bucket, source)
    write(target / "full" / "below", "x")
    (target / "empty").mkdir()

    restored = bring_back(bucket, source, target, mode="merge")

    assert [failed.path for failed in restored.failed] == ["full"]
    assert not restored.complete
    assert (target / "full" / "below").read_bytes() == b"x"
    assert (target / "other").read_bytes() == b"other"
    assert not leftovers(target)


@pytest.mark.skipif(not IS_ROOT, reason="needs chattr")
def test_what_cannot_be_replaced_is_reported_and_nothing_is_deleted(tmp_path, bucket):
    source, target = tmp_path / "source", tmp_path / "target"
    write(source / "a" / "x", "new")
    write(source / "b", "new")
    save(bucket, source)
    write(target / "a" / "x", "old")
    write(target / "b" / "was a folder", "old")
    write(target / "surplus", "stays")
    if subprocess.run(["chattr", "+i", target / "a"], capture_output=True, check=False).returncode:
        pytest.skip("no immutable files here")
    try:
        restored = bring_back(bucket, source, target)
    finally:
        subprocess.run(["chattr", "-i", target / "a"], check=True)

    assert {failed.path for failed in restored.failed} >= {"a/x", "b"}
    assert contents(target) == {
        "a": None,
        "a/x": b"old",
        "b": None,
        "b/was a folder": b"old",
        "surplus": b"stays",
    }


def test_symlinks_in_the_target_are_not_followed(tmp_path, bucket):
    source, target, outside = tmp_path / "source", tmp_path / "target", tmp_path / "outside"
    write(source / "folder" / "file", "new")
    write(source / "file", "new")
    save(bucket, source)
    write(outside / "file", "untouched")
    for mode in ("merge", "replace"):
        target.mkdir(exist_ok=True)
        for name in ("folder", "file"):
            (target / mode).mkdir(exist_ok=True)
            (target / mode / name).symlink_to(outside / name if name == "file" else outside)

        bring_back(bucket, source, target / mode, mode=mode)

        assert contents(target / mode) == contents(source)
    assert contents(outside) == {"file": b"untouched"}


def test_the_last_of_two_members_counts(tmp_path, bucket):
    data = archive(("a", b"first"), ("b", b"b"), ("a", b"second"), ("d", None), ("d/x", b"x"), ("d", None))
    place(bucket, tmp_path / "s", data, **OLD)

    bring_back(bucket, tmp_path / "s", tmp_path / "target")

    assert contents(tmp_path / "target") == {"a": b"second", "b": b"b", "d": None, "d/x": b"x"}


def test_hard_links_among_members_that_come_twice(tmp_path, bucket):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:

        def add(name, content=None, link=None):
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = tarfile.LNKTYPE, link
            info.size = len(content or b"")
            made.addfile(info, io.BytesIO(content or b""))

        add("b", b"b")
        add("a", link="b")
        add("b", link="a")
        add("c", link="b")
        add("d", link="c")
        add("d", b"no link any more")
    place(bucket, tmp_path / "s", out.getvalue(), **OLD)

    assert bring_back(bucket, tmp_path / "s", tmp_path / "target").complete

    target = tmp_path / "target"
    assert contents(target) == {"a": b"b", "b": b"b", "c": b"b", "d": b"no link any more"}
    assert len({(target / name).stat().st_ino for name in "abc"}) == 1


def test_directories_that_the_archive_leaves_out(tmp_path, bucket):
    place(bucket, tmp_path / "s", archive(("a/b/c", b"c")), **OLD)
    target = tmp_path / "target"
    (target / "a").mkdir(parents=True, mode=0o700)

    bring_back(bucket, tmp_path / "s", target)

    assert contents(target) == {"a": None, "a/b": None, "a/b/c": b"c"}
    assert (target / "a").stat().st_mode & 0o777 == 0o700
    assert (target / "a" / "b").stat().st_mode & 0o777 == 0o755


RAW = b"console.log('raw')\n" * 100
PACKED = gzip.compress(RAW)
TAR = archive(("./", None), ("./x", b"x"))
ONE = archive(("file", b"the one"))


@pytest.mark.parametrize(
    ("data", "metadata", "restored"),
    [
        # the newer generation
        (TAR, {"isdirectory": "true", "iscompressed": "false"}, {"x": b"x"}),
        (gzip.compress(TAR), {"isdirectory": "true", "iscompressed": "true"}, {"x": b"x"}),
        (ONE, {"isdirectory": "false", "iscompressed": "false"}, {"file": b"the one"}),
        (gzip.compress(ONE), {"isdirectory": "false", "iscompressed": "true"}, {"file": b"the one"}),
        # the magic bytes win
        (TAR, {"isdirectory": "true", "iscompressed": "true"}, {"x": b"x"}),
        (gzip.compress(TAR), {"isdirectory": "true", "iscompressed": "false"}, {"x": b"x"}),
        (gzip.compress(TAR), {"isdirectory": "true"}, {"x": b"x"}),
        # the older generation
        (TAR, {"directory": "true", "compressed": "false"}, {"x": b"x"}),
        (gzip.compress(TAR), {"directory": "true", "compressed": "true"}, {"x": b"x"}),
        (RAW, {"directory": "false", "compressed": "false"}, {"file": RAW}),
        (PACKED, {"directory": "false", "compressed": "true"}, {"file": RAW}),
        (PACKED, {"directory": "false", "compressed": "false"}, {"file": PACKED}),
        (RAW, {"directory": "false", "compressed": "true"}, {"file": RAW}),
        (ONE, {"directory": "false", "compressed": "false"}, {"file": ONE}),
        (PACKED, {"directory": "false", "content_type": "application/x-gzip"}, {"file": RAW}),
        (b"", {"directory": "false", "compressed": "false"}, {"file": b""}),
        # no label at all
        (TAR, {}, {"x": b"x"}),
        (gzip.compress(TAR), {}, {"x": b"x"}),
        (ONE, {}, {"file": b"the one"}),
        (RAW, {}, {"file": RAW}),
        (PACKED, {}, {"file": PACKED}),
        (bytes(2_000), {}, {"file": bytes(2_000)}),
        (b"", {}, {"file": b""}),
        (gzip.compress(b"") + b"garbage", {}, {"file": gzip.compress(b"") + b"garbage"}),
    ],
)
def test_objects_of_every_generation(tmp_path, bucket, data, metadata, restored):
    place(bucket, tmp_path / "file", data, **metadata)

    done = bring_back(bucket, tmp_path / "file", tmp_path / "target")

    assert done.complete
    assert contents(tmp_path / "target") == restored


def test_a_raw_file_takes_over_mode_and_owner_of_the_one_before(tmp_path, bucket):
    place(bucket, tmp_path / "file", RAW, directory="false", compressed="false")
    write(tmp_path / "target" / "file", "before")
    (tmp_path / "target" / "file").chmod(0o4711)

    bring_back(bucket, tmp_path / "file", tmp_path / "target")

    assert (tmp_path / "target" / "file").read_bytes() == RAW
    assert (tmp_path / "target" / "file").stat().st_mode & 0o7777 == 0o4711


def test_an_object_whose_key_is_the_path_as_urls_write_it(tmp_path, bucket):
    path = Path("/data/a b/ü")
    place(bucket, Path("/data/a%20b/%C3%BC"), TAR, **OLD)

    bring_back(bucket, path, tmp_path / "target")
    assert contents(tmp_path / "target") == {"x": b"x"}
    assert found(bucket, path).key == "data/a%20b/%C3%BC"

    place(bucket, path, archive(("y", b"y")), **OLD)
    bring_back(bucket, path, tmp_path / "target")
    assert contents(tmp_path / "target") == {"y": b"y"}


def test_nothing_is_found(bucket):
    for name in (b"/nothing", b"/", b"volume"):
        assert find_tarball(bucket, SourceName(name)) is None


@pytest.mark.parametrize(
    "data",
    [
        archive(("a", b"x"), ("b", b"y")),
        archive(("./", None), ("a", b"x")),
        archive(("a", None)),
        gzip.compress(archive(("a", b"x"), ("../b", b"y"))),
    ],
)
def test_an_archive_of_one_file_that_holds_anything_else(tmp_path, bucket, data):
    place(bucket, tmp_path / "a", data, isdirectory="false", iscompressed="false")
    write(tmp_path / "target" / "other", "other")

    with pytest.raises(DamageError):
        bring_back(bucket, tmp_path / "a", tmp_path / "target")

    assert (tmp_path / "target" / "other").read_bytes() == b"other"
    assert not leftovers(tmp_path / "target")
    assert set(contents(tmp_path / "target")) <= {"a", "other"}


@pytest.mark.parametrize("damage", ["cut", "flipped", "behind", "zeros", "empty", "hostile"])
@pytest.mark.parametrize("compress", [True, False])
def test_a_damaged_archive_takes_nothing_away(tmp_path, bucket, damage, compress):
    members = [(f"{number}", os.urandom(3_000)) for number in range(20)]
    data = archive(("./", None), *members, ("was-folder", b"x"), *([("../up", b"x")] if damage == "hostile" else []))
    data = gzip.compress(data) if compress else data
    if damage == "cut":
        data = data[: len(data) * 3 // 4]
    elif damage == "flipped":
        at = 512 if not compress else len(data) - 6
        data = data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]
    elif damage == "behind" and compress:
        data += b"garbage"
    elif damage in ("zeros", "behind"):
        data = bytes(len(data))
    elif damage == "empty":
        data = b""
    place(bucket, tmp_path / "s", data, isdirectory="true", iscompressed=str(compress).lower())
    target = tmp_path / "target"
    write(target / "3", "old")
    write(target / "surplus" / "file", "x")
    write(target / "was-folder" / "below", "y")
    new = dict(members)

    with pytest.raises(DamageError):
        bring_back(bucket, tmp_path / "s", target)

    after = contents(target)
    assert after["3"] in (b"old", new["3"])
    assert after["surplus/file"] == b"x"
    assert after["was-folder/below"] == b"y"
    assert not leftovers(target)


def test_another_object_than_the_one_that_was_found(tmp_path, bucket):
    place(bucket, tmp_path / "s", TAR, **OLD)
    tarball = found(bucket, tmp_path / "s")
    place(bucket, tmp_path / "s", archive(("y", b"y")), **OLD)

    with pytest.raises(Unavailable, match="replaced"):
        restore_tarball(tarball, Options(target=os.fsencode(tmp_path / "target")))
    bucket.delete(tarball.key)
    with pytest.raises(Unavailable, match="replaced"):
        restore_tarball(tarball, Options(target=os.fsencode(tmp_path / "target")))


def test_two_restores_into_one_directory(tmp_path, bucket):
    import fcntl  # noqa: PLC0415

    place(bucket, tmp_path / "s", TAR, **OLD)
    (tmp_path / "target").mkdir()
    held = os.open(tmp_path / "target", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(BusyError):
            bring_back(bucket, tmp_path / "s", tmp_path / "target")
    finally:
        os.close(held)
    bring_back(bucket, tmp_path / "s", tmp_path / "target")


def test_restores_of_single_files_do_not_keep_one_another_out(tmp_path, bucket):
    import fcntl  # noqa: PLC0415

    write(tmp_path / "s", "kelp")
    save(bucket, tmp_path / "s")
    (tmp_path / "target").mkdir()
    held = os.open(tmp_path / "target", os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_SH)  # as the restore of another file holds it
        bring_back(bucket, tmp_path / "s", tmp_path / "target")
        fcntl.flock(held, fcntl.LOCK_EX)  # as that of the directory
        with pytest.raises(BusyError):
            bring_back(bucket, tmp_path / "s", tmp_path / "target")
    finally:
        os.close(held)
    assert contents(tmp_path / "target") == {"s": b"kelp"}


def test_warnings_are_bounded(tmp_path, bucket):
    """Their number is up to who made the archive."""
    members = [archive((f"{number}", b""), pax_headers={f"SCHILY.xattr.no.{number}": "x"}) for number in range(1100)]
    place(bucket, tmp_path / "s", b"".join(member[:1536] for member in members) + bytes(1024), **OLD)
    progress = Progress()
    restore_tarball(found(bucket, tmp_path / "s"), Options(target=os.fsencode(tmp_path / "t")), progress=progress)
    assert len(os.listdir(tmp_path / "t")) == 1100
    assert len(progress.warnings) == 1000


def test_our_own_directories_are_not_moved_out_of_the_way(tmp_path, bucket):
    place(bucket, tmp_path / "s", archive(("a", b"file"), ("b", b"file")), **OLD)
    target = tmp_path / "target"
    write(target / "a/store/blob", "kelp")
    write(target / "surplus", "stays, for not all could be restored")

    restored = bring_back(bucket, tmp_path / "s", target, spare=(os.fsencode(target / "a/store"),))

    assert [failed.path for failed in restored.failed] == ["a"]
    assert (target / "a/store/blob").read_bytes() == b"kelp"
    assert (target / "b").read_bytes() == b"file"
    assert (target / "surplus").exists()


def test_a_disk_that_fails_when_all_is_written_takes_nothing_away(tmp_path, bucket, monkeypatch):
    place(bucket, tmp_path / "s", archive(("a", b"file")), **OLD)
    target = tmp_path / "target"
    write(target / "a/precious", "kelp")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Tree, "names", fail)
    with pytest.raises(TargetError, match="Input/output"):
        bring_back(bucket, tmp_path / "s", target)

    assert contents(target) == {"a": None, "a/precious": b"kelp"}


def test_what_one_stream_cannot_give(tmp_path, bucket):
    place(bucket, tmp_path / "s", TAR, **OLD)
    for options in ({"paths": (b"x",)}, {"dry_run": True}):
        with pytest.raises(UsageError, match="whole"):
            bring_back(bucket, tmp_path / "s", tmp_path / "target", **options)
    assert not (tmp_path / "target").exists()


def test_without_a_target_it_goes_where_it_came_from(tmp_path, bucket):
    source = make_small(tmp_path / "source")
    before = contents(source)
    for path in (source, source / "a.txt"):
        save(bucket, path)
    (source / "a.txt").write_bytes(b"changed")
    restore_tarball(found(bucket, source / "a.txt"), Options())
    assert contents(source) == before
    (source / "more").write_bytes(b"more")
    restore_tarball(found(bucket, source), Options())
    assert contents(source) == before


# What a save does with a source that is not at rest


def test_rules_are_kept(tmp_path, bucket):
    source = make_small(tmp_path / "source")
    status = (source / "b").stat()
    rules = Rules(exclude=("*.log",), folders=frozenset({(status.st_dev, status.st_ino)}))

    save(bucket, source, rules=rules)

    bring_back(bucket, source, tmp_path / "target")
    assert set(contents(tmp_path / "target")) == {"a.txt", "link", "empty"}


def test_what_a_save_leaves_out_is_not_deleted(tmp_path, bucket):
    source = make_small(tmp_path / "source")
    write(source / "empty" / "more.log", "log")
    before = contents(source)
    save(bucket, source, rules=Rules(exclude=("*.log",)))
    write(source / "more", "surplus")

    restored = restore_tarball(found(bucket, source), Options(target=os.fsencode(source)), exclude=("*.log",))

    assert contents(source) == before
    assert restored.deleted == ["more"]


@pytest.mark.parametrize(
    ("owner", "mode", "stays"),
    [
        ((1, 1), 0o066, True),
        ((2, 1), 0o406, True),
        ((2, 3), 0o440, True),
        ((1, 1), 0o400, False),
        ((2, 1), 0o040, False),
        ((2, 3), 0o004, False),
    ],
)
def test_what_a_save_could_not_read_is_not_deleted(tmp_path, bucket, monkeypatch, owner, mode, stays):
    """An archive does not say what is missing from it."""
    source = make_small(tmp_path / "source")
    save(bucket, source)
    private = source / "b" / "private"
    write(private, "private")
    private.chmod(mode)
    if IS_ROOT:
        os.chown(private, *owner)
    ids = private.stat()
    monkeypatch.setattr(os, "geteuid", lambda: 1 + ids.st_uid - owner[0])
    monkeypatch.setattr(os, "getegid", lambda: 1 + ids.st_gid - owner[1])
    monkeypatch.setattr(os, "getgroups", list)

    bring_back(bucket, source, source)

    assert private.exists() == stays


def test_sockets_are_left_out(tmp_path, bucket):
    source = make_small(tmp_path / "source")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(source / "socket"))
        assert save(bucket, source).complete
    (source / "socket").unlink()

    bring_back(bucket, source, tmp_path / "target")
    assert contents(tmp_path / "target") == contents(source)


@pytest.mark.parametrize("size", [10_000, 3_000_000])
def test_a_file_that_shrinks_is_filled_up_and_one_that_grows_is_cut(tmp_path, bucket, monkeypatch, size):
    source = tmp_path / "source"
    write(source / "grows", b"g" * size)
    write(source / "shrinks", b"s" * size)
    write(source / "z", b"z")
    real = os.preadv
    changed = set()

    def changing(descriptor, buffers, offset):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        if name not in changed:
            changed.add(name)
            os.truncate(source / name, {"grows": 2 * size, "shrinks": size // 2}.get(name, 1))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", changing)
    saved = save(bucket, source)
    monkeypatch.undo()

    assert [error.path for error in saved.errors] == ["shrinks"]
    assert "shorter" in saved.errors[0].reason
    bring_back(bucket, source, tmp_path / "target")
    assert contents(tmp_path / "target") == {
        "grows": b"g" * size,
        "shrinks": b"s" * (size // 2) + bytes(size - size // 2),
        "z": b"z",
    }


@pytest.mark.parametrize("size", [10_000, 3_000_000])
def test_a_file_that_cannot_be_read_is_reported_and_costs_no_other(tmp_path, bucket, monkeypatch, size):
    source = tmp_path / "source"
    for name in "abc":
        write(source / name, name * size)
    os.link(source / "b", source / "b2")
    real, good = os.preadv, size - 2_000_000

    def failing(descriptor, buffers, offset):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(("/b", "/b2")) and offset >= good:
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    saved = save(bucket, source)
    monkeypatch.undo()

    assert {error.path for error in saved.errors} <= {"b", "b2"}
    assert saved.errors[0].reason == "Input/output error"
    bring_back(bucket, source, tmp_path / "target")
    restored = contents(tmp_path / "target")
    assert (restored["a"], restored["c"]) == (b"a" * size, b"c" * size)


def test_a_source_that_cannot_be_read_at_all_stores_nothing(tmp_path, bucket, monkeypatch):
    write(tmp_path / "file", "x")
    source = Source.of_path(os.fsencode(tmp_path / "file"))
    real = os.open

    def refusing(path, *arguments, **given):
        if path == "file":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **given)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(SourceError, match="Permission denied"):
        save_tarball(bucket, source)
    monkeypatch.undo()
    (tmp_path / "file").unlink()
    with pytest.raises(SourceError):
        save_tarball(bucket, source)
    assert find_tarball(bucket, name_of(tmp_path / "file")) is None


def test_a_path_that_no_object_can_be_called(tmp_path, bucket):
    (tmp_path / "line\nfeed").mkdir()
    with pytest.raises(UsageError, match="name of an object"):
        save(bucket, tmp_path / "line\nfeed")
    deep = tmp_path / "/".join(["x" * 200] * 5)
    deep.mkdir(parents=True)
    with pytest.raises(UsageError, match="name of an object"):
        save(bucket, deep)
    assert find_tarball(bucket, name_of(deep)) is None


def test_what_is_told(tmp_path, bucket):
    told = save(bucket, make_small(tmp_path / "source")).told()
    assert told["files"] == 4
    assert told["complete"] is True
    assert told["key"] == str(tmp_path / "source").strip("/")
