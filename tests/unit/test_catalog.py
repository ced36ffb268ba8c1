"""Which images a store holds, whoever put them there."""

import json

import pytest

from backups import memory_bucket
from dogestry_rig import push_old, tar_of
from fake_engine import AMD64, ARM64, FakeEngine, blobs_of, index_of, layer_of
from faulty import FaultyBucket, blob_key, read
from holdfast.errors import DamageError, NotFoundError, ObjectNotFound, Unavailable, UsageError
from holdfast.images.catalog import find_image, layers_of, list_images
from holdfast.images.push import PushOptions, push
from holdfast.images.spool import Spool
from holdfast.model.digest import Digest
from holdfast.model.images import ImageName
from holdfast.model.names import Repository, Tag
from holdfast.model.oci import Platform
from holdfast.model.urls import BucketUrl
from holdfast.progress import Progress
from holdfast.storage.backends import open_bucket
from holdfast.storage.store import Store

SMALL, MORE = layer_of(3000), layer_of(4000, "more")


@pytest.fixture
def bucket():
    return FaultyBucket(memory_bucket())


@pytest.fixture
def store(bucket):
    return Store(bucket)


def _put(store, name, image=None):
    engine = FakeEngine(keeps_blobs=True)
    engine.fetch(name, image or blobs_of([SMALL]))
    return push(store, engine, name, PushOptions(), Progress())


def _find(store, image):
    return find_image(store, image, Spool(None), Progress())


def _listed(store):
    return [(image.name, image.tag, image.layout) for image in list_images(store)]


def test_images_are_listed_by_the_names_that_they_are_pulled_by(store):
    names = ["app:1", "app:2", "localhost:5000/app:1", "team/app:latest", "volumes/data:1", "Reg.example/x:1"]
    for name in names:
        _put(store, name)

    listed = [f"{image.name}:{image.tag}" for image in list_images(store)]

    assert sorted(listed) == sorted(names)
    assert all(_find(store, name).digest == blobs_of([SMALL]).root for name in listed)
    assert all(image.digest == str(blobs_of([SMALL]).root) for image in list_images(store))


def test_snapshots_are_no_images(store):
    data = b"{}"
    for repository in ("volumes/pgdata", "paths/var/www"):
        store.put_manifest(Repository(repository), data)
        store.set_tag(Repository(repository), Tag("latest"), Digest.of(data))

    assert _listed(store) == []
    with pytest.raises(NotFoundError):
        _find(store, "volumes/pgdata")
    with pytest.raises(NotFoundError):
        _find(store, Digest.of(data).hex)


def test_an_empty_store_has_no_images(store):
    assert _listed(store) == []
    with pytest.raises(NotFoundError) as missing:
        _find(store, "app")
    assert "holdfast list" in missing.value.hint
    assert str(store) in str(missing.value)


def test_dockers_own_images_are_found_where_registries_keep_them(store):
    image = blobs_of([SMALL])
    for digest, data in image.content.items():
        store.put_blob(Repository("library/ubuntu"), digest, data)
    store.put_manifest(Repository("library/ubuntu"), image.content[image.root])
    store.set_tag(Repository("library/ubuntu"), Tag("22.04"), image.root)

    for name in ("library/ubuntu:22.04", "ubuntu:22.04", f"ubuntu@{image.root}"):
        assert _find(store, name).digest == image.root


def test_both_layouts_are_listed_and_the_newer_one_hides_the_older(store, bucket):
    _put(store, "app:1")
    ids = push_old(bucket, [tar_of(a=b"1")], "app/1")
    push_old(bucket, [tar_of(a=b"1")], "app/2")

    assert sorted(_listed(store)) == [("app", "1", "registry"), ("app", "2", "dogestry")]
    assert _find(store, "app:1").digest == blobs_of([SMALL]).root
    assert _find(store, "app:2").image_for(AMD64).layers[0].diff_id == Digest.of(tar_of(a=b"1"))
    assert _find(store, ids[0][:10]).name is None


def test_a_damaged_tag_does_not_hide_the_others(store, bucket):
    _put(store, "app:1")
    _put(store, "app:2")
    bucket.put("docker/registry/v2/repositories/app/_manifests/tags/1/current/link", b"sha256:what")
    bucket.delete("docker/registry/v2/repositories/app/_manifests/tags/2/current/link")

    assert [image.told() for image in list_images(store)] == [
        {"name": "app", "tag": tag, "layout": "registry", "digest": None, "image_id": None} for tag in ("1", "2")
    ]
    with pytest.raises(DamageError, match="tag 1 of app"):
        _find(store, "app:1")
    with pytest.raises(NotFoundError):
        _find(store, "app:2")


