"""Backing up again reads and stores only what changed, and every snapshot still restores exactly."""

import os
import shutil

import pytest

from trees import (
    KIB,
    MIB,
    assert_same,
    fingerprint,
    make_rich,
    make_small,
    random_bytes,
    rewrite,
    touch_silently,
    write,
)

BIG = 8 * MIB


@pytest.fixture
def big(source):
    """A source with a big file of noise in it."""
    write(source / "inner/big", random_bytes(BIG))
    return source / "inner/big"


def _restores(holdfast, source, tmp_path, expected=None):
    """The latest snapshot, restored elsewhere, is what the source is now."""
    holdfast.restore(source, "--target", tmp_path / "back")
    assert_same(expected or fingerprint(source), fingerprint(tmp_path / "back"))


@pytest.mark.parametrize("kind", ["local", "on_s3"])
def test_nothing_changed(kind, request, source):
    holdfast = request.getfixturevalue(kind)
    make_rich(source)
    before = fingerprint(source)

    first = holdfast.backup(source)
    again = holdfast.backup(source)

    assert again["bytes_read"] == again["bytes_new"] == 0
    assert again["bytes_stored"] < 8 * KIB
    assert again["tag"] != first["tag"]
    assert {key: again[key] for key in ("files", "directories", "others", "bytes")} == {
        key: first[key] for key in ("files", "directories", "others", "bytes")
    }
    shutil.rmtree(source)
    holdfast.restore(source)
    assert_same(before, fingerprint(source))


def test_a_machine_without_the_cache_reads_no_more(local, source, home, tmp_path):
    make_rich(source)
    local.backup(source)
    shutil.rmtree(home / "cache")

    assert local.backup(source)["bytes_read"] == 0
    _restores(local, source, tmp_path)


def test_each_kind_of_change(local, source, tmp_path):
    make_small(source)
    write(source / "goes", "away")
    write(source / "swap/inner", "a directory now, a file next")
    (source / "becomes-file").symlink_to("a.txt")
    write(source / "becomes-link", "file")
    local.backup(source)
    first = fingerprint(source)

    write(source / "a.txt", "alpha, longer\n")
    write(source / "new", "new\n")
    (source / "goes").unlink()
    (source / "b/c.txt").rename(source / "b/renamed.txt")
    shutil.rmtree(source / "swap")
    write(source / "swap", "a file")
    (source / "becomes-file").unlink()
    write(source / "becomes-file", "file")
    (source / "becomes-link").unlink()
    (source / "becomes-link").symlink_to("nowhere")
    (source / "z.log").unlink()
    (source / "z.log").mkdir()
    (source / "empty").rmdir()
    os.mkfifo(source / "empty")
    second = fingerprint(source)
    done = local.backup(source)

    assert done["bytes_read"] < 100
    local.restore(source, "--target", tmp_path / "second")
    assert_same(second, fingerprint(tmp_path / "second"))
    tags = [one["tag"] for one in local.run("snapshots", source, "--json").json["snapshots"]]
    other = next(tag for tag in tags if tag != done["tag"])
    local.restore(source, "--target", tmp_path / "first", "--snapshot", other)
    assert_same(first, fingerprint(tmp_path / "first"))
    # From either to the other, in place.
    local.restore(source, "--snapshot", other)
    assert_same(first, fingerprint(source))
    local.restore(source)
    assert_same(second, fingerprint(source))


def test_moving_a_big_file_stores_next_to_nothing(local, big, source, tmp_path):
    local.backup(source)

    big.rename(source / "moved")
    shutil.copy(source / "moved", source / "copied")
    done = local.backup(source)

    assert done["bytes_new"] == 0
    assert done["bytes_stored"] < 16 * KIB
    _restores(local, source, tmp_path)


def test_a_change_inside_a_big_file_stores_only_what_is_around_it(local, big, source, tmp_path):
    local.backup(source)

    rewrite(big, 5 * MIB, b"changed in place")
    done = local.backup(source)

    assert 0 < done["bytes_new"] <= 2 * MIB
    _restores(local, source, tmp_path)


def test_an_insertion_shifts_the_rest_but_stores_it_not_again(local, big, source, tmp_path):
    local.backup(source)

    content = big.read_bytes()
    write(big, content[: 2 * MIB] + b"inserted" + content[2 * MIB :])
    done = local.backup(source)

    assert 0 < done["bytes_new"] <= 3 * MIB
    _restores(local, source, tmp_path)


def test_appending_stores_the_end(local, big, source, tmp_path):
    local.backup(source)

    with big.open("ab") as file:
        file.write(random_bytes(MIB, 2))
    done = local.backup(source)

    assert MIB <= done["bytes_new"] <= 3 * MIB
    _restores(local, source, tmp_path)


def test_metadata_alone_stores_no_contents(local, big, source, tmp_path):
    local.backup(source)

    big.chmod(0o600)
    os.utime(source, ns=(0, 123_456_789))
    done = local.backup(source)

    assert done["bytes_new"] == 0
    assert done["bytes_stored"] < 16 * KIB
    _restores(local, source, tmp_path)


@pytest.mark.parametrize("offset", [0, 3 * MIB])
def test_a_change_that_hides_its_time_is_found(offset, local, big, source, tmp_path):
    write(source / "small", "hello")
    local.backup(source)

    touch_silently(big, offset, b"other bytes")
    touch_silently(source / "small", 0, b"jello")
    local.backup(source)

    _restores(local, source, tmp_path)


def test_hard_links_that_come_and_go(local, source, tmp_path):
    write(source / "b", "one file")
    (source / "c").hardlink_to(source / "b")
    (source / "d").hardlink_to(source / "b")
    local.backup(source)

    (source / "a").hardlink_to(source / "b")  # now the first name
    (source / "d").unlink()
    write(source / "d", "on its own")
    local.backup(source)
    _restores(local, source, tmp_path)

    for name in "ab":
        (source / name).unlink()
    local.backup(source)
    shutil.rmtree(tmp_path / "back")
    _restores(local, source, tmp_path)


def test_a_long_chain_of_small_changes(local, source, tmp_path):
    """Old layers are left behind as they empty, and nothing is lost on the way."""
    for number in range(12):
        write(source / f"file-{number}", random_bytes(100 * KIB, number))
    local.backup(source)

    stored = 0
    for number in range(12):
        write(source / f"file-{number}", random_bytes(100 * KIB, 100 + number))
        stored += local.backup(source)["bytes_stored"]

    assert stored < 4 * 1200 * KIB  # about twice what changed, for what was packed again
    _restores(local, source, tmp_path)
    layers = [line for line in (tmp_path / "store").rglob("data") if line.stat().st_size > 64 * KIB]
    assert len(layers) >= 12
