"""What engines save and load, of either shape, and what nobody should believe of it."""

import io
import json
import tarfile
import tracemalloc

import pytest

from fake_engine import AMD64, ARM64, FakeEngine, blobs_of, config_of, index_of, layer_of, tar_of
from holdfast.errors import DamageError
from holdfast.images import bundle
from holdfast.images.bundle import SMALL_BYTES, LoadedLayer, blob_path, digest_of_path, read_saved, write_loaded
from holdfast.model.digest import Digest
from holdfast.model.oci import LARGEST_MANIFEST, MANIFEST_TYPE, Descriptor

MIB = 1024 * 1024
SMALL, LARGE = layer_of(3000, "small"), layer_of(SMALL_BYTES + 100_000, "large")


def _read(stream, take=None):
    taken = {}

    def keep(path, size, content):
        taken[path] = b"".join(content)
        assert size == len(taken[path])
        return "kept"

    return read_saved(stream, take or keep), taken


def _pieces(data, size=64 * 1024):
    return iter([memoryview(data)[at : at + size] for at in range(0, len(data), size)])


def _saved(layers, **kind):
    engine = FakeEngine(**kind)
    return engine.save(str(engine.build("app:1", layers)))


@pytest.mark.parametrize("old_shape", [True, False], ids=["old", "new"])
def test_both_shapes_are_told_apart_by_what_is_in_them(old_shape):
    saved, taken = _read(_saved([SMALL, LARGE], old_shape=old_shape))

    (image,) = saved.images
    assert json.loads(saved.small[saved.path(image.config)]) == json.loads(config_of([SMALL, LARGE]))
    below, above = map(saved.path, image.layers)
    assert saved.small[below] == SMALL
    assert taken == {above: LARGE}
    assert saved.large == {above: "kept"}
    assert len(saved.roots) == (not old_shape)


def test_a_layer_that_comes_twice_is_found_by_its_symlink():
    saved, taken = _read(_saved([SMALL, LARGE, SMALL, LARGE], old_shape=True))

    paths = [saved.path(path) for path in saved.images[0].layers]
    assert paths[0] == paths[2]
    assert paths[1] == paths[3]
    assert list(taken) == [paths[1]]


def test_symlinks_may_lead_over_several_others():
    members = {"a/layer.tar": "../b/layer.tar", "b/layer.tar": "./../c//layer.tar", "c/layer.tar": b"here"}
    saved, _ = _read(_pieces(tar_of(members)))

    assert saved.path("a/layer.tar") == "c/layer.tar"
    assert saved.path("no/such") == "no/such"


@pytest.mark.parametrize("links", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "b"}])
def test_symlinks_in_a_circle_are_refused(links):
    saved, _ = _read(_pieces(tar_of(links)))

    with pytest.raises(DamageError, match="in a circle"):
        saved.path("a")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd"])
def test_a_symlink_out_of_the_archive_leads_to_nothing(target):
    saved, _ = _read(_pieces(tar_of({"a": target, "etc/passwd": b"x"})))

    assert saved.path("a") not in saved.small


def test_blobs_of_other_platforms_may_be_missing():
    arm = blobs_of([layer_of(500, "arm")], ARM64)
    index = index_of({AMD64: blobs_of([SMALL]), ARM64: arm}).without(*arm.content)
    engine = FakeEngine(keeps_blobs=True)
    saved, _ = _read(engine.save(str(engine.fetch("app:1", index))))

    assert saved.blob(index.root) == index.content[index.root]
    assert saved.blob(arm.root) is None
    assert [root.parsed() for root in saved.roots] == [index.root]


def test_a_blob_that_is_not_what_its_name_says_is_refused():
    path = blob_path(Digest.of(b"one"))

    with pytest.raises(DamageError, match=path):
        _read(_pieces(tar_of({path: b"two"})))


@pytest.mark.parametrize("old_shape", [True, False], ids=["old", "new"])
@pytest.mark.parametrize("cut", [100, 513, 5000, SMALL_BYTES, -1025 * 10])
def test_what_is_cut_short_is_never_taken_for_whole(old_shape, cut):
    data = b"".join(_saved([SMALL, LARGE], old_shape=old_shape))

    with pytest.raises(DamageError):
        _read(_pieces(data[:cut]))


@pytest.mark.parametrize("data", [b"", bytes(10240), b"no tar at all" * 100, b'{"message": "oops"}'])
def test_what_is_no_archive_is_refused(data):
    with pytest.raises(DamageError):
        _read(_pieces(data))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"null",
        b"[1]",
        b'[{"Config": 1}]',
        b'[{"Layers": []}]',
        b"\xff",
        b'[{"Config": "\x80"}]',
        b"[" * 200_000,
    ],
)
def test_a_list_of_images_that_is_none_is_refused(text):
    saved, _ = _read(_pieces(tar_of({"manifest.json": text, "index.json": text})))

    with pytest.raises(DamageError, match=r"manifest\.json"):
        _ = saved.images
    with pytest.raises(DamageError, match=r"index\.json"):
        _ = saved.roots


def test_an_archive_without_lists_holds_nothing():
    saved, _ = _read(_pieces(tar_of({"hello": b"x"})))

    assert (saved.images, saved.roots) == ([], [])


