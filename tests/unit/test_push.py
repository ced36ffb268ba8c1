"""Push: what goes into the store, in which order, and what is left of it when something goes wrong."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from backups import memory_bucket
from fake_engine import AMD64, ARM64, OLD_API, FakeEngine, blobs_of, config_of, gzipped, index_of, layer_of, opened
from faulty import FaultyBucket, blob_key, read
from holdfast.errors import (
    DamageError,
    EngineUnavailable,
    HoldfastError,
    NoSpaceError,
    NotFoundError,
    TargetError,
    Unavailable,
    UsageError,
)
from holdfast.images import bundle
from holdfast.images.pull import PullOptions, pull
from holdfast.images.push import PushOptions, push
from holdfast.images.target import RegistryTarget
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName
from holdfast.model.oci import LARGEST_MANIFEST
from holdfast.model.urls import BucketUrl
from holdfast.progress import Progress
from holdfast.storage.store import KnownLayer, Store

SMALL, LARGE, OTHER, MORE, ARM = (layer_of(size, size) for size in (3_000, 300_000, 310_000, 320_000, 330_000))
LAYERS = [LARGE, SMALL, OTHER]
BOTH_SHAPES = pytest.mark.parametrize("old_shape", [True, False], ids=["old", "new"])
TAG = "docker/registry/v2/repositories/app/_manifests/tags/1/current/link"


@pytest.fixture(autouse=True)
def small_bytes(monkeypatch):
    """Layers above 16 KiB are streamed: the tests need no large ones."""
    monkeypatch.setattr(bundle, "SMALL_BYTES", 16 * 1024)


@pytest.fixture
def bucket():
    return FaultyBucket(memory_bucket())


@pytest.fixture
def store(bucket):
    return Store(bucket)


def _push(store, engine, image="app:1", progress=None, **options):
    return push(store, engine, image, PushOptions(**options), progress or Progress())


def _pulled(store, image="app:1", **kind):
    """What an engine has once it has pulled an image: its id, and its layers."""
    engine = FakeEngine(**kind)
    done = pull(store, image, [engine], PullOptions(), Progress(), called=None)
    return done.image_id, engine.layers(image)


def _puts(bucket):
    return [key for kind, key in bucket.calls if kind in ("put", "put_stream")]


def _is_blob(key):
    return "/blobs/" in key


@BOTH_SHAPES
@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_an_image_comes_back_as_it_was_with_its_id(store, old_shape, compression):
    engine = FakeEngine(old_shape=old_shape)
    image = engine.build("app:1", LAYERS)

    done = _push(store, engine, compression=compression)

    assert done.image_id == str(image)
    assert (done.layers_sent, done.layers_known, done.read_engine) == (3, 0, True)
    assert done.names == ("app:1",)
    assert _pulled(store) == (str(image), LAYERS)
    assert _pulled(store, keeps_blobs=True) == (done.digest, LAYERS)
    if compression != "none":
        assert done.bytes_sent < 0.75 * sum(map(len, LAYERS))


@BOTH_SHAPES
@pytest.mark.parametrize("layers", [[], [SMALL], [LARGE, LARGE], [SMALL, LARGE, SMALL, LARGE, SMALL]], ids=len)
def test_an_image_may_have_no_layers_or_the_same_one_twice(store, old_shape, layers):
    engine = FakeEngine(old_shape=old_shape)
    image = engine.build("app:1", layers)

    done = _push(store, engine)

    assert done.layers_sent == len(set(layers))
    assert _pulled(store) == (str(image), layers)


def test_nothing_is_read_from_the_engine_when_all_is_known(store, bucket):
    engine = FakeEngine()
    engine.build("app:1", LAYERS)
    _push(store, engine)
    bucket.calls.clear()

    again = _push(store, engine)
    retagged = _push(
        store, FakeEngine(names={"app:2": engine.names["app:1"]}, roots=engine.roots, content=engine.content), "app:2"
    )

    assert engine.saves == 1
    assert (again.bytes_sent, again.layers_sent, again.layers_known, again.read_engine) == (0, 0, 3, False)
    assert again.digest == retagged.digest
    assert _pulled(store, "app:2")[1] == LAYERS
    assert not [key for key in _puts(bucket) if _is_blob(key) and bucket.inner.size(key) > LARGEST_MANIFEST // 100]


@BOTH_SHAPES
def test_only_what_is_missing_is_put(store, bucket, old_shape):
    engine = FakeEngine(old_shape=old_shape)
    engine.build("app:1", [LARGE, SMALL])
    _push(store, engine)
    before = set(_puts(bucket))
    engine.build("app:2", [LARGE, SMALL, MORE])

    done = _push(store, engine, "app:2")

    assert (done.layers_sent, done.layers_known) == (1, 2)
    blobs = {key for key in _puts(bucket) if _is_blob(key)} - before
    assert len(blobs) == 3  # the layer, the config, the manifest
    assert _pulled(store, "app:2")[1] == [LARGE, SMALL, MORE]


def test_a_layer_of_another_images_size_is_no_mistake(store):
    twin = layer_of(300_000, "a twin")
    assert len(twin) == len(LARGE)
    engine = FakeEngine(old_shape=True)
    engine.build("app:1", [LARGE])
    _push(store, engine)
    image = engine.build("app:2", [LARGE, twin, SMALL])

    done = _push(store, engine, "app:2")

    assert done.layers_sent == 2
    assert _pulled(store, "app:2") == (str(image), [LARGE, twin, SMALL])


def test_a_known_layer_whose_blob_is_gone_is_sent_again(store, bucket):
    engine = FakeEngine()
    engine.build("app:1", [LARGE, SMALL])
    _push(store, engine)
    known = store.known_layer(Digest.of(LARGE))
    bucket.inner.delete(blob_key(known.digest))

    done = _push(store, engine)

    assert done.layers_sent == 1
    assert _pulled(store)[1] == [LARGE, SMALL]


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{}",
        b"no json",
        b'{"digest": "\x80"}',
        b'{"mediaType": "x", "digest": "sha256:12", "size": 3}',
        b'{"a": ' + b"[" * 4000,
        b"x" * 5000,
    ],
)
def test_a_damaged_note_of_a_layer_is_no_obstacle(store, bucket, note):
    engine = FakeEngine()
    engine.build("app:1", [LARGE])
    bucket.put(f"holdfast/layers/sha256/{Digest.of(LARGE).hex}", note)

    assert _push(store, engine).layers_sent == 1
    assert _pulled(store)[1] == [LARGE]


@pytest.mark.parametrize("keeps_blobs", [True, False], ids=["containerd", "classic"])
@pytest.mark.parametrize("what", ["config", "manifest"])
@pytest.mark.parametrize("how", ["gone", "altered"])
def test_a_second_push_mends_a_small_blob_that_was_lost(store, bucket, keeps_blobs, what, how):
    engine = FakeEngine(keeps_blobs=keeps_blobs)
    if keeps_blobs:
        engine.fetch("app:1", blobs_of(LAYERS))
    else:
        engine.build("app:1", LAYERS)
    done = _push(store, engine)
    manifest = json.loads(read(bucket, blob_key(done.digest)))
    key = blob_key(done.digest if what == "manifest" else manifest["config"]["digest"])
    data = read(bucket, key)
    if how == "gone":
        bucket.delete(key)
    else:
        bucket.put(key, data.replace(b"linux", b"lynux").replace(b"layers", b"loyers"))

    _push(store, engine)

    assert read(bucket, key) == data
    assert _pulled(store)[1] == LAYERS


# Names


def test_by_its_id_it_gets_all_the_names_that_the_engine_has(store):
    engine = FakeEngine()
    image = engine.build("app:1", [SMALL])
    engine.build("team/app:latest", [SMALL])

    for reference in (str(image), image.hex, image.hex[:12]):
        assert sorted(_push(store, engine, reference).names) == ["app:1", "team/app:latest"]
    assert _pulled(store, "team/app:latest")[0] == str(image)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ("nosuch:1", NotFoundError),
        ("f" * 64, NotFoundError),
        ("No Name", UsageError),
        ("app:1:2", UsageError),
        ("../app", UsageError),
    ],
)
def test_an_image_that_is_not_there_or_no_name_leaves_nothing(store, bucket, image, error):
    engine = FakeEngine()
    engine.build("app:1", [SMALL])

    with pytest.raises(error):
        _push(store, engine, image)
    assert not _puts(bucket)


def test_an_image_without_a_name_is_refused_with_a_way_out(store, bucket):
    engine = FakeEngine()
    image = engine.build(None, [SMALL])

    with pytest.raises(UsageError) as refused:
        _push(store, engine, image.hex[:12])
    assert "docker tag" in refused.value.hint
    assert not _puts(bucket)


def test_names_with_ports_and_reserved_ones_come_back(store):
    engine = FakeEngine()
    for name in ("localhost:5000/app:1", "volumes/data:1", "Reg.example/app:1"):
        image = engine.build(name, [SMALL])
        _push(store, engine, name)
        assert _pulled(store, name)[0] == str(image)


# Order of writing


def _order(key):
    """Which of these may be written after which: docs/reference/format.md."""
    steps = ("holdfast/", "/blobs/", "/_layers/", "/revisions/", "/index/", "/current/")
    return next(number for number, part in enumerate(steps) if part in key)


@pytest.mark.parametrize("keeps_blobs", [True, False], ids=["containerd", "classic"])
def test_whatever_a_reader_can_reach_is_already_there(store, bucket, keeps_blobs):
    engine = FakeEngine(keeps_blobs=keeps_blobs)
    if keeps_blobs:
        engine.fetch("app:1", index_of({AMD64: blobs_of(LAYERS), ARM64: blobs_of([MORE, ARM], ARM64)}))
    else:
        engine.build("app:1", LAYERS)
    bucket.calls.clear()

    done = _push(store, engine)

    puts = _puts(bucket)
    assert puts[-1] == TAG
    assert puts[-2].endswith(f"/index/sha256/{done.digest[7:]}/link")
    seen = set()
    for key in puts:
        if "/_layers/" in key or "/revisions/" in key or "/index/" in key:
            named = "sha256:" + key.split("/")[-2]
            assert blob_key(named) in seen, key
        if "holdfast/layers/" in key:
            known = json.loads(read(bucket, key))
            assert blob_key(known["digest"]) in seen, key
        seen.add(key)
    revisions = [number for number, key in enumerate(puts) if "/revisions/" in key]
    layers = [number for number, key in enumerate(puts) if "/_layers/" in key]
    assert max(layers) < min(revisions)
    root = puts.index(blob_key(done.digest))
    assert all(number < root for number in revisions[:-1])


def _state(store, bucket, images):
    """Which of the images a tag leads to, all of it there; None where there is no tag."""
    inner = Store(bucket.inner)
    if bucket.inner.size(TAG) is None:
        return None
    image, layers = _pulled(inner)
    assert (image, layers) in images
    return image


@BOTH_SHAPES
@pytest.mark.parametrize("how", ["once", "lost", "dead"])
def test_wherever_the_bucket_fails_a_tag_leads_to_what_is_whole(old_shape, how):
    engine = FakeEngine(old_shape=old_shape)
    old = (str(engine.build("app:1", [LARGE, SMALL])), [LARGE, SMALL])
    first_names = dict(engine.names)
    new_layers = [LARGE, OTHER, SMALL]
    new = (str(engine.build("app:1", new_layers)), new_layers)
    new_names = dict(engine.names)
    at = 0
    while True:
        at += 1
        inner = memory_bucket()
        engine.names = dict(first_names)
        _push(Store(inner), engine)
        bucket = FaultyBucket(inner, at=at, how=how)
        engine.names = dict(new_names)
        try:
            _push(Store(bucket), engine)
        except Unavailable:
            assert bucket.hit
        found = _state(Store(inner), bucket, [old, new])
        if not bucket.hit:
            assert found == new[0]
            break
        _push(Store(inner), engine)
        assert _pulled(Store(inner)) == new
    assert at > 15


@pytest.mark.parametrize("how", ["once", "lost", "dead"])
def test_wherever_the_bucket_fails_an_index_is_tagged_whole_or_not_at_all(how):
    index = index_of({AMD64: blobs_of(LAYERS), ARM64: blobs_of([MORE, ARM], ARM64)})
    engine = FakeEngine(keeps_blobs=True)
    engine.fetch("app:1", index)
    at = 0
    while True:
        at += 1
        inner = memory_bucket()
        bucket = FaultyBucket(inner, at=at, how=how)
        try:
            _push(Store(bucket), engine)
        except Unavailable:
            assert bucket.hit
        if inner.size(TAG) is None:
            _push(Store(inner), engine)
        assert _pulled(Store(inner), keeps_blobs=True) == (str(index.root), LAYERS)
        assert _pulled(Store(inner), keeps_blobs=True, platform=ARM64) == (str(index.root), [MORE, ARM])
        if not bucket.hit:
            break
    assert at > 20


def test_two_pushes_of_one_tag_at_once_are_both_whole(store):
    engines = [FakeEngine(), FakeEngine()]
    images = [
        (str(engine.build("app:1", layers)), layers)
        for engine, layers in zip(engines, ([LARGE, SMALL], [LARGE, OTHER]), strict=True)
    ]
    together = threading.Barrier(2)

    def pushed(engine):
        together.wait(30)
        return _push(store, engine)

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(pushed, engines))

    assert _pulled(store) in images
    for one, image in zip(done, images, strict=True):
        receiver = FakeEngine()
        pull(store, f"app@{one.digest}", [receiver], PullOptions(), Progress())
        assert receiver.inspect(image[0]).is_whole


# What engines give


@BOTH_SHAPES
@pytest.mark.parametrize("cut", [0, 1, 600, 5_000, 200_000, 400_000])
def test_an_engine_that_breaks_off_leaves_no_tag(store, bucket, old_shape, cut):
    engine = FakeEngine(old_shape=old_shape, breaks_save_after=cut)
    engine.build("app:1", LAYERS)

    with pytest.raises(EngineUnavailable):
        _push(store, engine)
    assert bucket.inner.size(TAG) is None

    engine.breaks_save_after = None
    _push(store, engine)
    assert _pulled(store)[1] == LAYERS


def _less(members, *, without):
    return {path: data for path, data in members.items() if not without(path, data)}


def _other_config(members):
    return {
        path: data.replace(b"/bin/app", b"/bin/b__") if isinstance(data, bytes) else data
        for path, data in members.items()
    }


def _altered(layer):
    other = layer[:-2000] + b"altered" + layer[-1993:]
    return lambda members: {path: other if data == layer else data for path, data in members.items()}


def _listed(change):
    def damage(members):
        (listed,) = json.loads(members["manifest.json"])
        return members | {"manifest.json": json.dumps([change(listed)]).encode()}

    return damage


DAMAGES = {
    "no list": lambda members: _less(members, without=lambda path, data: path == "manifest.json"),
    "a list that is none": lambda members: members | {"manifest.json": b"{"},
    "a huge list": lambda members: members | {"manifest.json": b" " * 20_000 + members["manifest.json"]},
    "no config": lambda members: _less(members, without=lambda path, data: b"rootfs" in data),
    "another config": _other_config,
    "no large layer": lambda members: _less(members, without=lambda path, data: data == OTHER),
    "no small layer": lambda members: _less(members, without=lambda path, data: data == SMALL),
    "an altered large layer": _altered(OTHER),
    "an altered small layer": _altered(SMALL),
    "fewer layers in the list": _listed(lambda listed: listed | {"Layers": listed["Layers"][:-1]}),
    "more layers in the list": _listed(lambda listed: listed | {"Layers": listed["Layers"] * 2}),
    "a circle": lambda members: (
        {path: "layer.tar" if path.endswith("layer.tar") else data for path, data in members.items()}
        | _listed(lambda listed: listed | {"Config": "a"})(members)
        | {"a": "b", "b": "a"}
    ),
}


@BOTH_SHAPES
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_the_image_is_never_tagged(store, bucket, old_shape, damage):
    engine = FakeEngine(old_shape=old_shape, damages=DAMAGES[damage])
    engine.build("app:1", LAYERS)

    with pytest.raises(DamageError):
        _push(store, engine)
    assert bucket.inner.size(TAG) is None


def test_a_config_larger_than_registries_take_is_refused(store, bucket):
    engine = FakeEngine(old_shape=True)
    engine.build("app:1", [SMALL], config=config_of([SMALL], history=["x" * LARGEST_MANIFEST]))

    with pytest.raises(DamageError, match="config"):
        _push(store, engine)
    assert bucket.inner.size(TAG) is None


def test_a_full_directory_for_temporary_files_is_named(store, bucket, tmp_path, monkeypatch):
    engine = FakeEngine()
    engine.build("app:1", LAYERS)
    monkeypatch.setattr("holdfast.images.push.SMALL_BYTES", 1000)

    with pytest.raises(TargetError, match="nosuch") as refused:
        _push(store, engine, tempdir=str(tmp_path / "nosuch"))
    assert "--tempdir" in refused.value.hint
    assert bucket.inner.size(TAG) is None


def test_no_room_for_temporary_files_is_told_as_such(store, bucket, monkeypatch):
    engine = FakeEngine()
    engine.build("app:1", LAYERS)
    monkeypatch.setattr("holdfast.images.push.SMALL_BYTES", 1000)
    monkeypatch.setattr("holdfast.images.spool.TemporaryFile", lambda **_: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115

    with pytest.raises(NoSpaceError):
        _push(store, engine)
    assert bucket.inner.size(TAG) is None


def test_layout_that_holds_no_images_is_refused():
    engine = FakeEngine()
    engine.build("app:1", [SMALL])
    store = Store(memory_bucket())
    store.bucket.url = type(store.bucket.url).parse(f"{store.bucket.url}?layout=tarball")

    with pytest.raises(UsageError, match="layout tarball"):
        _push(store, engine)


def test_progress_tells_of_each_layer(store):
    engine = FakeEngine()
    engine.build("app:1", LAYERS)
    progress = Progress()

    done = _push(store, engine, progress=progress)

    layers = [part for part in progress.parts if part.name.startswith("layer ")]
    assert len(layers) == 3
    assert {part.state for part in layers} == {"done"}
    assert all(part.done == part.total > 0 for part in layers)
    assert progress.bytes_stored == done.bytes_sent > 0


# containerd's store


@pytest.mark.parametrize("pack", [gzipped, bytes], ids=["gzip", "none"])
@pytest.mark.parametrize("api", [(1, 47), (1, 48)], ids=str)
def test_a_containerd_image_keeps_its_digest_and_its_blobs(store, bucket, pack, api):
    image = blobs_of(LAYERS, pack=pack)
    engine = FakeEngine(keeps_blobs=True, api=api)
    engine.fetch("app:1", image)

    done = _push(store, engine)
    again = _push(store, engine)

    assert done.digest == done.image_id == str(image.root)
    assert {digest: read(bucket, blob_key(str(digest))) for digest in image.content} == image.content
    assert _pulled(store, keeps_blobs=True) == (str(image.root), LAYERS)
    assert _pulled(store)[1] == LAYERS
    assert (again.read_engine, again.bytes_sent) == (False, 0)
    assert done.layers_sent == 3


def test_an_index_with_absent_platforms_is_kept_whole(store, bucket):
    arm = blobs_of([MORE], ARM64)
    index = index_of({AMD64: blobs_of(LAYERS), ARM64: arm})
    engine = FakeEngine(keeps_blobs=True)
    engine.fetch("app:1", index.without(*arm.content))

    done = _push(store, engine)

    assert done.digest == str(index.root)
    assert read(bucket, blob_key(done.digest)) == index.content[index.root]
    assert _pulled(store, keeps_blobs=True) == (str(index.root), LAYERS)
    assert not _push(store, engine).read_engine
    with pytest.raises(HoldfastError):
        _pulled(store, keeps_blobs=True, platform=ARM64)


@pytest.mark.parametrize("absent", ["all", "a layer"])
def test_a_platform_that_is_fetched_later_is_pushed_later(store, absent):
    arm = blobs_of([MORE, ARM], ARM64)
    index = index_of({AMD64: blobs_of(LAYERS), ARM64: arm})
    lacking = arm.content if absent == "all" else [d for d, data in arm.content.items() if data[:2] == b"\x1f\x8b"]
    engine = FakeEngine(keeps_blobs=True)
    engine.fetch("app:1", index.without(*lacking))
    _push(store, engine)

    engine.fetch("app:1", index)
    _push(store, engine)

    assert _pulled(store, keeps_blobs=True, platform=ARM64) == (str(index.root), [MORE, ARM])
    assert not _push(store, engine).read_engine


@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
def test_a_containerd_image_that_is_not_whole_is_not_tagged(store, bucket, part):
    image = blobs_of(LAYERS)
    chosen = {
        "layer": lambda data: data[:2] == b"\x1f\x8b" and opened(data) == SMALL,
        "config": lambda data: b"rootfs" in data,
        "manifest": lambda data: data == image.content[image.root],
    }[part]
    engine = FakeEngine(keeps_blobs=True, damages=lambda members: _less(members, without=lambda _, data: chosen(data)))
    engine.fetch("app:1", image)

    with pytest.raises(DamageError):
        _push(store, engine)
    assert bucket.inner.size(TAG) is None


def test_an_index_of_indexes_without_end_is_refused_in_good_time(store, bucket):
    inner = blobs_of([SMALL])
    for _ in range(60):  # each names the one below twice: two to the power of 60 ways down
        entry = {"mediaType": inner.root_type, "digest": str(inner.root), "size": len(inner.content[inner.root])}
        data = json.dumps({"schemaVersion": 2, "manifests": [entry, entry | {"size": 1}]}).encode()
        inner = type(inner)(Digest.of(data), inner.root_type, inner.content | {Digest.of(data): data})
    target = _target(store)

    with pytest.raises(DamageError):
        target.publish_tree(inner.root, inner.content.get)
    assert bucket.inner.size(TAG) is None


def _target(store):
    return RegistryTarget(store, [ImageName.parse("app:1")], "zstd", Progress())


def test_an_old_engine_pushes_what_a_new_one_pulls_and_the_other_way_round(store):
    old = FakeEngine(old_shape=True, api=OLD_API)
    image = old.build("app:1", LAYERS)

    _push(store, old)

    assert _pulled(store, api=OLD_API) == (str(image), LAYERS)
    assert _pulled(store) == (str(image), LAYERS)


def test_layers_noted_by_somebody_else_as_something_else_are_no_help_to_him(store, bucket):
    engine = FakeEngine()
    engine.build("app:1", [LARGE])
    other = b"not that layer"
    bucket.put(blob_key(str(Digest.of(other))), other)
    known = KnownLayer(media_type="x", digest=str(Digest.of(other)), size=len(other), raw_size=len(LARGE))
    store.note_layer(Digest.of(LARGE), known)
    _push(store, engine)

    with pytest.raises(HoldfastError):  # no engine takes it for that layer
        _pulled(store)


def test_layers_of_one_size_are_not_taken_for_each_other(store):
    layers = [layer_of(300_000, seed) for seed in (7, 8, 9)]
    assert len({len(layer) for layer in layers}) == 1
    engine = FakeEngine(old_shape=True)
    engine.build("app:1", layers)

    assert _push(store, engine).layers_sent == 3
    assert engine.saves == 1


def test_an_old_layout_behind_a_newer_one_is_said_to_be(bucket, store):
    engine = FakeEngine()
    engine.build("app:1", LAYERS)
    _push(store, engine)
    old = Store(FaultyBucket(bucket.inner))
    old.bucket.url = BucketUrl.parse(f"{bucket.url}?layout=dogestry")
    progress = Progress()

    _push(old, engine, progress=progress)

    assert [warning for warning in progress.warnings if "app:1 in layout registry too" in warning]
