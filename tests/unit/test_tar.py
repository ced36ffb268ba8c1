import io
import os
import subprocess
import tarfile

import pytest

from holdfast.archive import tar

LONG = b"d/" * 60 + b"n" * 99
UNSPLITTABLE = b"x" * 200
DEEP = b"/".join([b"y" * 200] * 25)
CASES = {
    "plain": {"name": b"a/b.txt", "kind": "f", "size": 11},
    "empty": {"name": b"empty", "kind": "f"},
    "hundred": {"name": b"n" * 100, "kind": "f", "size": 3},
    "prefix": {"name": LONG, "kind": "f", "size": 512},
    "pax path": {"name": UNSPLITTABLE, "kind": "f", "size": 513},
    "deep": {"name": DEEP, "kind": "f", "size": 1},
    "not utf-8": {"name": b"caf\xe9\n\x01", "kind": "f", "size": 2},
    "not utf-8, long": {"name": b"caf\xe9" * 60, "kind": "f", "size": 2},
    "directory": {"name": b"d/", "kind": "d", "mode": 0o1777},
    "symlink": {"name": b"l", "kind": "l", "target": b"../elsewhere"},
    "long symlink": {"name": b"l", "kind": "l", "target": b"t/" * 150},
    "hard link": {"name": b"h", "kind": "h", "target": b"a/b.txt"},
    "fifo": {"name": b"p", "kind": "p"},
    "character device": {"name": b"null", "kind": "c", "device": (1, 3)},
    "block device": {"name": b"sda", "kind": "b", "device": (8, 259)},
    "setuid": {"name": b"su", "kind": "f", "mode": 0o6755},
    "large ids": {"name": b"i", "kind": "f", "uid": 4_000_000_000, "gid": 2_097_152},
    "before 1970": {"name": b"t", "kind": "f", "mtime_ns": -1_500_000_000},
    "far future": {"name": b"t", "kind": "f", "mtime_ns": 1 << 62},
}


def _member(case):
    given = {"mode": 0o644, "uid": 1000, "gid": 100, "size": 0, "mtime_ns": 1_700_000_000_123_456_789} | CASES[case]
    content = os.urandom(given["size"])
    return given, content, tar.header(**given) + content + tar.padding(given["size"])


@pytest.mark.parametrize("case", CASES)
def test_the_standard_library_reads_it(case):
    given, content, member = _member(case)

    assert len(member) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(member + tar.END), errors="surrogateescape", encoding="utf-8") as archive:
        (info,) = archive.getmembers()
        assert os.fsencode(info.name) == given["name"].rstrip(b"/")
        assert (info.mode, info.uid, info.gid, info.size) == (given["mode"], given["uid"], given["gid"], len(content))
        assert int(info.mtime) == given["mtime_ns"] // 1_000_000_000
        assert {
            "f": info.isreg,
            "d": info.isdir,
            "l": info.issym,
            "h": info.islnk,
            "p": info.isfifo,
            "c": info.ischr,
            "b": info.isblk,
        }[given["kind"]]()
        if "target" in given:
            assert os.fsencode(info.linkname) == given["target"]
        if "device" in given:
            assert (info.devmajor, info.devminor) == given["device"]
        if info.isreg():
            assert archive.extractfile(info).read() == content


def test_extended_attributes_are_in_the_pax_header():
    head = tar.header(b"a", "f", 0o644, 0, 0, 0, 0, xattrs=[(b"user.note", b"a=b\nc"), (b"user.empty", b"")])

    with tarfile.open(fileobj=io.BytesIO(head + tar.END)) as archive:
        (info,) = archive.getmembers()
        assert info.pax_headers["SCHILY.xattr.user.note"] == "a=b\nc"
        assert info.pax_headers["SCHILY.xattr.user.empty"] == ""


@pytest.mark.parametrize("size", [1, 89, 90, 91, 988, 989, 990, 9_985, 9_986, 9_990])
def test_a_pax_record_counts_its_own_digits(size):
    head = tar.header(b"x" * size, "f", 0o644, 0, 0, 0, 0)

    with tarfile.open(fileobj=io.BytesIO(head + tar.END)) as archive:
        assert archive.getnames() == ["x" * size]


@pytest.mark.needs("tar")
def test_gnu_tar_extracts_it(tmp_path):
    # It cannot make a path that is longer than PATH_MAX, and reads no time past 2^33 seconds here.
    cases = [c for c in CASES if CASES[c]["kind"] in "fdlp" and c not in ("deep", "far future", "long symlink")]
    members = {}
    with (tmp_path / "a.tar").open("wb") as archive:
        for number, case in enumerate(cases):
            given, content, _ = _member(case)
            given |= {"name": b"%03d/" % number + given["name"], "uid": os.getuid(), "gid": os.getgid()}
            archive.write(tar.header(**given) + content + tar.padding(len(content)))
            members[given["name"]] = given, content
        archive.write(tar.END)
    out = tmp_path / "out"
    out.mkdir()

    done = subprocess.run(["tar", "-xpf", tmp_path / "a.tar", "-C", out], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    for name, (given, content) in members.items():
        path = os.path.join(os.fsencode(out), name.rstrip(b"/"))
        status = os.lstat(path)
        assert status.st_mtime_ns // 1_000_000_000 == given["mtime_ns"] // 1_000_000_000
        if given["kind"] == "f":
            assert status.st_mode & 0o7777 == given["mode"]
            with open(path, "rb") as file:
                assert file.read() == content
        if given["kind"] == "l":
            assert os.readlink(path) == given["target"]


def test_parts_sort_by_offset():
    assert tar.part_name(b"a/b", 7) == b".holdfast/parts/a/b/00000000000000000007"
    assert tar.part_name(b"f", 9) < tar.part_name(b"f", 10)
