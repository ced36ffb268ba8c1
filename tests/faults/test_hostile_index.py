"""An index written by somebody who means harm: nothing leaves the target, memory and time stay bounded."""

import contextlib
import os
import struct
import subprocess
import sys

import msgspec
import pytest
import zstandard
from blake3 import blake3

from backups import Rig, contents, leftovers
from forge import ROOT, LayerMaker, digest_of, entry, forge, forge_raw, page_frame, plain_config, seal
from holdfast import errors
from holdfast.archive import zstd
from holdfast.errors import DamageError, HoldfastError
from holdfast.model.names import SourceName
from holdfast.model.oci import LAYER_TYPE, ZSTD_LAYER_TYPE, Descriptor
from holdfast.model.snapshot import (
    HOLE_LAYER,
    RECORD,
    IndexHeader,
    IndexRow,
    LayerRow,
    PageRow,
)
from holdfast.volumes import restore
from holdfast.volumes.look import differences, dump, listing
from holdfast.volumes.snapshots import list_snapshots, open_snapshot

EVIL = b"evil"


@pytest.fixture
def rig(tmp_path):
    """A rig whose target lies among things that must not be touched."""
    rig = Rig(tmp_path)
    rig.around = tmp_path / "around"
    rig.target = rig.around / "target"
    rig.target.mkdir(parents=True)
    (rig.around / "outside").mkdir()
    (rig.around / "outside" / "file").write_bytes(b"untouched")
    (rig.around / "secret").write_bytes(b"secret")
    return rig


def _around(rig):
    names = sorted(path.name for path in rig.around.iterdir())
    return names, contents(rig.around / "outside"), (rig.around / "secret").read_bytes()


def _attempt(rig, *, targets=None, **options):
    """Restore; gives the error or what was restored. Outside nothing may change."""
    rig.fresh_cache()
    before = _around(rig)
    linked = (rig.around / "secret").stat().st_nlink
    try:
        result = rig.restore(targets or rig.target, **options)
    except HoldfastError as error:
        result = error
        assert "not the config" not in str(error)  # not for another reason
    assert _around(rig) == before
    assert (rig.around / "secret").stat().st_nlink == linked
    assert leftovers(rig.target) == []
    return result


def _layer(*contents_):
    layer = LayerMaker()
    return layer, [layer.add(content) for content in contents_]


UNSAFE = [
    b"/etc/evil",
    b"../evil",
    b"..",
    b".",
    b"a/../../evil",
    b"a//b",
    b"a/",
    b"/",
    b"a\0b",
    b"./a",
    b"a/./b",
    b"../outside/file",
]


@pytest.mark.parametrize("mode", ["replace", "merge"])
@pytest.mark.parametrize("path", UNSAFE, ids=repr)
def test_a_path_that_leads_outside(rig, path, mode):
    layer, (record,) = _layer(EVIL)
    forge(rig.store, rig.name, [ROOT, entry(path, size=4, chunks=record)], layers=[layer])

    error = _attempt(rig, mode=mode)

    assert isinstance(error, DamageError)
    assert contents(rig.target) == {}


@pytest.mark.parametrize("paths", [(b"a",), (b"../evil",), (b"/etc",)], ids=repr)
@pytest.mark.parametrize("path", [b"../evil", b"/etc/evil"], ids=repr)
def test_a_path_that_leads_outside_asked_for_by_name(rig, path, paths):
    layer, (record,) = _layer(EVIL)
    forge(rig.store, rig.name, [ROOT, entry(path, size=4, chunks=record)], layers=[layer])

    assert isinstance(_attempt(rig, paths=paths), HoldfastError)
    assert contents(rig.target) == {}


@pytest.mark.parametrize(
    "tree",
    [
        [ROOT, entry(b"a"), entry(b"a")],
        [ROOT, entry(b"b"), entry(b"a")],
        [ROOT, ROOT],
        [entry(b"a"), ROOT],
        [ROOT, entry(b"a/b"), entry(b"a", "d")],
        [ROOT, entry(b"a", "+", size=0)],
        [ROOT, entry(b"a"), entry(b"b", "+")],
        [ROOT, entry(b"a", "x")],
        [ROOT, entry(b"a", "")],
        [ROOT, entry(b"a", size=-1)],
        [ROOT, entry(b"a", size=1, chunks=b"123")],
        [ROOT, entry(b"nowhere/a")],
        [ROOT, entry(b"a", "l", target=b"../outside"), entry(b"a/evil")],
        [ROOT, entry(b"a", "l", target=b"../outside"), entry(b"a/file", "d")],
        [ROOT, entry(b"a"), entry(b"a/evil")],
        [ROOT, entry(b"a", "h", target=b"b"), entry(b"a/evil")],
    ],
    ids=range(16),
)
def test_entries_that_cannot_be(rig, tree):
    forge(rig.store, rig.name, tree)

    assert isinstance(_attempt(rig), DamageError)


