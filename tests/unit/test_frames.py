import io
import struct
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.archive import frames, tar, zstd
from holdfast.archive.chunks import chunk_name
from holdfast.archive.frames import FRAME_BYTES, LAYER_BYTES, TABLE_TAIL, FrameTable, LayerWriter, layer_target
from holdfast.errors import DamageError
from holdfast.model.digest import Digest
from holdfast.model.oci import LARGEST_MANIFEST, MANIFEST_TYPE, ZSTD_LAYER_TYPE, Descriptor, Manifest
from holdfast.model.snapshot import RECORD


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def _head(name, size):
    return tar.header(name, "f", 0o644, 0, 0, size, 0)


def _write(pool, contents, *, level=3, first_id=0, layers=0):
    """Layers of files with these contents, and where each content lies."""
    closed = []
    writer = LayerWriter(level=level, pool=pool, close=closed.append, first_id=first_id, layers=layers)
    places = []
    for number, data in enumerate(contents):
        head = _head(b"f%06d" % number, len(data))
        layer = writer.begin(len(head) + tar.member_size(len(data)))
        writer.write(layer, head)
        places.append((layer.id, layer.tar_bytes))
        writer.write(layer, data, RECORD.pack(chunk_name(data), layer.id, layer.tar_bytes, len(data)))
        writer.write(layer, tar.padding(len(data)))
    writer.flush()
    for layer in closed:
        layer.seal()
    return closed, places


def _contents(count=60, size=200_000):
    return [bytes([n % 251]) * (size + n) for n in range(count)]


def _table(layer):
    blob = b"".join(layer.parts)
    return blob, FrameTable.of_tail(blob[-TABLE_TAIL:], len(blob)) if layer.compressed else FrameTable.of_plain(
        len(blob)
    )


@pytest.mark.parametrize("level", [1, 3, None])
def test_each_chunk_comes_out_of_one_frame(pool, level):
    contents = _contents()
    (layer,), places = _write(pool, contents, level=level)
    blob, table = _table(layer)

    for data, (id_, offset) in zip(contents, places, strict=True):
        assert id_ == layer.id
        extent = table.extent(table.find(offset, len(data)))
        opened = table.open(table.find(offset, len(data)), blob[extent.blob_offset :][: extent.blob_length])
        assert bytes(opened[offset - extent.tar_offset :][: len(data)]) == data


def test_no_frame_is_larger_than_frames_are(pool):
    one_mib = [bytes([n]) * (1024 * 1024) for n in range(30)]
    (layer,), _ = _write(pool, one_mib + _contents(300, 700))
    _, table = _table(layer)
    extents = []
    for number in range(1000):
        try:
            extents.append(table.extent(number))
        except IndexError:
            break

    assert len(extents) > 5
    assert max(extent.tar_length for extent in extents) <= FRAME_BYTES
    assert sum(extent.tar_length for extent in extents) == layer.tar_bytes
    assert min(extent.tar_length for extent in extents[:-1]) > FRAME_BYTES // 2  # nor needlessly small


@pytest.mark.needs("zstd")
def test_zstd_and_tar_read_a_layer_as_it_is(pool, tmp_path):
    contents = _contents()
    (layer,), _ = _write(pool, contents)
    (tmp_path / "layer.tar.zst").write_bytes(b"".join(layer.parts))

    done = subprocess.run(["zstd", "-dc", tmp_path / "layer.tar.zst"], capture_output=True, check=True)

    assert len(done.stdout) == layer.tar_bytes
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [f"f{n:06}" for n in range(len(contents))]
        assert all(archive.extractfile(m).read() == data for m, data in zip(members, contents, strict=True))


def test_a_layer_states_what_it_is(pool):
    (layer,), places = _write(pool, _contents(5))
    blob = b"".join(layer.parts)

    assert layer.digest == Digest.of(blob)
    assert layer.size == len(blob)
    assert [RECORD.unpack_from(layer.records, at)[1:3] for at in range(0, len(layer.records), RECORD.size)] == places


def test_the_seek_table_is_the_formats(pool):
    """zstd_seekable_compression_format.md: a skippable frame of rows and a footer with its magic number."""
    (layer,), _ = _write(pool, _contents())
    table = layer.parts[-1]
    magic, size = struct.unpack_from("<II", table)
    count, descriptor, footer = struct.unpack("<IBI", table[-9:])

    assert (magic, footer, descriptor) == (0x184D2A5E, 0x8F92EAB1, 0)
    assert size == len(table) - 8 == 8 * count + 9
    assert [row[0] for row in struct.iter_unpack("<II", table[8:-9])] == [len(part) for part in layer.parts[:-1]]


def test_layers_close_when_they_are_full_and_ids_go_on(monkeypatch, pool):
    monkeypatch.setattr(frames, "LAYER_BYTES", 1024 * 1024)
    closed, _ = _write(pool, _contents(40), first_id=17)

    assert [layer.id for layer in closed] == list(range(17, 17 + len(closed)))
    assert all(700_000 < layer.tar_bytes <= 1024 * 1024 + len(tar.END) for layer in closed[:-1])


