"""Pull: what engines have afterwards, what travels, and what one engine's trouble does to the others."""

import json
import threading

import pytest
import zstandard

from backups import memory_bucket
from fake_engine import (
    AMD64,
    ARM64,
    OLD_API,
    FakeEngine,
    blobs_of,
    config_of,
    gzipped,
    index_of,
    layer_of,
    opened,
)
from faulty import READS, FaultyBucket, blob_key, read
from holdfast.archive.frames import seek_table
from holdfast.errors import (
    DamageError,
    EngineError,
    EngineUnavailable,
    HoldfastError,
    NoSpaceError,
    NotFoundError,
    Unavailable,
    UsageError,
)
from holdfast.images import bundle, fleet
from holdfast.images.pull import PullOptions, pull
from holdfast.images.push import PushOptions, push
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName
from holdfast.progress import Progress
from holdfast.storage.store import Store

SMALL, LARGE, OTHER, MORE = (layer_of(size, size) for size in (3_000, 300_000, 310_000, 320_000))
LAYERS = [LARGE, SMALL, OTHER]
KINDS = {
    "old": {"api": OLD_API, "old_shape": True},
    "classic": {},
    "containerd": {"keeps_blobs": True},
    "containerd that tells less": {"keeps_blobs": True, "api": (1, 47)},
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


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


def _put(store, name="app:1", layers=LAYERS, compression="zstd"):
    """Have an image in the store; its id."""
    engine = FakeEngine()
    engine.build(name, layers)
    return push(store, engine, name, PushOptions(compression=compression), Progress())


def _put_blobs(store, image, name="app:1"):
    """Have an image in the store as somebody else packed it."""
    engine = FakeEngine(keeps_blobs=True)
    engine.fetch(name, image)
    return push(store, engine, name, PushOptions(), Progress())


def _pull(store, *engines, image="app:1", progress=None, called=None, **options):
    return pull(store, image, engines, PullOptions(**options), progress or Progress(), called=called)


def _four(**faults):
    kinds = [{}, {"keeps_blobs": True}, {}, {"keeps_blobs": True}]
    return [FakeEngine(f"unix:///run/{number}.sock", **kind) for number, kind in enumerate(kinds)]


def _layer_blobs(store, done):
    manifest = json.loads(read(store.bucket.inner, blob_key(done.digest)))
    return [blob_key(layer["digest"]) for layer in manifest["layers"]]


def _reads(bucket, keys):
    return [key for kind, key in bucket.calls if kind in ("get", "get_range") and key in keys]


def _states(done):
    return [host.state for host in done.hosts]


@EACH_KIND
@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
@pytest.mark.parametrize("layers", [LAYERS, [], [SMALL, LARGE, SMALL, LARGE]], ids=["three", "none", "twice"])
def test_every_engine_gets_what_was_pushed(store, kind, compression, layers):
    pushed = _put(store, layers=layers, compression=compression)
    engine = FakeEngine(**KINDS[kind])

    done = _pull(store, engine)

    assert engine.layers("app:1") == layers
    assert done.image_id == (pushed.digest if engine.keeps_blobs else pushed.image_id)
    assert _states(done) == ["pulled"]
    assert done.complete
    assert done.digest == pushed.digest


@EACH_KIND
def test_what_is_there_is_not_sent_again(store, bucket, kind):
    pushed = _put(store)
    engine = FakeEngine(**KINDS[kind])
    _pull(store, engine)
    bucket.calls.clear()

    again = _pull(store, engine)

    assert _states(again) == ["up to date"]
    assert (again.bytes_read, again.hosts[0].bytes_sent, len(engine.loaded)) == (0, 0, 1)
    assert not _reads(bucket, _layer_blobs(store, pushed))


@EACH_KIND
def test_an_image_that_lacks_only_its_name_gets_it(store, kind):
    _put(store)
    engine = FakeEngine(**KINDS[kind])
    _pull(store, engine)
    image = engine.names.pop("app:1")

    done = _pull(store, engine)

    assert engine.names == {"app:1": image}
    assert (_states(done), done.bytes_read, len(engine.loaded)) == (["pulled"], 0, 1)


@EACH_KIND
def test_a_name_moves_to_the_new_image(store, kind):
    _put(store)
    engine = FakeEngine(**KINDS[kind])
    before = _pull(store, engine)
    _put(store, layers=[MORE])

    after = _pull(store, engine)

    assert engine.layers("app:1") == [MORE]
    assert before.image_id != after.image_id == str(engine.names["app:1"])


@EACH_KIND
def test_only_the_layers_that_are_missing_travel(store, bucket, kind):
    _put(store, "app:1", [LARGE, SMALL])
    engine = FakeEngine(**KINDS[kind])
    _pull(store, engine)
    pushed = _put(store, "app:2", [LARGE, SMALL, MORE])
    bucket.calls.clear()

    done = _pull(store, engine, image="app:2")

    below, small, above = _layer_blobs(store, pushed)
    assert engine.layers("app:2") == [LARGE, SMALL, MORE]
    assert set(_reads(bucket, {below, small, above})) == {above}
    assert done.hosts[0].layers == 1
    assert done.bytes_read == bucket.inner.size(above)


def test_a_layer_upon_others_is_of_no_use_to_a_classic_engine(store):
    _put(store, "app:1", [LARGE, OTHER])
    engine = FakeEngine()
    _pull(store, engine)
    _put(store, "app:2", [MORE, OTHER])

    done = _pull(store, engine, image="app:2")

    assert engine.layers("app:2") == [MORE, OTHER]
    assert (done.hosts[0].layers, len(engine.loaded)) == (2, 2)


@EACH_KIND
def test_a_known_layer_that_comes_once_more_above_is_sent(store, kind):
    _put(store, "app:1", [LARGE])
    engine = FakeEngine(**KINDS[kind])
    _pull(store, engine)
    _put(store, "app:2", [LARGE, OTHER, LARGE])

    _pull(store, engine, image="app:2")

    assert engine.layers("app:2") == [LARGE, OTHER, LARGE]
    assert len(engine.loaded) == 2


# Engines that do not do as they should


@pytest.mark.parametrize("kind", ["old", "classic", "containerd"])
@pytest.mark.parametrize("fault", [{"refuses_partial": True}, {"loses": 1}], ids=["refused", "lost"])
def test_a_partial_load_that_is_no_good_is_followed_by_a_whole_one(store, kind, fault):
    _put(store, "app:1", [LARGE])
    engine = FakeEngine(**KINDS[kind])
    _pull(store, engine)
    pushed = _put(store, "app:2", [LARGE, SMALL, OTHER])
    for name, value in fault.items():
        setattr(engine, name, value)

    done = _pull(store, engine, image="app:2")

    assert engine.layers("app:2") == [LARGE, SMALL, OTHER]
    assert done.hosts[0].layers == 3
    assert [len([path for path in load if path.startswith("blobs/")]) for load in engine.loaded][1:] in ([4, 5], [3, 4])
    assert done.image_id in (pushed.image_id, pushed.digest)


@pytest.mark.parametrize("kind", ["old", "classic", "containerd"])
@pytest.mark.parametrize("has_some", [True, False], ids=["partial", "whole"])
def test_an_engine_that_says_yes_and_has_it_not_is_an_error(store, kind, has_some):
    engine = FakeEngine(**KINDS[kind])
    if has_some:
        _put(store, "app:1", [LARGE])
        _pull(store, engine)
    _put(store, "app:2", [LARGE, SMALL])
    engine.loses = 2

    with pytest.raises(EngineError, match="does not have it whole"):
        _pull(store, engine, image="app:2")
    assert "app:2" not in engine.names


@EACH_KIND
def test_a_refusal_of_the_whole_image_is_told_as_it_is(store, bucket, kind):
    pushed = _put(store, layers=[LARGE])
    (key,) = _layer_blobs(store, pushed)
    packed = read(bucket, key)
    config = config_of([OTHER])  # whose layer is another one
    image = blobs_of([LARGE], pack=lambda _: packed)
    content = {Digest.of(config) if b"rootfs" in data else digest: data for digest, data in image.content.items()}
    _put_blobs(store, _with_config(image, config), "app:2")
    assert content
    engine = FakeEngine(**KINDS[kind])

    with pytest.raises(EngineError, match="did not take the image"):
        _pull(store, engine, image="app:2")
    assert not engine.names


def _with_config(image, config):
    manifest = json.loads(image.content[image.root])
    manifest["config"] |= {"digest": str(Digest.of(config)), "size": len(config)}
    data = json.dumps(manifest).encode()
    kept = {digest: blob for digest, blob in image.content.items() if digest != image.root and b"rootfs" not in blob}
    return type(image)(Digest.of(data), image.root_type, kept | {Digest.of(config): config, Digest.of(data): data})


@pytest.mark.parametrize("kind", ["classic", "containerd"])
@pytest.mark.parametrize("dies_after", [0, 2_000, 100_000, 300_000])
def test_an_engine_that_dies_is_told_and_the_next_pull_succeeds(store, kind, dies_after):
    _put(store)
    engine = FakeEngine(**KINDS[kind], dies_after=dies_after)

    with pytest.raises(EngineUnavailable):
        _pull(store, engine)
    assert not engine.names

    engine.dies_after, engine.is_dead = None, False
    _pull(store, engine)
    assert engine.layers("app:1") == LAYERS


# Several engines


def test_each_layer_is_read_once_for_four_engines(store, bucket):
    pushed = _put(store)
    keys = _layer_blobs(store, pushed)
    bucket.calls.clear()
    engines = _four()

    done = _pull(store, *engines)

    assert sorted(_reads(bucket, keys)) == sorted(keys)
    assert done.bytes_read == sum(map(bucket.inner.size, keys))
    assert [engine.layers("app:1") for engine in engines] == [LAYERS] * 4
    assert _states(done) == ["pulled"] * 4
    assert [host.host for host in done.hosts] == [engine.address for engine in engines]


def test_old_and_new_engines_take_of_one_reading(store, bucket):
    pushed = _put(store)
    keys = _layer_blobs(store, pushed)
    bucket.calls.clear()
    engines = [FakeEngine(f"unix:///run/{number}.sock", **kind) for number, kind in enumerate(KINDS.values())]

    done = _pull(store, *engines)

    assert [engine.layers("app:1") for engine in engines] == [LAYERS] * len(KINDS)
    assert done.complete
    assert done.bytes_read == sum(map(bucket.inner.size, keys))


def test_each_engine_gets_what_it_lacks(store, bucket):
    _put(store, "app:1", [LARGE])
    _put(store, "app:2", [LARGE, SMALL])
    pushed = _put(store, "app:3", [LARGE, SMALL, OTHER])
    engines = _four()
    _pull(store, engines[0], image="app:1")
    _pull(store, engines[1], image="app:2")
    _pull(store, engines[2], image="app:3")
    keys = _layer_blobs(store, pushed)
    bucket.calls.clear()

    done = _pull(store, *engines, image="app:3")

    assert [host.layers for host in done.hosts] == [2, 1, 0, 3]
    assert _states(done) == ["pulled", "pulled", "up to date", "pulled"]
    assert all(engine.layers("app:3") == [LARGE, SMALL, OTHER] for engine in engines)
    assert sorted(_reads(bucket, keys)) == sorted(keys)


def _break_dead(engine):
    engine.is_dead = True


def _break_dying(engine):
    engine.dies_after = 100_000


def _break_refusing(engine):
    engine.before_load = _refuse


def _break_losing(engine):
    engine.loses = 9


def _refuse():
    raise EngineError("no space left on device")


@pytest.mark.parametrize("trouble", [_break_dead, _break_dying, _break_refusing, _break_losing])
@pytest.mark.parametrize("which", [0, 3])
def test_one_engines_trouble_is_its_own(store, bucket, trouble, which):
    pushed = _put(store)
    keys = _layer_blobs(store, pushed)
    engines = _four()
    trouble(engines[which])
    bucket.calls.clear()

    done = _pull(store, *engines)

    expected = ["failed" if number == which else "pulled" for number in range(4)]
    assert _states(done) == expected
    assert not done.complete
    assert isinstance(done.hosts[which].error, EngineError)
    assert done.hosts[which].told()["error"]
    assert all(engine.layers("app:1") == LAYERS for engine in engines if engine is not engines[which])
    times = 2 if trouble is _break_losing else 1  # what it does not have whole is sent to it once more
    assert sorted(_reads(bucket, keys)) == sorted(keys * times)


@pytest.mark.parametrize("slow", [0, 2])
def test_a_slow_engine_holds_up_nobody(store, bucket, slow):
    _put(store)
    engines = _four()
    others_done = [threading.Event() for _ in engines]
    for number, engine in enumerate(engines):
        engine.after_load = others_done[number].set
    others_done[slow].set()
    engines[slow].before_load = lambda: all(event.wait(60) for event in others_done) or pytest.fail("others waited")

    done = _pull(store, *engines)

    assert _states(done) == ["pulled"] * 4
    assert engines[slow].layers("app:1") == LAYERS


def test_an_engine_that_is_slow_to_answer_holds_up_nobody(store, monkeypatch):
    monkeypatch.setattr(fleet, "_PATIENCE_S", 0.05)
    _put(store)
    engines = _four()
    others_done = [threading.Event() for _ in engines[1:]]
    for event, engine in zip(others_done, engines[1:], strict=True):
        engine.after_load = event.set
    engines[0].before_inspect = lambda: all(event.wait(60) for event in others_done) or pytest.fail("others waited")

    done = _pull(store, *engines)

    assert _states(done) == ["pulled"] * 4
    assert all(engine.layers("app:1") == LAYERS for engine in engines)


def test_all_engines_may_be_dead(store):
    _put(store)
    engines = _four()
    for engine in engines:
        engine.is_dead = True

    done = _pull(store, *engines)

    assert _states(done) == ["failed"] * 4
    assert done.bytes_read == 0


# What is wrong in the bucket


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("how", ["altered", "cut", "gone"])
def test_a_damaged_layer_is_refused_and_named(store, bucket, count, which, how):
    pushed = _put(store)
    key = _layer_blobs(store, pushed)[which]
    data = read(bucket, key)
    if how == "gone":
        bucket.delete(key)
    else:
        bucket.put(key, data[:-1] if how == "cut" else data[:-100] + b"x" + data[-99:])
    engines = _four()[:count]

    if count == 1:
        with pytest.raises(DamageError) as refused:
            _pull(store, *engines)
        errors = [refused.value]
    else:
        errors = [host.error for host in _pull(store, *engines).hosts]

    for error in errors:
        assert isinstance(error, DamageError)
        assert key.split("/")[-2] in str(error)
    assert all(not engine.names and not engine.roots for engine in engines)


def test_a_layer_that_is_gone_is_no_matter_to_those_who_have_it(store, bucket):
    pushed = _put(store)
    has_it, *lack_it = [FakeEngine(f"unix:///run/{number}", api=OLD_API) for number in range(3)]
    _pull(store, has_it)
    bucket.delete(_layer_blobs(store, pushed)[1])

    done = _pull(store, has_it, *lack_it)

    assert _states(done) == ["up to date", "failed", "failed"]
    assert all(isinstance(host.error, DamageError) for host in done.hosts[1:])


@pytest.mark.parametrize("what", ["manifest", "config"])
@pytest.mark.parametrize("how", ["altered", "gone", "nonsense"])
def test_a_damaged_manifest_is_refused_before_anything_is_sent(store, bucket, what, how):
    pushed = _put(store)
    key = blob_key(pushed.digest if what == "manifest" else pushed.image_id)
    bucket.put(key, b"{}" if how == "nonsense" else read(bucket, key) + b" ")
    if how == "gone":
        bucket.delete(key)
    engine = FakeEngine()

    with pytest.raises(DamageError, match="app:1"):
        _pull(store, engine)
    assert not engine.loaded


@pytest.mark.parametrize("how", ["once", "dead", "short"])
@pytest.mark.parametrize("count", [1, 2])
def test_wherever_the_bucket_fails_no_engine_has_half_an_image(how, count):
    inner = memory_bucket()
    _put(Store(inner))
    at = 0
    while True:
        at += 1
        bucket = FaultyBucket(inner, at=at, how=how, kinds=READS)
        engines = _four()[:count]
        errors = []
        try:
            errors = [host.error for host in _pull(Store(bucket), *engines).hosts]
        except (Unavailable, DamageError) as error:
            errors = [error] * count
        for engine, error in zip(engines, errors, strict=True):
            assert isinstance(error, Unavailable | DamageError) or engine.layers("app:1") == LAYERS
            assert not error or not engine.names
        if not bucket.hit:
            assert errors == [None] * count
            break
    assert at > 5


@pytest.mark.parametrize("kinds", [["old"], ["old", "old"], ["old", "classic"]], ids=["one", "two", "mixed"])
@pytest.mark.parametrize("stated", [1, 299_999, 4 * 1024 * 1024])
def test_a_table_that_lies_is_found_out_where_it_matters(store, kinds, stated):
    def packed(layer):
        frame = zstandard.compress(layer)
        return frame + seek_table([(len(frame), stated)])

    _put_blobs(store, blobs_of([LARGE], pack=packed))
    engines = [FakeEngine(f"unix:///run/{number}.sock", **KINDS[kind]) for number, kind in enumerate(kinds)]

    try:
        errors = [host.error for host in _pull(store, *engines).hosts]
    except DamageError as error:
        errors = [error]

    for engine, error in zip(engines, errors, strict=True):
        assert isinstance(error, DamageError) if engine.api == OLD_API else error is None
        assert not error or not engine.names
        assert not error or "layer" in str(error)


@EACH_KIND
@pytest.mark.parametrize("count", [1, 3])
def test_layers_of_another_programs_making_arrive(store, kind, count):
    image = blobs_of([LARGE, SMALL, OTHER, LARGE], pack=zstandard.compress)
    _put_blobs(store, image)
    engines = [FakeEngine(f"unix:///run/{number}.sock", **KINDS[kind]) for number in range(count)]

    done = _pull(store, *engines)

    assert done.complete
    assert all(engine.layers("app:1") == [LARGE, SMALL, OTHER, LARGE] for engine in engines)


def test_no_room_for_temporary_files_is_told_where_they_are_needed(store, monkeypatch):
    _put(store)
    monkeypatch.setattr("holdfast.images.spool.TemporaryFile", lambda **_: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    alone, *several = _four()

    _pull(store, alone)
    done = _pull(store, *several)

    assert alone.layers("app:1") == LAYERS
    assert all(isinstance(host.error, NoSpaceError) for host in done.hosts)
    assert all("--tempdir" in host.error.hint for host in done.hosts)


# Names and platforms


def test_by_digest_it_gets_no_name(store):
    pushed = _put(store)
    engine = FakeEngine()

    done = _pull(store, engine, image=f"app@{pushed.digest}")

    assert engine.inspect(done.image_id).is_whole
    assert not engine.names


@pytest.mark.parametrize("of", ["image_id", "digest"])
@pytest.mark.parametrize("shorten", [lambda text: text, lambda text: text[7:], lambda text: text[7:19]], ids=[1, 2, 3])
def test_by_its_id_it_is_found(store, of, shorten):
    pushed = _put(store)
    _put(store, "other:1", [MORE])
    engine = FakeEngine()

    done = _pull(store, engine, image=shorten(getattr(pushed, of)))

    assert done.image_id == pushed.image_id
    assert not engine.names


def test_an_id_that_several_have_is_refused(store):
    ids = {}
    for number in range(3):
        pushed = _put(store, f"app:{number}", [layer_of(2000, number)])
        ids[pushed.image_id] = f"app:{number}"
    found = [store.tag_digest(ImageName.parse(name).repository, ImageName.parse(name).tag) for name in ids.values()]
    assert len(set(found)) == 3
    digits = _shared_digits(store, [*ids])

    with pytest.raises(UsageError) as refused:
        _pull(store, FakeEngine(), image=digits)
    assert "app:" in str(refused.value)


def _shared_digits(store, ids):
    """Tag images until two of all the digests begin with the same four digits."""
    seen, number = {one[7:11] for one in ids}, 0
    while True:
        config = config_of([], Cmd=[str(number)])
        number += 1
        digits = Digest.of(config).hex[:4]
        if digits in seen:
            engine = FakeEngine()
            engine.build("twin:1", [], config=config)
            push(store, engine, "twin:1", PushOptions(), Progress())
            return digits


def test_one_image_packed_in_two_ways_is_one_image(store):
    pushed = _put(store, "app:1", compression="zstd")
    other = Store(memory_bucket())
    again = _put(other, "app:2", compression="gzip")
    _copy(other.bucket, store.bucket)
    assert (again.image_id, again.digest != pushed.digest) == (pushed.image_id, True)
    engine = FakeEngine()

    assert _pull(store, engine, image=pushed.image_id).image_id == pushed.image_id


def _copy(source, target):
    for info in list(source.objects("docker")):
        target.put(info.key, read(source, info.key))


def test_it_can_be_called_otherwise_in_the_engine(store):
    _put(store)
    engine = FakeEngine()

    _pull(store, engine, called=ImageName.parse("opsgoodies.com/docker-repo/app:1"))

    assert list(engine.names) == ["opsgoodies.com/docker-repo/app:1"]


@pytest.mark.parametrize("image", ["nosuch", "app:2", f"app@sha256:{'0' * 64}", "0" * 64, "abcdef", "team/app:1"])
def test_what_is_not_there_is_told(store, image):
    _put(store)

    with pytest.raises(NotFoundError, match=image[:4]):
        _pull(store, FakeEngine(), image=image)


def test_each_engine_gets_the_image_for_its_platform(store):
    images = {AMD64: blobs_of(LAYERS), ARM64: blobs_of([MORE, SMALL], ARM64)}
    _put_blobs(store, index_of(images))
    arm = [FakeEngine(f"unix:///run/arm{number}", platform=ARM64, keeps_blobs=bool(number)) for number in range(2)]
    amd = [FakeEngine(f"unix:///run/amd{number}", platform=AMD64, keeps_blobs=bool(number)) for number in range(2)]

    done = _pull(store, *arm, *amd)

    assert [engine.layers("app:1") for engine in (*arm, *amd)] == [[MORE, SMALL]] * 2 + [LAYERS] * 2
    assert done.complete


def test_an_index_without_the_platform_says_what_it_has(store):
    _put_blobs(store, index_of({ARM64: blobs_of([MORE], ARM64)}))
    engines = _four()[:2]

    with pytest.raises(NotFoundError, match="linux/amd64") as refused:
        _pull(store, engines[0])
    assert "linux/arm64/v8" in refused.value.hint
    done = _pull(store, engines[1], FakeEngine("unix:///run/arm", platform=ARM64))
    assert _states(done) == ["failed", "pulled"]


def test_an_index_of_which_the_engine_has_another_platform_only_is_not_there(store):
    index = index_of({AMD64: blobs_of(LAYERS), ARM64: blobs_of([MORE], ARM64)})
    _put_blobs(store, index)
    engine = FakeEngine(keeps_blobs=True)
    engine.fetch("app:1", index.without(*(d for d, data in index.content.items() if data == gzipped(SMALL))))
    assert engine.inspect("app:1").is_whole

    done = _pull(store, engine)

    assert engine.layers("app:1") == LAYERS
    assert _states(done) == ["pulled"]


def test_an_artifact_is_no_image(store):
    image = blobs_of([SMALL])
    manifest = json.loads(image.content[image.root]) | {"artifactType": "application/vnd.example"}
    data = json.dumps(manifest).encode()
    _put_blobs(store, type(image)(Digest.of(data), image.root_type, image.content | {Digest.of(data): data}))

    with pytest.raises(UsageError, match="no image that an engine could run"):
        _pull(store, FakeEngine())


# Other servers


@pytest.fixture
def servers(monkeypatch):
    """Holdfast servers beside all engines at tcp://; what they answer is set by the test."""

    class FakeServer:
        asked = 0
        pulls = 0
        answer = True
        bring = staticmethod(lambda: None)

        @classmethod
        def beside(cls, engine, port):
            assert port == 22375
            return cls() if engine.startswith("tcp:") else None

        def is_there(self):
            FakeServer.asked += 1
            return True

        def pull(self, store, name, digest, part):
            FakeServer.pulls += 1
            FakeServer.bring()
            if isinstance(FakeServer.answer, HoldfastError):
                raise FakeServer.answer
            return FakeServer.answer

    monkeypatch.setattr(fleet, "Server", FakeServer)
    return FakeServer


@pytest.mark.parametrize(("answer", "state"), [(True, "pulled"), (False, "up to date")])
def test_a_host_with_a_server_pulls_by_itself(store, servers, answer, state):
    _put(store)
    near, far = FakeEngine(), FakeEngine("tcp://far:2375")
    servers.answer = answer
    servers.bring = lambda: _pull(store, far, force_local=True)

    done = _pull(store, near, far)

    assert [(host.state, host.by_server) for host in done.hosts] == [("pulled", False), (state, True)]
    assert len(far.loaded) == 1
    assert near.layers("app:1") == far.layers("app:1") == LAYERS


def test_a_server_that_pulls_into_another_engine_is_not_believed(store, servers):
    _put(store)
    far = FakeEngine("tcp://far:2375")
    servers.answer = True
    progress = Progress()

    done = _pull(store, far, progress=progress)

    assert [(host.state, host.by_server) for host in done.hosts] == [("pulled", False)]
    assert far.layers("app:1") == LAYERS
    assert [warning for warning in progress.warnings if "not into tcp://far:2375" in warning]


def test_a_server_that_refuses_did_not_pull_what_was_there_before(store, servers):
    _put(store)
    far = FakeEngine("tcp://far:2375")
    _pull(store, far, force_local=True)
    servers.answer = EngineError("its store is another one")
    progress = Progress()

    done = _pull(store, far, progress=progress)

    assert [(host.state, host.by_server) for host in done.hosts] == [("up to date", False)]
    assert [warning for warning in progress.warnings if "its store is another one" in warning]


def test_a_server_is_believed_where_its_engine_cannot_be_asked(store, servers):
    _put(store)
    near, far = FakeEngine(), FakeEngine("tcp://far:2375")
    far.before_inspect = _unreachable
    servers.answer = True
    progress = Progress()

    done = _pull(store, near, far, progress=progress)

    assert [(host.state, host.by_server) for host in done.hosts] == [("pulled", False), ("pulled", True)]
    assert [warning for warning in progress.warnings if "cannot be asked" in warning]


def _unreachable(*_):
    raise EngineUnavailable("it cannot be asked")


@pytest.mark.parametrize("error", [EngineError("no such store"), EngineUnavailable("it broke off")], ids=str)
@pytest.mark.parametrize("others", [0, 2])
def test_what_a_server_cannot_do_is_done_from_here(store, servers, error, others):
    _put(store)
    servers.answer = error
    far = FakeEngine("tcp://far:2375")
    progress = Progress()

    done = _pull(store, far, *_four()[:others], progress=progress)

    assert _states(done) == ["pulled"] * (1 + others)
    assert not done.hosts[0].by_server
    assert far.layers("app:1") == LAYERS
    assert len(far.loaded) == 1
    assert [warning for warning in progress.warnings if str(error) in warning]


@pytest.mark.parametrize("options", [{"force_local": True}, {"check_hosts": False}], ids=str)
def test_servers_are_left_alone_where_the_user_says_so(store, servers, options):
    _put(store)
    far = FakeEngine("tcp://far:2375")

    _pull(store, far, **options)

    assert (servers.asked, servers.pulls) == (0, 0)
    assert far.layers("app:1") == LAYERS


def test_progress_tells_of_hosts_and_layers(store):
    _put(store)
    progress = Progress()

    done = _pull(store, *_four(), progress=progress)

    hosts = [part for part in progress.parts if part.name.startswith("unix:")]
    layers = [part for part in progress.parts if part.name.startswith("layer ")]
    assert [part.state for part in hosts] == ["pulled"] * 4
    assert all(part.done == part.total > 0 for part in hosts)
    assert sorted(part.state for part in layers) == ["done"] * 3
    assert progress.bytes_done == done.bytes_read == progress.bytes_total
    assert json.dumps(done.told())


def test_layers_are_what_other_programs_read(store, bucket):
    pushed = _put(store)

    assert [opened(read(bucket, key)) for key in _layer_blobs(store, pushed)] == LAYERS