@pytest.mark.parametrize("mode", ["replace", "merge"])
@pytest.mark.parametrize("planted", ["folder", "folder/below"])
def test_a_symlink_planted_where_a_directory_belongs(rig, planted, mode):
    layer, (record,) = _layer(EVIL)
    tree = [
        ROOT,
        entry(b"folder", "d"),
        entry(b"folder/below", "d"),
        entry(b"folder/below/file", size=4, chunks=record),
        entry(b"folder/file", size=4, chunks=record),
    ]
    forge(rig.store, rig.name, tree, layers=[layer])
    place = rig.target / planted
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(rig.around / "outside")

    assert not isinstance(_attempt(rig, mode=mode), HoldfastError)
    assert not place.is_symlink()
    assert (rig.target / "folder" / "below" / "file").read_bytes() == EVIL
    assert (rig.target / "folder" / "file").read_bytes() == EVIL


@pytest.mark.parametrize("paths", [(b"folder/below/file",), (b"folder/below",)])
@pytest.mark.parametrize("planted", ["folder", "folder/below", "folder/below/file"])
def test_a_symlink_planted_on_the_way_to_a_wanted_path(rig, planted, paths):
    layer, (record,) = _layer(EVIL)
    tree = [
        ROOT,
        entry(b"folder", "d"),
        entry(b"folder/below", "d"),
        entry(b"folder/below/file", size=4, chunks=record),
    ]
    forge(rig.store, rig.name, tree, layers=[layer])
    place = rig.target / planted
    place.parent.mkdir(exist_ok=True, parents=True)
    place.symlink_to(rig.around / "outside" / ("file" if planted.endswith("file") else ""))

    _attempt(rig, paths=paths)

    assert (rig.around / "outside" / "file").read_bytes() == b"untouched"


def test_a_symlink_of_the_snapshot_is_not_followed_by_a_later_restore(rig):
    """First a snapshot with a symlink, then one with a directory of that name: the classic of archives."""
    layer, (record,) = _layer(EVIL)
    forge(rig.store, rig.name, [ROOT, entry(b"a", "l", target=os.fsencode(rig.around / "outside"))])
    _attempt(rig)
    assert (rig.target / "a").is_symlink()
    forge(rig.store, rig.name, [ROOT, entry(b"a", "d"), entry(b"a/file", size=4, chunks=record)], layers=[layer])

    _attempt(rig)

    assert (rig.target / "a" / "file").read_bytes() == EVIL
    assert not (rig.target / "a").is_symlink()


@pytest.mark.parametrize(
    "target",
    [
        b"../secret",
        b"../outside/file",
        b"..",
        b"",
        b"/etc/passwd",
        b"a/../../secret",
        b"none",
        b"self",
        b"sub",
        b"x\0y",
        None,
        [1, 2],
    ],
    ids=repr,
)
@pytest.mark.parametrize("paths", [(), (b"self",)], ids=["all", "one"])
def test_a_hard_link_to_something_else(rig, target, paths):
    tree = [ROOT, entry(b"self", "h", target=target), entry(b"sub", "d")]
    forge(rig.store, rig.name, tree)

    result = _attempt(rig, paths=paths)

    assert isinstance(result, HoldfastError) or not result.complete
    assert not (rig.target / "self").exists()


@pytest.mark.parametrize("target", [b"loop", b"self"])
def test_hard_links_in_a_circle(rig, target):
    forge(rig.store, rig.name, [ROOT, entry(b"loop", "h", target=b"self"), entry(b"self", "h", target=target)])

    result = _attempt(rig)

    assert isinstance(result, DamageError) or not result.complete
    _attempt(rig, paths=(b"loop",))


