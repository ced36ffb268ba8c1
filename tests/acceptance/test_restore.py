"""Ways to restore: what is written, what is deleted, and what must stay as it is."""

import fcntl
import os
import shutil

import pytest

from commandline import Holdfast
from trees import (
    IS_ROOT,
    MIB,
    assert_same,
    differences,
    fingerprint,
    make_rich,
    make_small,
    random_bytes,
    rewrite,
    touch_silently,
    write,
)


@pytest.fixture
def saved(local, source):
    """A small tree that is backed up, and its fingerprint."""
    make_small(source)
    local.backup(source)
    return fingerprint(source)


def _damage(source):
    """Change, remove and add in every corner."""
    write(source / "a.txt", "something else")
    (source / "b/c.txt").unlink()
    write(source / "extra", "extra")
    write(source / "b/deep/extra/nested/file", "extra")
    (source / "empty/pipe").parent.mkdir(exist_ok=True)
    os.mkfifo(source / "empty/pipe")
    (source / "link").unlink()
    (source / "link").symlink_to("elsewhere")
    source.chmod(0o711)


def test_replace_makes_the_target_equal(local, source, saved):
    _damage(source)

    done = local.restore(source)

    assert_same(saved, fingerprint(source))
    assert sorted(done["deleted"]) == ["b/deep/extra", "empty/pipe", "extra"]
    assert done["kept"] == 2


