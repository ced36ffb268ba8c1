"""Archives that anybody may have made."""

import gzip as reference
import io
import os
import subprocess
import tarfile
import time
import zlib

import pytest

from holdfast.archive import gzip
from holdfast.archive.tar import END, header
from holdfast.archive.untar import Untar, is_header
from holdfast.errors import DamageError

MIB = 1024 * 1024
BLOCK = 512


def read(data, size=10_000):
    """All members of an archive that comes in pieces: (entry, contents)."""
    archive = Untar(iter([data[at : at + size] for at in range(0, len(data), size)]))
    return [(entry, b"".join(archive.contents(entry))) for entry in archive.members()]


def member(name, kind="f", content=b"", target=b"", **fields):
    fields = {"mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0} | fields
    head = header(name, kind, size=len(content), target=target, **fields)
    return head + content + bytes(-len(content) % BLOCK)


def raw(name=b"x", typeflag=b"0", size=0, body=b"", **fields):
    """A member as no honest program writes it: the fields are put in as they are."""
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[156:157] = typeflag
    block[257:265] = b"ustar\00000"
    for place, value in fields.items():
        start = int(place[1:])
        block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + body + bytes(-len(body) % BLOCK)


def pax(records, flag=b"x"):
    body = b""
    for key, value in records:
        rest = len(key) + len(value) + 3
        length = rest + len(str(rest))
        length = rest + len(str(length))
        body += b"%d %b=%b\n" % (length, key, value)
    return raw(b"pax", flag, len(body), body)


def tarfile_made(tar_format, members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def info(name, **fields):
    made = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_other_programs_write(tar_format):
    long = "d" * 90 + "/" + "f" * 90
    members = [
        (info("./", type=tarfile.DIRTYPE, mode=0o1777), b""),
        (info("./a", mode=0o4755, uid=1000, gid=1001, mtime=1_600_000_000), b"alpha"),
        (info(long), b"x" * 2_000),
        (info("link", type=tarfile.SYMTYPE, linkname="/anywhere/../else"), b""),
        (info("hard", type=tarfile.LNKTYPE, linkname="./a"), b""),
        (info("fifo", type=tarfile.FIFOTYPE), b""),
        (info("dev", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        (info("ünicode"), b"u"),
    ]

    found = read(tarfile_made(tar_format, members))

    assert [(e.path, e.kind) for e, _ in found] == [
        (b"", "d"),
        (b"a", "f"),
        (long.encode(), "f"),
        (b"link", "l"),
        (b"hard", "h"),
        (b"fifo", "p"),
        (b"dev", "c"),
        ("ünicode".encode(), "f"),
    ]
    by_path = {entry.path: (entry, content) for entry, content in found}
    a, content = by_path[b"a"]
    assert (a.mode, a.uid, a.gid, a.mtime_ns, content) == (0o4755, 1000, 1001, 1_600_000_000_000_000_000, b"alpha")
    assert by_path[b""][0].mode == 0o1777
    assert by_path[long.encode()][1] == b"x" * 2_000
    assert by_path[b"link"][0].target == b"/anywhere/../else"
    assert by_path[b"hard"][0].target == b"a"
    assert by_path[b"dev"][0].target == [1, 3]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_very_long_names_and_numbers(tar_format):
    name, target = "n/" * 500 + "end", "t" * 3_000
    members = [
        (info(name, uid=3_000_000, gid=4_000_000_000, mtime=-5), b"x"),
        (info("link", type=tarfile.SYMTYPE, linkname=target), b""),
    ]

    (one, _), (link, _) = read(tarfile_made(tar_format, members))

    assert (one.path, one.uid, one.gid, one.mtime_ns) == (name.encode(), 3_000_000, 4_000_000_000, -5_000_000_000)
    assert link.target == target.encode()


def test_attributes_and_fractions_of_seconds():
    data = (
        pax([(b"SCHILY.xattr.user.b", b"\0=\n"), (b"SCHILY.xattr.user.a", b"1"), (b"mtime", b"12.25")])
        + member(b"x")
        + END
    )

    ((entry, _),) = read(data)

    assert entry.xattrs == [(b"user.a", b"1"), (b"user.b", b"\0=\n")]
    assert entry.mtime_ns == 12_250_000_000


def test_common_headers_hold_until_they_are_replaced():
    data = pax([(b"uid", b"7")], b"g") + member(b"a") + pax([(b"uid", b"8")]) + member(b"b") + member(b"c") + END

    assert [entry.uid for entry, _ in read(data)] == [7, 8, 7]


def test_names_before_there_was_ustar():
    data = raw(b"folder/", b"\0", s257=bytes(8)) + raw(b"folder/file", b"\0", 3, b"abc", s257=bytes(8)) + END

    assert [(e.path, e.kind, c) for e, c in read(data)] == [(b"folder", "d", b""), (b"folder/file", "f", b"abc")]


def test_names_are_written_in_many_ways():
    data = b"".join(member(name) for name in (b"./a", b"././b", b"c//d", b"c/./e", b".//f")) + END

    assert [entry.path for entry, _ in read(data)] == [b"a", b"b", b"c/d", b"c/e", b"f"]


HOSTILE = {
    "absolute": member(b"/etc/passwd"),
    "climbs": member(b"../up"),
    "climbs later": member(b"a/../../up"),
    "climbs at the end": member(b"a/.."),
    "climbs after dots": member(b"./../up"),
    "no name": raw(b""),
    "absolute in pax": pax([(b"path", b"/etc/passwd")]) + raw(),
    "NUL in pax": pax([(b"path", b"a\0b")]) + raw(),
    "climbs in GNU": raw(b"././@LongLink", b"L", 9, b"../../up\0") + raw(),
    "root is a file": member(b"."),
    "below a file": member(b"a") + member(b"a/b"),
    "below a symlink": member(b"a", "l", target=b"/etc") + member(b"a/passwd"),
    "deep below a symlink": member(b"a", "l", target=b"/etc") + member(b"a/b/c"),
    "below a fifo": member(b"a", "p") + member(b"a/b"),
    "a link out": member(b"a", "h", target=b"/etc/passwd"),
    "a link up": member(b"a", "h", target=b"../x"),
    "a link to nothing here": member(b"a", "h", target=b"etc/passwd"),
    "a link to itself": member(b"a", "h", target=b"a"),
    "a link to a directory": member(b"d", "d") + member(b"a", "h", target=b"d"),
    "a link to the root": member(b"a", "h", target=b"."),
    "a symlink to nothing": raw(b"a", b"2"),
    "NUL in a symlink": pax([(b"linkpath", b"a\0b")]) + raw(b"a", b"2"),
    "a directory that becomes a file": member(b"d", "d") + member(b"d"),
    "a file that becomes a directory": member(b"d") + member(b"d", "d"),
    "sparse": raw(b"a", b"S"),
    "sparse in pax": pax([(b"GNU.sparse.major", b"1")]) + raw(),
    "unknown type": raw(b"a", b"Q"),
    "a dump of a directory": raw(b"a", b"D"),
    "negative size": raw(b"a", size=b"\xff" * 12),
    "endless size": raw(b"a", size=b"\x80" + b"\xff" * 11),
    "no size": raw(b"a", size=b"zzzzzzzzzzz\0"),
    "signed size": raw(b"a", size=b"-0000000007\0"),
    "size in pax": pax([(b"size", b"-1")]) + raw(),
    "owner too large": pax([(b"uid", b"4294967295")]) + raw(),
    "owner is no number": pax([(b"uid", b"1e3")]) + raw(),
    "time is no number": pax([(b"mtime", b"nan")]) + raw(),
    "time without end": pax([(b"mtime", b"1e999999999")]) + raw(),
    "time too late": raw(b"a", s136=b"\x80" + b"\xff" * 11),
    "attribute without a name": pax([(b"SCHILY.xattr.", b"x")]) + raw(),
    "NUL in an attribute": pax([(b"SCHILY.xattr.a\0b", b"x")]) + raw(),
    "pax header too large": raw(b"pax", b"x", 2 * MIB),
    "common header too large": raw(b"pax", b"g", 1 << 33),
    "GNU name too large": raw(b"long", b"L", 2 * MIB),
    "negative header": raw(b"pax", b"x", size=b"\xff" * 12),
    "pax without an end": raw(b"pax", b"x", 6, b"9 a=b\n") + raw(),
    "pax without a length": raw(b"pax", b"x", 4, b"a=b\n") + raw(),
    "pax of length zero": raw(b"pax", b"x", 6, b"0 a=b\n") + raw(),
    "pax that goes back": raw(b"pax", b"x", 12, b"6 a=b\n1 a=b\n") + raw(),
    "wrong checksum": member(b"a")[:5] + b"x" + member(b"a")[6:],
    "no tar": b"\x7fELF" + bytes(range(256)) * 4,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_must_not_be_restored_is_refused(data):
    with pytest.raises(DamageError):
        read(data + END)


def test_a_refusal_names_the_member():
    with pytest.raises(DamageError, match=r"'\.\./up'.*leads out"):
        read(member(b"good") + member(b"../up") + END)


def test_headers_in_a_row_are_bounded():
    with pytest.raises(DamageError, match="1 MiB"):
        read(b"".join(pax([(b"key%d" % number, b"x" * 900_000)]) for number in range(3)) + member(b"a") + END)
    with pytest.raises(DamageError, match="1 MiB"):
        read(b"".join(pax([(b"key%d" % number, b"x" * 900_000)], b"g") for number in range(3)) + member(b"a") + END)


def test_a_long_name_does_not_stand_for_any_number_of_directories():
    with pytest.raises(DamageError, match="too many directories"):
        read(pax([(b"path", b"a/" * 30_000 + b"a")]) + raw() + END)


def test_no_attributes_for_all_members_at_once():
    common = pax([(b"SCHILY.xattr.user.x", b"1"), (b"mtime", b"7")], b"g")
    assert [(entry.xattrs, entry.mtime_ns) for entry, _ in read(common + raw() + END)] == [(None, 7_000_000_000)]


def test_an_archive_that_ends_too_early():
    whole = member(b"a", content=b"x" * 1000) + member(b"b", content=b"y" * 10)
    for length in range(0, len(whole) + 1, 64):
        with pytest.raises(DamageError, match="ends too early"):
            read(whole[:length])
    assert len(read(whole + END[:BLOCK])) == 2


def test_an_archive_with_nothing_in_it():
    with pytest.raises(DamageError, match="empty"):
        read(END)


def test_what_comes_after_the_end_is_passed_over():
    pulled = []

    def pieces():
        for piece in (member(b"a") + END, bytes(8_000), member(b"b") + END):
            pulled.append(len(piece))
            yield piece

    archive = Untar(pieces())

    assert [entry.path for entry in archive.members()] == [b"a"]
    assert len(pulled) == 3


def test_contents_that_nobody_takes_are_passed_over():
    archive = Untar(iter([member(b"a", content=b"x" * 3_000) + member(b"b", content=b"y") + END]))
    found = []
    for entry in archive.members():
        found.append(entry.path)
        if entry.path == b"a":
            next(archive.contents(entry))
    assert found == [b"a", b"b"]


def test_a_header_is_told_from_other_bytes():
    assert is_header(member(b"a"))
    for data in (b"", bytes(BLOCK), bytes(10_240), os.urandom(BLOCK), b"#!/bin/sh\n" * 100, member(b"a")[:511]):
        assert not is_header(data)


@pytest.mark.needs("tar")
@pytest.mark.parametrize("kind", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_archives_by_gnu_tar(tmp_path, kind):
    (tmp_path / "s" / "folder").mkdir(parents=True)
    (tmp_path / "s" / "folder" / "file").write_bytes(b"f" * 5_000)
    os.link(tmp_path / "s" / "folder" / "file", tmp_path / "s" / "second")
    (tmp_path / "s" / "link").symlink_to("folder")
    done = subprocess.run(
        ["tar", f"--format={kind}", "--sort=name", "-C", tmp_path / "s", "-cf", "-", "."],
        capture_output=True,
        check=True,
    )

    assert [(e.path, e.kind) for e, _ in read(done.stdout)] == [
        (b"", "d"),
        (b"folder", "d"),
        (b"folder/file", "f"),
        (b"link", "l"),
        (b"second", "h"),
    ]


# gzip


def _opened(data, size=1_000):
    return b"".join(gzip.decompressed(iter([data[at : at + size] for at in range(0, len(data), size)])))


@pytest.mark.parametrize("size", [0, 1, 1000, 3 * MIB + 7])
def test_gzip_there_and_back(size):
    data = os.urandom(size // 2) + bytes(size - size // 2)
    packed = b"".join(gzip.compressed(iter([data[:10], data[10:]])))

    assert packed.startswith(gzip.MAGIC)
    assert reference.decompress(packed) == data
    assert _opened(packed) == data
    assert _opened(reference.compress(data)) == data


def test_gzip_members_in_a_row_and_zeros_behind():
    first, second = reference.compress(b"first"), reference.compress(b"second" * 1000)

    for size in (1, 7, 1_000):
        assert _opened(first + second, size) == b"first" + b"second" * 1000
        assert _opened(first + bytes(600) + second + bytes(5_000), size) == b"first" + b"second" * 1000


def test_gzip_that_is_not_whole():
    packed = reference.compress(os.urandom(5_000))
    for length in range(1, len(packed), 7):
        with pytest.raises(DamageError):
            _opened(packed[:length])
    for at in (len(packed) - 8, len(packed) - 1, 0, 2):  # checksum, length, magic, method
        with pytest.raises(DamageError):
            _opened(packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :])
    with pytest.raises(DamageError):
        _opened(packed + b"more")


def test_a_gzip_bomb_comes_out_in_small_pieces():
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(bytes(MIB)) for _ in range(300)) + packer.flush()
    assert len(packed) < MIB

    sizes = [len(piece) for piece in gzip.decompressed(iter([packed]))]

    assert sum(sizes) == 300 * MIB
    assert max(sizes) <= MIB


def test_times_are_whole_seconds_where_nothing_says_more():
    now = int(time.time())
    ((entry, _),) = read(member(b"a", mtime_ns=now * 10**9 + 123) + END)
    assert entry.mtime_ns == now * 10**9