def test_a_hard_link_through_a_planted_symlink(rig):
    (rig.target / "sub").symlink_to(rig.around / "outside")
    forge(rig.store, rig.name, [ROOT, entry(b"self", "h", target=b"sub/file")])

    _attempt(rig, mode="merge")

    assert not (rig.target / "self").exists()


def _lies(layer, records):
    good = records[0]
    name, _, offset, length = RECORD.unpack(good)
    return {
        "beyond its layer": RECORD.pack(name, 0, 1 << 40, length),
        "far beyond": RECORD.pack(name, 0, 2**64 - 1, 2**32 - 1),
        "at the very end": RECORD.pack(name, 0, layer.tar_bytes, 1),
        "across two frames": RECORD.pack(name, 0, offset, 3000),
        "longer than it is": RECORD.pack(name, 0, offset, length + 1),
        "shorter than it is": RECORD.pack(name, 0, offset, length - 1),
        "somewhere else": RECORD.pack(name, 0, offset + 1, length),
        "of another name": RECORD.pack(bytes(32), 0, offset, length),
        "of an unknown layer": RECORD.pack(name, 7, offset, length),
        "empty": RECORD.pack(name, 0, offset, 0),
        "hole with a name": RECORD.pack(name, HOLE_LAYER, 5, 9),
        "hole beyond the size": RECORD.pack(bytes(32), HOLE_LAYER, 2**64 - 1, 0),
    }


LIES = list(_lies(LayerMaker(), [RECORD.pack(bytes(32), 0, 0, 1000)]))


@pytest.mark.parametrize("lie", LIES)
def test_a_chunk_that_lies(rig, lie):
    layer, records = _layer(b"A" * 1000, b"B" * 2000)
    bad = _lies(layer, records)[lie]
    tree = [ROOT, entry(b"bad", size=1000, chunks=bad), entry(b"good", size=2000, chunks=records[1])]
    forge(rig.store, rig.name, tree, layers=[layer])

    error = _attempt(rig)

    assert isinstance(error, DamageError)
    assert error.paths == (b"bad",)
    assert contents(rig.target) == {"good": b"B" * 2000}
    with pytest.raises(DamageError):
        for _ in dump(rig.open(), b"bad"):
            pass


