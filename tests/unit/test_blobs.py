"""Layers as blobs: what is packed opens again, whoever packed it, and never takes more memory than it may."""

import gzip
import hashlib
import io
import os
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard

from fake_engine import layer_of, opened
from holdfast.archive import zstd
from holdfast.archive.blobs import checked, kind_of, pack, raw_size, unpacked
from holdfast.archive.frames import TABLE_TAIL, seek_table
from holdfast.errors import DamageError
from holdfast.model.digest import Digest

MIB = 1024 * 1024
LAYER = layer_of(5 * MIB)


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def _pack(layer, compression, pool, piece_bytes=MIB):
    file = io.BytesIO()
    packed = pack(_pieces(layer, piece_bytes), file, compression=compression, level=2, pool=pool)
    return packed, file.getvalue()


def _pieces(data, size=MIB):
    return iter([data[at : at + size] for at in range(0, len(data), size)])


def _open(blob, piece_bytes=MIB):
    return b"".join(unpacked(_pieces(blob, piece_bytes)))


@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
@pytest.mark.parametrize(
    "layer", [LAYER, LAYER[:4096], LAYER[: 4 * MIB], b""], ids=["long", "short", "frames", "empty"]
)
def test_what_is_packed_is_what_other_programs_open(compression, layer, pool):
    packed, blob = _pack(layer, compression, pool, piece_bytes=MIB - 17)

    assert (packed.digest, packed.size) == (Digest.of(blob), len(blob))
    assert (packed.diff_id, packed.raw_size) == (Digest.of(layer), len(layer))
    assert opened(blob) == layer
    assert _open(blob) == layer
    assert kind_of(blob[:4]) == compression or not layer
    if compression != "none" and len(layer) > MIB:
        assert len(blob) < 0.7 * len(layer)


def test_a_packed_layer_says_how_large_it_was(pool):
    packed, blob = _pack(LAYER, "zstd", pool)

    assert raw_size(blob[-TABLE_TAIL:], packed.size) == len(LAYER)


def test_a_layer_is_the_same_however_its_bytes_arrive(pool):
    assert _pack(LAYER, "zstd", pool)[1] == _pack(LAYER, "zstd", pool, piece_bytes=5 * MIB - 3)[1]


def test_what_breaks_off_is_told_as_it_is(pool):
    def breaking():
        yield LAYER[:MIB]
        raise DamageError("it broke off")

    with pytest.raises(DamageError, match="it broke off"):
        pack(breaking(), io.BytesIO(), compression="zstd", level=2, pool=pool)


BIG_FRAME = zstandard.ZstdCompressor(level=3).compress(LAYER)
UNSIZED = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(LAYER)
SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\x00\x00\x00hello"
FOREIGN = {
    "one frame": BIG_FRAME,
    "without a size": UNSIZED,
    "with a checksum": zstandard.ZstdCompressor(write_checksum=True).compress(LAYER),
    "several frames": zstd.compress(LAYER[:MIB], 3) + zstd.compress(b"", 3) + zstd.compress(LAYER[MIB:], 3),
    "a skippable frame before, between and behind": SKIPPABLE
    + zstd.compress(LAYER[:MIB], 3)
    + SKIPPABLE
    + zstd.compress(LAYER[MIB:], 3)
    + SKIPPABLE,
    "gzip": gzip.compress(LAYER, 1),
    "gzip with a name": b"\x1f\x8b\x08\x08" + bytes(6) + b"layer.tar\0" + gzip.compress(LAYER, 1)[10:],
    "gzip of several members": b"".join(gzip.compress(LAYER[at : at + MIB], 1) for at in range(0, len(LAYER), MIB)),
    "gzip with zeros behind": gzip.compress(LAYER, 1) + bytes(1000),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("piece_bytes", [1021, MIB, 100 * MIB])
def test_what_others_packed_opens(kind, piece_bytes):
    assert _open(FOREIGN[kind], piece_bytes) == LAYER


@pytest.mark.parametrize("kind", ["one frame", "with a checksum", "gzip", "gzip of several members"])
def test_what_others_packed_opens_byte_for_byte(kind):
    whole = {"one frame": zstandard.compress, "with a checksum": zstandard.compress}.get(kind, gzip.compress)(
        b"x" * 300
    )

    assert _open(whole + whole, 1) == b"x" * 600


@pytest.mark.parametrize("kind", ["one frame", "without a size", "several frames", "gzip"])
def test_the_size_of_what_others_packed_is_not_known(kind):
    blob = FOREIGN[kind]

    assert raw_size(blob[-TABLE_TAIL:], len(blob)) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: blob[:4] + bytes(100) + blob[104:],
        lambda blob: blob[: len(blob) // 2] + os.urandom(64) + blob[len(blob) // 2 + 64 :],
        lambda blob: blob + b"something else",
    ],
    ids=["zeros", "noise", "more behind"],
)
@pytest.mark.parametrize("kind", ["with a checksum", "gzip"])
def test_a_damaged_layer_is_refused(kind, damage):
    with pytest.raises(DamageError):
        _open(damage(FOREIGN[kind]))