def test_a_member_larger_than_a_layer_gets_one_of_its_own(monkeypatch, pool):
    monkeypatch.setattr(frames, "LAYER_BYTES", 64 * 1024)
    closed, _ = _write(pool, [b"a" * 1000, b"b" * 500_000, b"c" * 1000])

    assert [len(layer.records) // RECORD.size for layer in closed] == [1, 1, 1]


def test_nothing_added_makes_no_layer(pool):
    assert _write(pool, []) == ([], [])


def test_layers_grow_with_the_volume_but_not_without_end():
    assert layer_target(0) == layer_target(4095) == LAYER_BYTES == 48 * 1024 * 1024
    assert layer_target(4096) == 2 * LAYER_BYTES
    assert layer_target(1_000_000) == 1024 * 1024 * 1024


def test_a_manifest_of_a_huge_volume_stays_below_what_registries_take():
    held = layers = 0
    while held < 16 << 40:  # 16 TiB
        held += layer_target(layers)
        layers += 1
    row = Descriptor(ZSTD_LAYER_TYPE, "sha256:" + "0" * 64, 1_073_741_824)
    config = Descriptor("application/vnd.holdfast.snapshot.config.v1+json", "sha256:" + "0" * 64, 1000)
    manifest = Manifest(schema_version=2, media_type=MANIFEST_TYPE, config=config, layers=[row] * 10_000)

    assert layers < 32_000
    assert len(manifest.encode()) < LARGEST_MANIFEST


def _seek_table(rows, *, count=None, descriptor=0, magic=0x184D2A5E, footer=0x8F92EAB1, size=None):
    body = b"".join(struct.pack("<II", *row) for row in rows)
    body += struct.pack("<IBI", len(rows) if count is None else count, descriptor, footer)
    return struct.pack("<II", magic, len(body) if size is None else size) + body


GOOD = _seek_table([(10, 100)])


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"short",
        bytes(100),
        _seek_table([(10, 100)], count=2**32 - 1),
        _seek_table([(10, 100)], count=2),
        _seek_table([(10, 100)], count=0),
        _seek_table([(10, 100)], footer=0),
        _seek_table([(10, 100)], magic=0),
        _seek_table([(10, 100)], size=0),
        _seek_table([(10, 100)], size=2**32 - 1),
        _seek_table([(10, 100)], descriptor=0x7C),
        _seek_table([(10, FRAME_BYTES + 1)]),
        _seek_table([(2**32 - 1, 100)]),
        _seek_table([(10, 2**32 - 1)]),
        _seek_table([(11, 100)]),
        _seek_table([(5, 100), (5, 100), (1, 0)]),
    ],
    ids=range(16),
)
def test_a_seek_table_that_lies_is_refused(tail):
    size = 10 + len(GOOD) + (len(tail) - len(GOOD) if len(tail) > len(GOOD) else 0)
    with pytest.raises(DamageError):
        FrameTable.of_tail(bytes(10) + tail, size)


def test_a_seek_table_with_checksums_is_read():
    row = struct.pack("<III", 10, 100, 0xDEADBEEF)
    body = row + struct.pack("<IBI", 1, 0x80, 0x8F92EAB1)
    tail = struct.pack("<II", 0x184D2A5E, len(body)) + body

    assert FrameTable.of_tail(tail, 10 + len(tail)).extent(0).tar_length == 100


@pytest.mark.parametrize(("offset", "length"), [(100, 1), (0, 101), (50, 60), (2**63, 1), (99, 2**32 - 1)])
def test_a_chunk_beyond_its_frame_is_refused(offset, length):
    table = FrameTable.of_tail(_seek_table([(10, 100)]), 10 + len(GOOD))

    with pytest.raises(DamageError):
        table.find(offset, length)


def test_a_frame_of_another_size_than_stated_is_refused():
    frame = zstd.compress(b"x" * 99, 3)
    tail = _seek_table([(len(frame), 100)])
    table = FrameTable.of_tail(tail, len(frame) + len(tail))

    with pytest.raises(DamageError):
        table.open(0, frame)


def test_a_frame_of_more_than_its_limit_is_not_opened():
    frame = zstd.compress(bytes(1_000_001), 3)

    assert zstd.decompress(frame, 1_000_001) == bytes(1_000_001)
    with pytest.raises(DamageError):
        zstd.decompress(frame, 1_000_000)


@pytest.mark.parametrize("cut", [1, 5, -1, -4])
def test_a_frame_cut_short_is_refused(cut):
    frame = zstd.compress(b"kelp" * 1000 + bytes(range(256)), 3)

    with pytest.raises(DamageError):
        zstd.decompress(frame[:cut], 1_000_000)


def test_bytes_behind_a_frame_are_refused():
    with pytest.raises(DamageError):
        zstd.decompress(zstd.compress(b"kelp", 3) + b"x", 100)