@pytest.mark.parametrize("size", [0, 999, 1001, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_size_that_lies(rig, size):
    layer, (record,) = _layer(b"A" * 1000)
    forge(rig.store, rig.name, [ROOT, entry(b"bad", size=size, chunks=record)], layers=[layer])

    assert isinstance(_attempt(rig), DamageError)
    assert contents(rig.target) == {}


@pytest.mark.parametrize("size", [1 << 40, 2**62, 2**63 - 1])
def test_a_huge_sparse_file_takes_neither_time_nor_space(rig, size):
    hole = RECORD.pack(bytes(32), HOLE_LAYER, size, 0)
    forge(rig.store, rig.name, [ROOT, entry(b"huge", size=size, chunks=hole)])

    result = _attempt(rig)

    if isinstance(result, HoldfastError) or not result.complete:  # larger than files can be here
        assert contents(rig.target) == {}
    else:
        assert (rig.target / "huge").stat().st_blocks == 0
        (rig.target / "huge").unlink()


@pytest.mark.parametrize(
    "given",
    [
        {"mode": -1},
        {"mode": 2**40},
        {"uid": -2},
        {"uid": 2**40},
        {"gid": 2**64 - 1},
        {"mtime_ns": 2**63},
        {"mtime_ns": -(2**63)},
        {"mtime_ns": 2**64 - 1},
        {"xattrs": [(b"user.a\0b", b"1")]},
        {"xattrs": [(b"", b"1")]},
        {"xattrs": [(b"user.big", bytes(1_000_000))]},
        {"xattrs": [(b"user.a", b"1")] * 5000},
        {"kind": "l", "target": None},
        {"kind": "l", "target": b""},
        {"kind": "l", "target": b"a\0b"},
        {"kind": "l", "target": b"x" * 100_000},
        {"kind": "l", "target": [1, 2]},
        {"kind": "c", "target": [1]},
        {"kind": "c", "target": [1, 2, 3]},
        {"kind": "c", "target": None},
        {"kind": "b", "target": [-1, 2**63]},
        {"kind": "c", "target": b"tty"},
        {"kind": "p", "mode": 2**33},
        {"kind": "d", "mode": 2**33},
        {"kind": "d", "mtime_ns": 2**64 - 1},
        {"kind": "d", "uid": 2**40},
        {"path": b"x" * 300},
        {"path": b"x" * 300, "kind": "d"},
    ],
    ids=str,
)
def test_values_that_no_file_has(rig, given):
    """They cost that path, reported as the snapshot's fault or this machine's, and nothing else."""
    given = dict(given)
    path, kind = given.pop("path", b"odd"), given.pop("kind", "f")
    chunks = {}
    layer, (record, other) = _layer(b"A" * 1000, b"B" * 10)
    if kind == "f":
        chunks = {"size": 1000, "chunks": record}
    tree = sorted(
        [ROOT, entry(path, kind, **given, **chunks), entry(b"good", size=10, chunks=other), entry(b"z", "d")],
        key=lambda e: e.path,
    )
    forge(rig.store, rig.name, tree, layers=[layer])

    result = _attempt(rig)

    if isinstance(result, HoldfastError):
        assert isinstance(result, DamageError)
    got = contents(rig.target)
    assert set(got) <= {"good", "odd", "z"}
    if not isinstance(result, HoldfastError):
        assert got["good"] == b"B" * 10
    snapshot = rig.open()
    for look in (
        lambda: list(listing(snapshot, deep=True)),
        lambda: list(differences(snapshot.entries(), snapshot.entries())),
        lambda: [bytes(piece) for piece in dump(snapshot, b"")],
    ):
        with contextlib.suppress(HoldfastError):
            look()


def test_a_layer_of_an_unknown_kind(rig):
    layer, (record,) = _layer(EVIL)
    layer.media_type = "application/x-evil"
    forge(rig.store, rig.name, [ROOT, entry(b"a", size=4, chunks=record)], layers=[layer])

    assert isinstance(_attempt(rig), DamageError)


@pytest.mark.parametrize("media_type", [ZSTD_LAYER_TYPE, LAYER_TYPE])
@pytest.mark.parametrize("size", [-1, 0, 1, 2**40, 2**62, 2**63 - 1])
def test_a_layer_whose_stated_size_lies(rig, size, media_type):
    layer, (record,) = _layer(EVIL)
    blob = layer.blob()
    digest = digest_of(blob)
    rig.store.put_blob(rig.name.repository, digest, blob)
    row = Descriptor(media_type, str(digest), size)
    header = IndexHeader([LayerRow(0, str(digest), 10, 10)], [IndexRow("", 0, 0)], [])
    name, frame = page_frame([ROOT, entry(b"a", size=4, chunks=record)])
    header.pages.append(PageRow(b"", name, 0, 0, len(frame)))
    forge_raw(rig.store, rig.name, [(name, frame)], header=header, descriptors=[row])

    assert isinstance(_bounded(rig, seconds=20), DamageError)


@pytest.mark.parametrize(
    "row",
    [
        {"offset": 2**63 - 1},
        {"offset": 2**63},
        {"offset": 2**64 - 1},
        {"offset": 10**9},
        {"length": 16 * 1024 * 1024},
        {"length": 1},
    ],
    ids=str,
)
def test_a_page_that_lies_elsewhere(rig, row):
    name, frame = page_frame([ROOT])
    fields = {"first": b"", "blake3": name, "index": 0, "offset": 0, "length": len(frame)} | row
    header = IndexHeader([], [IndexRow("", 0, 0)], [PageRow(**fields)])
    forge_raw(rig.store, rig.name, [(name, frame)], header=header)

    assert isinstance(_attempt(rig), DamageError)


@pytest.mark.parametrize(
    "row",
    [IndexRow("sha256:" + "0" * 64, 0, 0), IndexRow("nonsense", 0, 0), IndexRow("", -5, 5), IndexRow("", 2**64 - 1, 5)],
)
def test_a_page_of_an_index_that_is_not_listed(rig, row):
    name, frame = page_frame([ROOT])
    header = IndexHeader([], [IndexRow("", 0, 0), row], [PageRow(b"", name, 1, 0, len(frame))])
    forge_raw(rig.store, rig.name, [(name, frame)], header=header)

    assert isinstance(_attempt(rig), DamageError)


@pytest.mark.parametrize(
    "annotation",
    ["", "x", "10", "10:", "10:zz", "-1:" + "0" * 64, "99999999999:" + "0" * 64, "10:" + "0" * 62, "0:" + "0" * 64],
)
def test_an_annotation_that_lies(rig, annotation):
    blob = b"HOLDFAST\x01" + bytes(100)
    digest = digest_of(blob)
    rig.store.put_blob(rig.name.repository, digest, blob)
    seal(rig.store, rig.name, str(digest), len(blob), annotation, [])

    assert isinstance(_attempt(rig), DamageError)


def _config(**changes):

    return msgspec.json.encode(plain_config(SourceName(b"trial")) | changes)


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"[]",
        _config(format=2),
        _config(encryption={"algorithm": "x"}),
        _config(source={"kind": "directory", "name": "", "path": ""}),
        _config(source={"kind": "directory", "name": "../..", "path": ""}),
        _config(source={"kind": "directory", "name": "x", "path": "", "name_base64": "!"}),
        _config(source={"kind": "directory", "name": "x", "path": "", "name_base64": "AAAAA"}),
        _config(source={"kind": "elsewhere", "name": "x", "path": ""}),
        b"[" * 100_000,
    ],
    ids=range(10),
)
def test_a_config_that_lies(rig, config):
    data = b"\x93\x90\x91\x93\xa0\x00\x00\x90"
    frame = zstd.compress(data, 3)
    blob = b"HOLDFAST\x01" + struct.pack("<I", len(frame)) + frame
    digest = digest_of(blob)
    rig.store.put_blob(rig.name.repository, digest, blob)
    seal(rig.store, rig.name, str(digest), len(blob), f"{len(frame)}:{blake3(data).hexdigest()}", [], config=config)

    rig.fresh_cache()
    with pytest.raises(DamageError):
        rig.restore(rig.target)
    (listed,) = list_snapshots(rig.store)
    assert listed.damage