@pytest.mark.parametrize("blob", [b"\x1f\x8b", FOREIGN["gzip"][:-5], FOREIGN["gzip"][: len(FOREIGN["gzip"]) // 2]])
def test_a_gzipped_layer_that_is_cut_short_is_refused(blob):
    with pytest.raises(DamageError, match="ends too early"):
        _open(blob)


@pytest.mark.parametrize("blob", [b"", b"\0", b"abc", bytes(1024)])
def test_what_is_not_compressed_is_given_as_it_is(blob):
    assert _open(blob, 1) == blob


def _bombs():
    zeros = bytes(16 * MIB)
    yield "zstd", zstandard.ZstdCompressor(level=1).compress(zeros) * 4
    whole = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield "gzip", b"".join(whole.compress(zeros) for _ in range(4)) + whole.flush()


@pytest.mark.parametrize(("kind", "bomb"), list(_bombs()), ids=["zstd", "gzip"])
def test_a_bomb_goes_off_in_small_pieces(kind, bomb):
    tracemalloc.start()
    try:
        sizes = [len(piece) for piece in unpacked(iter([bomb]))]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert sum(sizes) == 64 * MIB
    assert max(sizes) <= MIB
    assert peak < 12 * MIB


def test_a_frame_that_wants_too_much_memory_is_refused():
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = compressor.compress(b"rock") + compressor.flush()

    with pytest.raises(DamageError):
        _open(blob)


def test_a_table_may_lie_and_nothing_comes_of_it():
    for rows in ([(5, 4 * MIB)] * 3, [(1, 1)], []):
        table = seek_table(rows)
        stated = raw_size(table[-TABLE_TAIL:], len(table) + sum(size for size, _ in rows))
        assert stated == sum(size for _, size in rows)
    for blob in (b"", b"short", seek_table([(5, 5)]), seek_table([(5, 5 * MIB)]), os.urandom(100)):
        assert raw_size(blob, len(blob)) is None


# What is checked on its way


def test_what_is_whole_passes():
    digest = Digest("sha512", hashlib.sha512(LAYER).hexdigest())

    assert b"".join(checked(_pieces(LAYER), digest, len(LAYER), "it")) == LAYER
    assert list(checked(iter([]), Digest.of(b""), 0, "it")) == []


@pytest.mark.parametrize(
    ("data", "size", "reason"),
    [
        (LAYER[:-1], len(LAYER), "ends after"),
        (LAYER + b"x", len(LAYER), "longer"),
        (LAYER[:-1] + bytes([LAYER[-1] ^ 1]), len(LAYER), "altered"),
        (b"\1" + LAYER[1:], len(LAYER), "altered"),
        (LAYER, len(LAYER) - 1, "longer"),
        (b"", len(LAYER), "ends after 0"),
        (b"x", 0, "longer"),
    ],
)
def test_what_is_not_whole_is_refused_before_its_end_comes_out(data, size, reason):
    taken = bytearray()
    with pytest.raises(DamageError, match=f"^layer 7 .*{reason}|^layer 7 .*is {reason}"):
        for piece in checked(_pieces(data), Digest.of(LAYER), size, "layer 7"):
            taken += piece

    # One who waits for all of the bytes does not get them, unless there are more of them.
    assert len(taken) < max(size, 1) or len(data) > size