def test_merge_leaves_what_the_snapshot_does_not_have(local, source, saved):
    _damage(source)

    done = local.restore(source, "--mode", "merge")

    assert done["deleted"] == []
    assert (source / "extra").read_text() == "extra"
    assert (source / "b/deep/extra/nested/file").read_text() == "extra"
    for path in (source / "extra", source / "b/deep/extra", source / "empty/pipe"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    local.restore(source)  # directories' times
    assert_same(saved, fingerprint(source))


@pytest.mark.parametrize("mode", ["replace", "merge"])
def test_what_is_right_already_is_not_touched(mode, local, source, saved):
    before = {path: (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in source.rglob("*") if not path.is_dir()}

    done = local.restore(source, "--mode", mode)

    assert (done["written"], done["bytes_written"]) == (0, 0)
    assert before == {path: (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in before}
    assert_same(saved, fingerprint(source))


@pytest.mark.parametrize("mode", ["replace", "merge"])
def test_a_rich_tree_over_itself(mode, local, source):
    make_rich(source)
    local.backup(source)
    before = fingerprint(source)

    local.restore(source, "--mode", mode)
    assert_same(before, fingerprint(source))
    local.restore(source, "--mode", mode, "--verify")
    assert_same(before, fingerprint(source))


def test_only_metadata_differs(local, source, saved):
    inode = (source / "a.txt").stat().st_ino
    mtime = (source / "a.txt").stat().st_mtime_ns
    (source / "a.txt").chmod(0o777)
    (source / "b").chmod(0o700)
    os.utime(source / "a.txt", ns=(0, mtime))

    done = local.restore(source)

    assert done["written"] == 0
    assert (source / "a.txt").stat().st_ino == inode
    assert_same(saved, fingerprint(source))


def test_verify_finds_what_size_and_time_hide(local, source):
    write(source / "big", random_bytes(3 * MIB))
    write(source / "small", "hello")
    write(source / "right", "right")
    local.backup(source)
    before = fingerprint(source)
    touch_silently(source / "big", 2 * MIB, b"hidden")
    touch_silently(source / "small", 0, b"jello")

    assert local.restore(source)["written"] == 0
    assert differences(before, fingerprint(source)) != []
    done = local.restore(source, "--verify")

    assert (done["written"], done["kept"]) == (2, 1)
    assert_same(before, fingerprint(source))


def test_verify_takes_a_hole_for_what_it_reads_as(local, source):
    write(source / "zeros", bytes(2 * MIB))
    local.backup(source)
    before = fingerprint(source, lacking=("data",))
    status = (source / "zeros").stat()
    os.truncate(source / "zeros", 0)
    os.truncate(source / "zeros", 2 * MIB)
    os.utime(source / "zeros", ns=(0, status.st_mtime_ns))

    local.restore(source, "--verify")

    assert_same(before, fingerprint(source, lacking=("data",)))


@pytest.mark.parametrize("mode", ["replace", "merge"])
def test_a_dry_run_says_what_would_be_done_and_does_nothing(mode, local, source, saved):
    _damage(source)
    shutil.rmtree(source / "b/deep/er")
    write(source / "b/deep/er", "in the way of a directory")
    damaged = fingerprint(source)

    text = local.run("restore", source, "--mode", mode, "--dry-run").text
    said = local.restore(source, "--mode", mode, "--dry-run")
    assert_same(damaged, fingerprint(source))
    done = local.restore(source, "--mode", mode)

    assert said["dry_run"]
    for key in ("written", "kept", "directories", "deleted", "bytes_written"):
        assert said[key] == done[key]
    assert "would be" in text
    if mode == "replace":
        assert "would delete extra" in text.splitlines()
        assert_same(saved, fingerprint(source))


def test_a_dry_run_into_nowhere_makes_nothing(local, source, saved, tmp_path):
    said = local.restore(source, "--target", tmp_path / "new/er", "--dry-run")

    assert said["written"] == sum(facts["kind"] == "file" for facts in saved.values())
    assert not (tmp_path / "new").exists()


def test_parts_of_a_snapshot(local, source, saved, tmp_path):
    target = tmp_path / "back"

    local.restore(source, "b/deep", "a.txt", source / "link", "--target", target)

    back = fingerprint(target)
    expected = {b"a.txt", b"b", b"b/deep", b"b/deep/er", b"b/deep/er/d.bin", b"link"}
    assert back.keys() - {b"."} == expected
    assert_same({path: saved[path] for path in expected}, {path: back[path] for path in expected})


def test_parts_in_place_leave_all_else_alone(local, source, saved):
    _damage(source)
    before = fingerprint(source)

    local.restore(source, "b/c.txt", "b/deep")

    after = fingerprint(source)
    changed = {line.partition(" ")[0] for line in differences(before, after)}
    assert changed <= {
        "b'b/c.txt'",
        "b'b/deep'",
        "b'b'",
        *(f"b'b/deep/extra{s}'" for s in ("", "/nested", "/nested/file")),
    }
    assert {path: after[path] for path in after if path.startswith(b"b/deep")} == {
        path: saved[path] for path in saved if path.startswith(b"b/deep")
    }
    assert after[b"a.txt"] == before[b"a.txt"]


def test_a_wanted_hard_link_whose_first_name_is_not_wanted(local, source, tmp_path):
    write(source / "a/first", random_bytes(2 * MIB))
    (source / "b").mkdir()
    for name in ("one", "two"):
        (source / "b" / name).hardlink_to(source / "a/first")
    (source / "l").symlink_to("x")
    os.link(source / "l", source / "b/link", follow_symlinks=False)
    local.backup(source)

    local.restore(source, "b", "--target", tmp_path / "back")

    back = fingerprint(tmp_path / "back")
    assert back.keys() == {b".", b"b", b"b/link", b"b/one", b"b/two"}
    assert back[b"b/one"]["names"] == [b"b/one", b"b/two"]
    assert (tmp_path / "back/b/two").read_bytes() == random_bytes(2 * MIB)
    assert back[b"b/link"]["target"] == b"x"


@pytest.fixture
def dated(local, source, tmp_path):
    """Three snapshots, as if made on days long past: their tags, by what `version` held."""
    tags = {}
    folder = next(iter((tmp_path / "store").glob("docker")), tmp_path / "store/docker")
    for version, moment in (("old", "20240310T120000Z"), ("mid", "20240311T003000Z"), ("new", "20240720T080000Z")):
        write(source / "version", version)
        made = local.backup(source)["tag"]
        tags[version] = f"{moment}-{made[-6:]}"
        (place,) = folder.rglob(made)
        place.rename(place.with_name(tags[version]))
    return tags


def _version(local, source, *options, **more):
    local.restore(source, *options, **more)
    return (source / "version").read_text()


def test_any_snapshot_by_its_tag(dated, local, source):
    assert _version(local, source, "--snapshot", dated["old"]) == "old"
    assert _version(local, source, "--snapshot", dated["mid"][:9]) == "mid"  # a unique beginning
    assert _version(local, source, "--snapshot", "latest") == "new"
    local.restore(f"{source}@{dated['old']}")
    assert (source / "version").read_text() == "old"
    assert _version(local, source, "--snapshot", "latest") == "new"
    assert _version(local, source) == "new"
    ambiguous = local.run("restore", source, "--snapshot", "202403", code=4)
    assert dated["old"] in ambiguous.err
    assert dated["mid"] in ambiguous.err
    unknown = local.run("restore", source, "--snapshot", "2019", code=4)
    assert dated["new"] in unknown.err
    assert (source / "version").read_text() == "new"


MOMENTS = [
    ("2024-03-10T12:00:00Z", "UTC", "old"),
    ("2024-03-11T00:29:59Z", "UTC", "old"),
    ("2024-03-11T00:30:00+00:00", "UTC", "mid"),
    ("2024-03-11T01:30:00+01:00", "UTC", "mid"),
    ("2024-03-11T01:29:00+01:00", "UTC", "old"),
    ("2024-03-10", "UTC", "old"),  # a date means its end
    ("2024-03-11", "UTC", "mid"),
    ("2024-03-10", "America/New_York", "mid"),  # which comes later there
    ("2024-03-11T01:30:00", "Europe/Berlin", "mid"),  # a time without a zone is local
    ("2024-03-11T01:30:00", "Asia/Tokyo", "old"),
    ("2124-01-01", "UTC", "new"),
]


@pytest.mark.usefixtures("dated")
def test_the_newest_snapshot_not_after_a_time(local, source):
    found = [(moment, zone, _version(local, source, "--at", moment, env={"TZ": zone})) for moment, zone, _ in MOMENTS]

    assert found == MOMENTS


def test_no_snapshot_is_that_old(dated, local, source):
    assert dated["new"] in local.run("restore", source, "--at", "2024-03-10T11:59:59Z", code=4).err
    assert "2026-11-20" in local.run("restore", source, "--at", "yesterday", code=2).err
    assert local.run("restore", source, "--at", "2024-03-10", "--snapshot", dated["old"], code=2).out == b""


@pytest.mark.parametrize("mode", ["replace", "merge"])
def test_other_kinds_stand_in_the_way(mode, local, source, saved, tmp_path):
    target = tmp_path / "target"
    write(target / "a.txt/was/a/directory", "x")
    write(target / "b", "was a file")
    os.mkfifo(target / "z.log")
    (target / "link").mkdir()

    if mode == "merge":
        done = local.restore(source, "--target", target, "--mode", mode, code=3)
        assert [one["path"] for one in done["errors"]] == ["a.txt"]  # a full directory is not merged away
        assert (target / "a.txt/was/a/directory").read_text() == "x"
        shutil.rmtree(target / "a.txt")
    local.restore(source, "--target", target, "--mode", mode)

    assert_same(saved, fingerprint(target))


@pytest.mark.parametrize("mode", ["replace", "merge"])
def test_a_symlink_in_the_target_is_never_followed(mode, local, source, saved, tmp_path):
    target, outside = tmp_path / "target", tmp_path / "outside"
    write(outside / "c.txt", "mine")
    write(outside / "keep/me", "mine")
    before = fingerprint(outside)
    target.mkdir()
    (target / "b").symlink_to(outside)
    (target / "a.txt").symlink_to(outside / "c.txt")
    (target / "empty").symlink_to(outside / "keep")
    (target / "z.log").symlink_to("/nowhere/at/all")
    if mode == "replace":
        (target / "surplus").symlink_to(outside)

    local.restore(source, "--target", target, "--mode", mode)

    assert_same(before, fingerprint(outside))
    assert_same(saved, fingerprint(target))


@pytest.mark.usefixtures("saved")
def test_a_part_is_not_restored_through_a_symlink(local, source, tmp_path):
    target, outside = tmp_path / "target", tmp_path / "outside"
    write(outside / "c.txt", "mine")
    before = fingerprint(outside)
    target.mkdir()
    (target / "b").symlink_to(outside)

    done = local.restore(source, "b/c.txt", "--target", target, code=3)

    assert done["errors"] == [{"path": "b/c.txt", "reason": "Not a directory"}]
    assert_same(before, fingerprint(outside))


def test_hard_links_in_the_target_are_taken_apart(local, source, tmp_path):
    """A name that shares its file with something outside must not write through to it."""
    write(source / "file", "saved")
    write(source / "same", "same")
    local.backup(source)
    before = fingerprint(source)
    (source / "file").unlink()
    write(tmp_path / "outside", "mine")
    (source / "file").hardlink_to(tmp_path / "outside")
    (tmp_path / "outside-2").hardlink_to(source / "same")

    local.restore(source)

    assert (tmp_path / "outside").read_text() == "mine"
    rewrite(tmp_path / "outside-2", 0, b"mine")
    assert_same(before, fingerprint(source))


@pytest.mark.usefixtures("saved")
def test_the_target_may_not_be_a_file(local, source, tmp_path):
    write(tmp_path / "file", "mine")

    assert "a file or a symlink stands" in local.run("restore", source, "--target", tmp_path / "file", code=1).err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_store_inside_the_source(source):
    """It is not backed up into itself, and a restore does not take it for something to delete."""
    holdfast = Holdfast(f"file://{source}/backups/store", {"XDG_CACHE_HOME": str(source / "cache")})
    write(source / "file", "content")

    first = holdfast.backup(source)
    second = holdfast.backup(source)
    write(source / "extra", "extra")
    done = holdfast.restore(source)

    assert first["files"] == second["files"] == 1
    assert second["bytes_read"] == 0
    assert [line for line in holdfast.run("ls", "-R", source).lines if "store" in line or "holdfast" in line] == []
    assert done["deleted"] == ["extra"]
    assert holdfast.restore(source, "--verify")["kept"] == 1
    assert (source / "cache/holdfast").is_dir()


def test_a_name_like_our_temporary_ones_survives_a_merge(local, source):
    name = ".holdfast-" + "0123456789abcdef" * 2
    write(source / name, "the user's own")
    local.backup(source)

    local.restore(source, "--mode", "merge")
    assert (source / name).read_text() == "the user's own"
    (source / name).unlink()
    local.restore(source, "--mode", "merge")
    assert (source / name).read_text() == "the user's own"


@pytest.mark.skipif(not (IS_ROOT and shutil.which("setpriv")), reason="needs root, to do without its privileges")
def test_without_privilege_all_but_owners_comes_back(local, source, tmp_path):
    make_small(source)
    for path in (source, *source.rglob("*")):
        os.chown(path, 12345, 54321, follow_symlinks=False)
    local.backup(source)
    weak = Holdfast(local.store, wrapper=("setpriv", "--bounding-set=-chown"))

    ran = weak.run("restore", source, "--target", tmp_path / "back")

    assert ran.err.count("warning: ") == 1
    assert "owners cannot be restored" in ran.err
    assert_same(fingerprint(source, lacking=("owner",)), fingerprint(tmp_path / "back", lacking=("owner",)))
    assert (tmp_path / "back/a.txt").stat().st_uid == os.geteuid()


@pytest.mark.usefixtures("saved")
def test_a_restore_while_another_writes_the_target(local, source):
    folder = os.open(source, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        assert "under way" in local.run("restore", source, code=1).err
    finally:
        os.close(folder)


def test_two_snapshots_of_one_second_are_two(local, source):
    write(source / "file", "1")
    first = local.backup(source)
    write(source / "file", "2")
    second = local.backup(source)

    assert len(local.run("snapshots", source).lines) == 2
    assert _version_of(local, source, first["tag"]) == "1"
    assert _version_of(local, source, second["tag"]) == "2"


def _version_of(local, source, tag):
    local.restore(source, "--snapshot", tag)
    return (source / "file").read_text()


@pytest.mark.skipif(not (IS_ROOT and shutil.which("setpriv")), reason="needs root, to do without its privileges")
def test_without_the_privilege_for_set_group_id_a_warning_says_so(local, source, tmp_path):
    write(source / "file", "kelp")
    os.chown(source / "file", -1, 12345)
    os.chmod(source / "file", 0o2755)
    local.backup(source)
    weak = Holdfast(local.store, wrapper=("setpriv", "--bounding-set=-fsetid", "--inh-caps=-fsetid"))
    ran = weak.run("restore", source, "--target", tmp_path / "target")

    assert "set-group-ID" in ran.err
    assert local.run("restore", source, "--target", tmp_path / "target").err.count("set-group-ID") == 0
    assert (tmp_path / "target/file").stat().st_mode & 0o7777 == 0o2755