def test_a_snapshot_that_says_it_is_of_another_place(rig, monkeypatch, tmp_path):
    """`restore /var/www` must write there, not where the config of what it found says."""
    asked = SourceName(os.fsencode(tmp_path / "asked"))
    layer, (record,) = _layer(EVIL)
    forge(rig.store, asked, [ROOT, entry(b"file", size=4, chunks=record)], layers=[layer])
    plain = plain_config(SourceName(os.fsencode(rig.around / "outside")))
    manifest = open_snapshot(rig.store, rig.cache, asked).manifest
    index = manifest.layers[0]
    annotation = next(iter(index.annotations.values()))
    seal(rig.store, asked, index.digest, index.size, annotation, manifest.layers[1:], config=msgspec.json.encode(plain))

    with pytest.raises(HoldfastError):
        restore.restore(open_snapshot(rig.store, rig.fresh_cache(), asked), restore.Options())

    assert (rig.around / "outside" / "file").read_bytes() == b"untouched"


# Bombs: run apart, with little memory

_RUN = """
import os, resource, sys
from pathlib import Path
from holdfast.errors import HoldfastError
from holdfast.model.names import SourceName
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from holdfast.storage.cache import Cache
from holdfast.storage.store import Store
from holdfast.volumes import restore
from holdfast.volumes.snapshots import list_snapshots, open_snapshot

store, cache, target, megabytes = sys.argv[1:]
snapshot = None
try:
    opened = Store(open_bucket(BucketUrl.parse(store)))
    # What is mapped now, and so much more.
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + int(megabytes) * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    snapshot = open_snapshot(opened, Cache(Path(cache)), SourceName(b"trial"))
    restore.restore(snapshot, restore.Options(target=os.fsencode(target)))
except HoldfastError as error:
    print(type(error).__name__, str(error)[:300])
"""


def _bounded(rig, *, seconds=20, megabytes=700):
    """Restore in a process of its own that may take only so much memory and time; gives the error."""
    copy = rig.folder / "as-files"
    for one in rig.bucket.objects(""):
        path = copy / one.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rig.bucket.get(one.key, limit=1 << 40))
    arguments = [f"file://{copy}", rig.folder / "bounded-cache", rig.target, str(megabytes)]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kind, _, message = done.stdout.partition(" ")
    assert "not the config" not in message
    return getattr(errors, kind)(message)


