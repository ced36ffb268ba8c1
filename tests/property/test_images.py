"""Images: names and repositories, layers packed and opened, and every way from an engine to others."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from unittest.mock import patch

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from backups import memory_bucket
from fake_engine import OLD_API, FakeEngine, blobs_of, gzipped, layer_of, opened
from faulty import blob_key, read
from holdfast.archive.blobs import checked, pack, unpacked
from holdfast.errors import DamageError, HoldfastError, UsageError
from holdfast.images import bundle
from holdfast.images.bundle import read_saved
from holdfast.images.pull import PullOptions, pull
from holdfast.images.push import PushOptions, push
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName
from holdfast.model.names import Repository, SourceName
from holdfast.model.oci import ImageConfig, read_manifest
from holdfast.progress import Progress
from holdfast.storage.store import Store

# https://github.com/opencontainers/distribution-spec, <name>
OCI = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")

components = st.one_of(
    st.sampled_from(["volumes", "paths", "library", "docker.io", "localhost", "x--mfza", "h--a", "a.b", "app"]),
    st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}", fullmatch=True),
)
hosts = st.sampled_from(
    [
        "",
        "",
        "docker.io/",
        "index.docker.io/",
        "localhost/",
        "localhost:5000/",
        "Reg.Example/",
        "[::1]:5000/",
        "a.b:80/",
    ]
)
names = st.builds(lambda host, parts: host + "/".join(parts), hosts, st.lists(components, min_size=1, max_size=4))


def _parsed(text):
    try:
        return ImageName.parse(text)
    except UsageError:
        return None


@given(names)
def test_a_name_goes_to_a_repository_and_comes_back(text):
    name = _parsed(text)
    assume(name is not None)

    assert OCI.fullmatch(name.repository.name)
    assert SourceName.of_repository(name.repository) is None
    assert ImageName.of_repository(name.repository) == name.name
    assert ImageName.parse(str(name)) == name


@given(st.lists(names, max_size=8))
def test_two_names_never_share_a_repository(texts):
    several = {name.name: name.repository for name in map(_parsed, texts) if name is not None}

    assert len(set(several.values())) == len(several)


@given(st.from_regex(r"(x--|h--|volumes/|paths/)?[a-z0-9][a-z0-9/.x-]{0,20}", fullmatch=True))
def test_a_repository_is_called_what_leads_to_it_and_shows_nothing_odd(text):
    try:
        repository = Repository(text)
    except UsageError:
        return
    name = ImageName.of_repository(repository)

    assert name is None or name == repository.name or ImageName.parse(name).repository == repository
    assert (name or "").isprintable()


@given(st.text(max_size=60))
def test_whatever_is_no_name_is_told_as_such(text):
    name = _parsed(text)

    assert name is None or ImageName.parse(str(name)) == name


# Bytes


def _pieces(data, cuts):
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return iter([data[start:end] for start, end in pairwise(places)])


cuts = st.lists(st.integers(0, 5000), max_size=6)
layers_bytes = st.one_of(st.binary(max_size=3000), st.builds(layer_of, st.integers(0, 4000), st.integers()))


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@given(data=layers_bytes, cuts=cuts, frame=st.integers(1, 1500), compression=st.sampled_from(["zstd", "gzip", "none"]))
def test_what_is_packed_is_what_anybody_opens(pool, data, cuts, frame, compression):
    assume(compression != "none" or data[:2] != b"\x1f\x8b")
    file = io.BytesIO()
    with patch("holdfast.archive.blobs.FRAME_BYTES", frame):
        packed = pack(_pieces(data, cuts), file, compression=compression, level=1, pool=pool)
    blob = file.getvalue()

    assert (packed.diff_id, packed.raw_size) == (Digest.of(data), len(data))
    assert (packed.digest, packed.size) == (Digest.of(blob), len(blob))
    assert b"".join(unpacked(_pieces(blob, cuts))) == data
    assert compression == "none" or opened(blob) == data


@given(
    data=layers_bytes, cuts=cuts, change=st.tuples(st.integers(0, 5000), st.integers(0, 255)), cut=st.integers(0, 90)
)
def test_only_what_is_whole_is_passed_on_whole(data, cuts, change, cut):
    altered = bytearray(data)
    if data:
        altered[change[0] % len(data)] = change[1]
    altered = bytes(altered[: len(altered) - cut])
    try:
        given_bytes = b"".join(checked(_pieces(altered, cuts), Digest.of(data), len(data), "it"))
    except DamageError:
        assert altered != data
    else:
        assert given_bytes == altered == data


@given(data=st.binary(max_size=300), begin=st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd"]))
def test_whatever_is_no_layer_is_damage_at_most(data, begin):
    with suppress(DamageError):
        list(unpacked(iter([begin + data])))


@given(
    st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.integers(), st.lists).map(lambda x: str(x).encode()))
)
def test_whatever_is_no_manifest_is_damage(data):
    for decode in (read_manifest, ImageConfig.decode):
        with suppress(DamageError):
            decode(data)


SAVED = {
    old_shape: b"".join(
        (engine := FakeEngine(old_shape=old_shape)).save(
            str(engine.build("app:1", [layer_of(3000), layer_of(2000, "x"), layer_of(3000)]))
        )
    )
    for old_shape in (True, False)
}


@given(st.booleans(), st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=12)), max_size=4), cuts)
@settings(max_examples=150)
def test_a_saved_archive_with_other_bytes_is_damage_at_most(old_shape, changes, cuts):
    data = bytearray(SAVED[old_shape])
    for place, other in changes:
        start = place % (len(data) - len(other))
        data[start : start + len(other)] = other
    try:
        saved = read_saved(_pieces(bytes(data), [cut * 10 for cut in cuts]), lambda *_: None)
        for image in saved.images:
            for path in (image.config, *(image.layers or [])):
                saved.path(path)
        _ = saved.roots
    except DamageError:
        assert changes


# From an engine to others

LAYERS = [layer_of(size, size) for size in (500, 3000, 3001, 30_000, 31_000)] + [layer_of(30_000, "a twin")]
stacks = st.lists(st.sampled_from(LAYERS), max_size=5)
senders = st.sampled_from(["old", "classic", "containerd"])
receivers = st.sampled_from([{"api": OLD_API}, {}, {"keeps_blobs": True}, {"keeps_blobs": True, "api": (1, 47)}])


def _send(store, sender, name, layers, compression):
    engine = FakeEngine(keeps_blobs=sender == "containerd", old_shape=sender == "old")
    if sender == "containerd":
        engine.fetch(name, blobs_of(layers, pack=gzipped if compression == "gzip" else bytes))
    else:
        engine.build(name, layers)
    return push(store, engine, name, PushOptions(compression=compression), Progress())


@given(
    before=st.lists(st.tuples(senders, stacks), max_size=3),
    sender=senders,
    layers=stacks,
    compression=st.sampled_from(["zstd", "gzip", "none"]),
    kinds=st.lists(receivers, min_size=1, max_size=3),
    had=st.lists(st.integers(0, 2), max_size=3),
    refuses=st.booleans(),
)
def test_every_image_arrives_as_it_was_whatever_was_there_before(
    before, sender, layers, compression, kinds, had, refuses
):
    store = Store(memory_bucket())
    engines = [FakeEngine(f"unix:///run/{number}", **kind) for number, kind in enumerate(kinds)]
    with patch.object(bundle, "SMALL_BYTES", 16 * 1024):
        for number, (other, stack) in enumerate(before):
            _send(store, other, f"before:{number}", stack, compression)
            if number in had:
                pull(store, f"before:{number}", engines, PullOptions(), Progress())
        pushed = _send(store, sender, "app:1", layers, compression)
    for engine in engines:
        engine.refuses_partial = refuses

    done = pull(store, "app:1", engines, PullOptions(), Progress())
    again = pull(store, "app:1", engines, PullOptions(), Progress())

    assert done.complete
    for engine, host in zip(engines, done.hosts, strict=True):
        assert engine.layers("app:1") == layers
        assert host.image_id == (pushed.digest if engine.keeps_blobs else _config_of(store, pushed.digest))
    assert {host.state for host in again.hosts} == {"up to date"}
    assert again.bytes_read == 0
    assert sender == "containerd" or pushed.image_id == _config_of(store, pushed.digest)


def _config_of(store, digest):
    return read_manifest(read(store.bucket, blob_key(digest))).config.digest


@given(
    place=st.integers(0, 2**20),
    other=st.binary(min_size=1, max_size=3),
    which=st.integers(0, 10),
    kind=receivers,
)
def test_nothing_that_is_altered_in_the_bucket_gets_a_name(place, other, which, kind):
    store = Store(memory_bucket())
    _send(store, "classic", "app:1", LAYERS[:4], "zstd")
    keys = sorted(info.key for info in store.bucket.objects("docker") if "/blobs/" in info.key)
    key = keys[which % len(keys)]
    data = read(store.bucket, key)
    start = place % len(data)
    altered = data[:start] + other + data[start + len(other) :]
    assume(altered != data)
    store.bucket.put(key, altered)
    engine = FakeEngine(**kind)

    with pytest.raises(HoldfastError):
        pull(store, "app:1", [engine], PullOptions(), Progress())
    assert not engine.names
    assert not engine.roots