def _zeros(name, size, begin=b""):
    """A member of zeros (behind how it begins) that is nowhere in memory."""
    member = tarfile.TarInfo(name)
    member.size = size
    yield member.tobuf(tarfile.USTAR_FORMAT)
    piece = bytes(MIB)
    for at in range(0, size, MIB):
        yield (piece if at else begin + piece)[: min(MIB, size - at)]
    yield bytes(-size % 512)


def test_large_members_are_never_held_in_memory_whatever_they_are_called():
    def archive():
        for number, name in enumerate(("manifest.json", "index.json", "a.json", "b/layer.tar")):
            yield from _zeros(name, (40 + number) * MIB)
        yield bytes(1024)

    sizes = {}

    def take(path, size, content):
        if not path.startswith("a"):  # that one is passed over
            sizes[path] = sum(map(len, content))

    tracemalloc.start()
    try:
        saved, _ = _read(archive(), take)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert sizes == {"manifest.json": 40 * MIB, "index.json": 41 * MIB, "b/layer.tar": 43 * MIB}
    assert peak < 8 * MIB
    assert saved.images == []


def test_many_small_members_are_refused_before_they_fill_the_memory(monkeypatch):
    monkeypatch.setattr(bundle, "_MOST_SMALL_BYTES", 10 * MIB)
    given = 0

    def archive():
        nonlocal given
        for number in range(1000):
            given += 1
            yield from _zeros(f"{number}.json", MIB, begin=b"{")

    with pytest.raises(DamageError, match="small members"):
        _read(archive())
    assert given <= 12


def test_endless_members_are_refused(monkeypatch):
    monkeypatch.setattr(bundle, "_MOST_MEMBERS", 50)

    with pytest.raises(DamageError, match="more than 50 members"):
        _read(_pieces(tar_of({f"{number}": b"" for number in range(52)})))


@pytest.mark.parametrize(
    ("path", "digest"),
    [
        (f"blobs/sha256/{Digest.of(b'').hex}", Digest.of(b"")),
        (f"blobs/sha512/{'0' * 128}", Digest("sha512", "0" * 128)),
        (f"{Digest.of(b'').hex}.json", None),
        (f"x/blobs/sha256/{Digest.of(b'').hex}", None),
        ("blobs/md5/00", None),
    ],
)
def test_blobs_are_told_by_their_paths(path, digest):
    assert digest_of_path(path) == digest


@pytest.mark.parametrize("path", ["blobs/sha256/00", f"blobs/sha256/{'0' * 99}", f"blobs/sha512/{'0' * 64}"])
@pytest.mark.parametrize("data", [b"x", LARGE], ids=["small", "large"])
def test_a_blob_with_a_name_that_is_no_digest_is_damage(path, data):
    def take(path, size, content):
        digest_of_path(path)

    with pytest.raises(DamageError):
        _read(_pieces(tar_of({path: data})), take)


# What is loaded


def _loaded(**archive):
    data = b"".join(write_loaded(**archive))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def _by_digest(*blobs):
    return {Digest.of(data): data for data in blobs}


def _layer(data):
    return LoadedLayer(Digest.of(data), lambda: (len(data), iter([memoryview(data)])))


def test_what_is_loaded_is_both_shapes_at_once():
    config, manifest = config_of([SMALL]), b'{"manifest": true}'
    root = Descriptor(MANIFEST_TYPE, str(Digest.of(manifest)), len(manifest))
    members = _loaded(root=root, blobs=_by_digest(manifest, config), config=Digest.of(config), layers=[_layer(SMALL)])

    assert list(members)[-2:] == ["index.json", "manifest.json"]
    assert members[blob_path(Digest.of(SMALL))] == SMALL
    assert members[blob_path(Digest.of(config))] == config
    assert json.loads(members["index.json"])["manifests"] == [
        {"mediaType": MANIFEST_TYPE, "digest": str(Digest.of(manifest)), "size": len(manifest)}
    ]
    (listed,) = json.loads(members["manifest.json"])
    assert members.keys() >= {listed["Config"], *listed["Layers"], "oci-layout"}
    assert not listed["RepoTags"]


def test_layers_that_are_left_out_are_named_all_the_same():
    config = config_of([SMALL, LARGE, SMALL])
    left_out = LoadedLayer(Digest.of(LARGE), None)
    layers = [_layer(SMALL), left_out, _layer(SMALL)]
    members = _loaded(root=None, blobs=_by_digest(config), config=Digest.of(config), layers=layers)

    (listed,) = json.loads(members["manifest.json"])
    assert listed["Layers"] == [blob_path(layer.digest) for layer in layers]
    assert sorted(members) == sorted([blob_path(Digest.of(config)), blob_path(Digest.of(SMALL)), "manifest.json"])


def test_nothing_that_makes_it_valid_is_there_before_the_last_layer():
    config = config_of([SMALL])

    def breaking():
        yield SMALL[:1000]
        raise DamageError("it broke off")

    written = []
    layers = [LoadedLayer(Digest.of(SMALL), lambda: (len(SMALL), breaking()))]
    root = Descriptor(MANIFEST_TYPE, str(Digest.of(b"x")), 1)
    with pytest.raises(DamageError, match="it broke off"):
        written.extend(write_loaded(root=root, blobs=_by_digest(config), config=Digest.of(config), layers=layers))

    assert b"manifest.json" not in b"".join(written)
    assert b"index.json" not in b"".join(written)


def test_a_config_is_small():
    assert SMALL_BYTES >= LARGEST_MANIFEST