def test_a_bucket_that_fails_is_no_empty_store(bucket, store):
    _put(store, "app:1")
    for at in range(1, 4):
        failing = FaultyBucket(bucket.inner, at=at, how="dead")
        with pytest.raises(Unavailable):
            list(list_images(Store(failing)))
        with pytest.raises(Unavailable):
            _find(Store(FaultyBucket(bucket.inner, at=1)), "app:1")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 100_000, b"x" * 5_000_000], ids=["nothing", "empty", "deep", "huge"]
)
def test_what_others_left_does_not_keep_an_id_from_being_found(store, bucket, data):
    pushed = _put(store, "app:1")
    other = Digest.of(data)
    bucket.put(blob_key(str(other)), data)
    store.link_manifest(Repository("other"), other)
    store.set_tag(Repository("other"), Tag("1"), other)

    assert str(_find(store, pushed.image_id).digest) == pushed.digest
    with pytest.raises(DamageError):
        _find(store, "other:1").image_for(AMD64)


def test_the_variant_of_a_platform_is_chosen(store):
    v6, v7 = Platform("arm", "linux", "v6"), Platform("arm", "linux", "v7")
    _put_both(store, {v6: blobs_of([SMALL], v6), v7: blobs_of([MORE], v7)})
    found = _find(store, "app:1")

    assert found.image_for(v7).diff_ids == (Digest.of(MORE),)
    assert found.image_for(v6).diff_ids == (Digest.of(SMALL),)
    assert found.image_for(Platform("arm", "linux")).diff_ids == (Digest.of(SMALL),)
    with pytest.raises(NotFoundError, match="linux/amd64"):
        found.image_for(AMD64)


def _put_both(store, images):
    for platform in images:
        engine = FakeEngine(keeps_blobs=True, platform=platform)
        engine.fetch("app:1", index_of(images))
        push(store, engine, "app:1", PushOptions(), Progress())


def test_an_index_whose_image_is_absent_says_so(store):
    arm = blobs_of([MORE], ARM64)
    _put(store, "app:1", index_of({AMD64: blobs_of([SMALL]), ARM64: arm}).without(*arm.content))

    assert _find(store, "app:1").image_for(AMD64).diff_ids == (Digest.of(SMALL),)
    with pytest.raises(DamageError, match=f"app:1.*{arm.root}"):
        _find(store, "app:1").image_for(ARM64)


def _replace_manifest(store, change):
    pushed = _put(store, "app:1")
    manifest = change(json.loads(read(store.bucket, blob_key(pushed.digest))))
    digest = store.put_manifest(Repository("app"), json.dumps(manifest).encode())
    store.set_tag(Repository("app"), Tag("1"), digest)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest | {"layers": []},
        lambda manifest: manifest | {"layers": manifest["layers"] * 2},
        lambda manifest: manifest | {"layers": [manifest["layers"][0] | {"size": -1}]},
        lambda manifest: manifest | {"layers": [manifest["layers"][0] | {"digest": "../../x"}]},
        lambda manifest: manifest | {"config": manifest["config"] | {"digest": "sha256:x"}},
        lambda manifest: manifest | {"config": manifest["layers"][0] | {"mediaType": manifest["config"]["mediaType"]}},
    ],
    ids=["no layers", "too many", "a negative size", "a path", "no digest", "a config that is none"],
)
def test_a_manifest_that_cannot_be_is_damage(store, change):
    _replace_manifest(store, change)

    with pytest.raises(DamageError, match="image app:1"):
        _find(store, "app:1").image_for(AMD64)


@pytest.mark.parametrize("size", [1, 10**6, 2**62, 2**70])
def test_a_size_that_is_not_the_blobs_is_damage(store, size):
    _replace_manifest(store, lambda manifest: manifest | {"layers": [manifest["layers"][0] | {"size": size}]})

    with pytest.raises(DamageError):
        (layer,) = _find(store, "app:1").image_for(AMD64).layers
        list(layer.open())


def test_layers_of_what_is_there(store):
    pushed = _put(store, "app:1")

    assert len(layers_of(store, Digest.parse(pushed.digest))) == 1
    assert layers_of(store, Digest.of(b"no such")) == set()


def test_what_is_no_name_is_refused(store):
    for image in ("App", "a b", "", "../x"):
        with pytest.raises(UsageError):
            _find(store, image)
    assert ImageName.parse("app").tag is not None


def test_a_bucket_that_is_not_there_is_told_from_an_image_that_is_not(tmp_path):
    store = Store(open_bucket(BucketUrl.parse(f"file://{tmp_path}/nosuch")))

    with pytest.raises(ObjectNotFound, match="there is no bucket"):
        find_image(store, "app:1", Spool(None), Progress())