def _zeros(gigabytes, *, sized):
    """A zstd frame of so many GiB of zeros, a few hundred kilobytes long."""
    size = gigabytes << 30
    compressor = zstandard.ZstdCompressor(level=1)
    worker = compressor.compressobj(size=size) if sized else compressor.compressobj()
    piece = bytes(64 << 20)
    parts = [worker.compress(piece) for _ in range(size // len(piece))]
    return b"".join([*parts, worker.flush()])


@pytest.fixture(scope="module")
def bombs():
    return {sized: _zeros(2, sized=sized) for sized in (True, False)}


@pytest.mark.parametrize("sized", [True, False], ids=["size stated", "no size stated"])
def test_a_page_bomb(rig, bombs, sized):
    forge_raw(rig.store, rig.name, [(bytes(32), bombs[sized])])

    assert isinstance(_bounded(rig), DamageError)


@pytest.mark.parametrize("sized", [True, False], ids=["size stated", "no size stated"])
def test_a_header_bomb(rig, bombs, sized):
    forge_raw(rig.store, rig.name, [], header_frame=bombs[sized], header_data=b"")

    assert isinstance(_bounded(rig), DamageError)


@pytest.mark.parametrize("size", [15 << 20, 255 << 20])
def test_a_header_of_as_many_zeros_as_may_be(rig, size):
    data = bytes(size)
    forge_raw(rig.store, rig.name, [], header_frame=zstd.compress(data, 1), header_data=data)

    assert isinstance(_bounded(rig, megabytes=1000), DamageError)


def test_a_page_of_as_many_entries_as_may_be(rig):
    one = msgspec.msgpack.encode(entry(b"", "d", mtime_ns=0, mode=0))
    count = (16 * 1024 * 1024 - 5) // len(one)
    data = b"\xdd" + struct.pack(">I", count) + one * count
    forge_raw(rig.store, rig.name, [page_frame(data)])

    assert isinstance(_bounded(rig), DamageError)


@pytest.mark.parametrize(
    "data", [b"\xdd\xff\xff\xff\xff", b"\x91" * 1_000_000, b"\x91\x9c\xc6\xff\xff\xff\xff"], ids=range(3)
)
def test_msgpack_that_promises_too_much(rig, data):
    forge_raw(rig.store, rig.name, [page_frame(data)])
    assert isinstance(_bounded(rig), DamageError)
    forge_raw(rig.store, rig.name, [], header_data=data)
    assert isinstance(_bounded(rig), DamageError)


@pytest.mark.parametrize("sized", [True, False], ids=["size stated", "no size stated"])
def test_a_frame_bomb(rig, bombs, sized):
    layer, (record,) = _layer(EVIL)
    layer.frames = [(bombs[sized], layer.frames[0][1])]
    forge(rig.store, rig.name, [ROOT, entry(b"a", size=4, chunks=record)], layers=[layer])

    assert isinstance(_bounded(rig), DamageError)


@pytest.mark.parametrize(
    "rows",
    [[(2**32 - 1, 2**32 - 1)], [(10, 2**32 - 1)], [(2**32 - 1, 10)], [(0, 4 << 20)] * 8000, [(0, 0)] * 8000],
    ids=range(5),
)
def test_a_seek_table_that_lies(rig, rows):
    layer, (record,) = _layer(EVIL)
    body = b"".join(struct.pack("<II", *row) for row in rows) + struct.pack("<IBI", len(rows), 0, 0x8F92EAB1)
    blob = layer.frames[0][0] + struct.pack("<II", 0x184D2A5E, len(body)) + body
    layer.blob = lambda: blob
    forge(rig.store, rig.name, [ROOT, entry(b"a", size=4, chunks=record)], layers=[layer])

    assert isinstance(_bounded(rig), DamageError)


def test_a_seek_table_with_four_billion_rows(rig):
    layer, (record,) = _layer(EVIL)
    blob = layer.blob()[:-9] + struct.pack("<IBI", 2**32 - 1, 0, 0x8F92EAB1)
    layer.blob = lambda: blob
    forge(rig.store, rig.name, [ROOT, entry(b"a", size=4, chunks=record)], layers=[layer])

    assert isinstance(_bounded(rig), DamageError)


def test_the_bound_is_one(rig):
    """A restore that is in order fits the bound, and one that takes more does not."""
    layer, (record,) = _layer(b"A" * 1000)
    forge(rig.store, rig.name, [ROOT, entry(b"a", size=1000, chunks=record)], layers=[layer])
    with pytest.raises(AttributeError):  # no error was printed
        _bounded(rig)
    assert (rig.target / "a").read_bytes() == b"A" * 1000
    with pytest.raises(AssertionError):
        _bounded(rig, megabytes=1)
