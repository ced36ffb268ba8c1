"""What comes back is what was there, to the last attribute."""

import os
import shutil
import subprocess

import pytest

from commandline import Holdfast
from trees import (
    IS_ROOT,
    MIB,
    assert_same,
    fingerprint,
    make_attributes,
    make_rich,
    random_bytes,
    rewrite,
    write,
    write_sparse,
)

CASES = [("s3", "zstd"), ("s3", "none"), ("file", "zstd:1"), ("file", "none")]


def _holdfast(kind, request) -> Holdfast:
    return request.getfixturevalue({"s3": "on_s3", "file": "local"}[kind])


@pytest.mark.parametrize(("kind", "compression"), CASES)
def test_a_tree_of_everything_comes_back(kind, compression, request, source):
    holdfast = _holdfast(kind, request)
    make_rich(source)
    before = fingerprint(source)

    done = holdfast.backup(source, "--compression", compression)
    assert done["complete"]
    assert done["errors"] == done["changed"] == done["warnings"] == []
    assert fingerprint(source) == before  # a backup changes nothing
    shutil.rmtree(source)
    restored = holdfast.restore(source)

    assert restored["complete"]
    assert restored["warnings"] == []
    assert_same(before, fingerprint(source))
    assert holdfast.run("diff", source).out == b""


@pytest.mark.needs("acl", "attr")
def test_access_lists_read_the_same_with_the_usual_programs(local, source, tmp_path):
    make_attributes(source)
    local.backup(source)
    local.restore(source, "--target", tmp_path / "back")

    def shown(root):
        commands = (["getfacl", "-R", "-n", "."], ["getfattr", "-R", "-d", "-h", "-m", "-", "-e", "hex", "."])
        return [subprocess.run(c, cwd=root, capture_output=True, check=True).stdout for c in commands]

    assert shown(tmp_path / "back") == shown(source)
    assert b"default:user:12345:rwx" in shown(source)[0]


@pytest.mark.skipif(not IS_ROOT, reason="only root may give files away")
def test_the_rich_tree_holds_what_it_promises(source):
    """Every other test here is only as good as this tree."""
    tree = fingerprint(make_rich(source))

    kinds = {facts["kind"] for facts in tree.values()}
    assert kinds == {"file", "directory", "symlink", "fifo", "character device", "block device"}
    assert max(map(len, tree)) > 4096
    assert max(len(name) for path in tree for name in path.split(b"/")) == 255
    assert min(facts["mtime_ns"] for facts in tree.values()) < -(10**18)
    assert max(facts["owner"][0] for facts in tree.values()) > 2**31
    assert {"security.capability", "user.bytes", "system.posix_acl_access", "system.posix_acl_default"} <= {
        name for facts in tree.values() for name in facts["xattrs"]
    }
    assert tree[b"sparse/all-hole"]["data"] == []
    assert len(tree[b"sparse/middle"]["data"]) == 2
    assert tree[b"sparse/zeros"]["data"] == [(0, 2 * MIB)]


@pytest.mark.parametrize(("kind", "compression"), [("s3", "zstd"), ("file", "none")])
def test_a_file_larger_than_a_layer(kind, compression, request, source):
    holdfast = _holdfast(kind, request)
    write(source / "before", "small")
    write(source / "big", random_bytes(150 * MIB))
    write(source / "inner/after", "small too")
    before = fingerprint(source)

    first = holdfast.backup(source, "--compression", compression)
    again = holdfast.backup(source, "--compression", compression)
    shutil.rmtree(source)
    holdfast.restore(source)

    assert first["bytes_stored"] > 150 * MIB
    assert again["bytes_read"] == 0
    assert_same(before, fingerprint(source))


def test_a_sparse_file_far_larger_than_its_data(local, source):
    write_sparse(source / "disk.img", 1 << 40, (0, b"first"), (1 << 39, random_bytes(MIB)), ((1 << 40) - 5, b"last!"))
    before = (source / "disk.img").stat()

    done = local.backup(source)
    shutil.rmtree(source)
    local.restore(source)

    after = (source / "disk.img").stat()
    assert done["bytes_read"] < 2 * MIB
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert after.st_blocks * 512 < 4 * MIB
    with (source / "disk.img").open("rb") as file:
        assert file.read(5) == b"first"
        file.seek(1 << 39)
        assert file.read(MIB) == random_bytes(MIB)
        file.seek((1 << 40) - 5)
        assert file.read() == b"last!"


@pytest.mark.parametrize("kind", ["s3", "file"])
def test_a_source_that_is_a_single_file(kind, request, source):
    holdfast = _holdfast(kind, request)
    write(source / "database.db", random_bytes(3 * MIB), mtime_ns=1_500_000_000_000_000_001)
    write(source / "neighbour", "stays as it is")
    (source / "database.db").chmod(0o640)
    before = fingerprint(source, lacking=("mtime_ns",))
    time_ns = (source / "database.db").stat().st_mtime_ns

    done = holdfast.backup(source / "database.db")
    assert done["name"] == str(source / "database.db")
    assert done["files"] == 1
    (source / "database.db").unlink()
    holdfast.restore(source / "database.db")
    assert_same(before, fingerprint(source, lacking=("mtime_ns",)))

    rewrite(source / "database.db", 1000, b"overwritten")
    holdfast.restore(source / "database.db")
    assert_same(before, fingerprint(source, lacking=("mtime_ns",)))
    assert (source / "database.db").stat().st_mtime_ns == time_ns
    holdfast.restore(source / "database.db", "--target", source / "elsewhere")
    assert (source / "elsewhere/database.db").read_bytes() == random_bytes(3 * MIB)
    assert holdfast.run("dump", source / "database.db", "/").out == random_bytes(3 * MIB)


def test_a_source_reached_through_a_symlink_keeps_the_name_it_was_called(local, source, tmp_path):
    write(source / "real/file", "content")
    (source / "link").symlink_to("real")

    done = local.backup(source / "link")
    local.restore(source / "link", "--target", tmp_path / "back")

    assert done["name"] == str(source / "link")
    assert (tmp_path / "back/file").read_text() == "content"


@pytest.mark.parametrize("name", [b"plain \xff bytes", b"UPPER and space", b".hidden", b"n" * 250, b"x--escaped"])
def test_a_source_may_be_called_anything(name, local, tmp_path):
    place = tmp_path / os.fsdecode(name)
    write(place / "file", "content")

    done = local.backup(place)
    (place / "file").unlink()
    restored = local.restore(place)

    shown = os.fsencode(place).decode("utf-8", "backslashreplace")
    assert done["name"] == restored["name"] == shown
    assert (place / "file").read_text() == "content"
    assert [s["name"] for s in local.run("snapshots", "--json").json["snapshots"]] == [shown]
    assert shown in local.run("snapshots").text


def test_two_leading_slashes_are_one(local, source):
    write(source / "file", "content")

    assert local.backup(f"/{source}")["name"] == str(source)


@pytest.mark.parametrize("name", ["pgdata", "team/db", "with@sign"])
def test_a_source_with_a_given_name(name, local, source, tmp_path):
    write(source / "file", "content")

    assert local.backup(source, "--name", name)["name"] == name
    assert "--target" in local.run("restore", name, code=2).err  # a name is no place on this machine
    local.restore(name, "--target", tmp_path / "back")

    assert (tmp_path / "back/file").read_text() == "content"
