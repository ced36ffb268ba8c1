"""The layout dogestry in a real object store."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from dogestry_rig import EMPTY, old_id, push_old, tar_of
from faulty import FaultyBucket
from holdfast.errors import UsageError
from holdfast.images.dogestry import image_json, layer_ids, read_image
from holdfast.model.digest import Digest
from holdfast.model.urls import BucketUrl
from holdfast.progress import Progress
from holdfast.storage.backends import open_bucket
from holdfast.storage.dogestry import DogestryLayout

pytestmark = pytest.mark.needs("seaweedfs")

MIB = 1024 * 1024


@pytest.fixture(params=["", "some/where"], ids=["bare", "prefix"])
def s3(request, make_s3_bucket):
    return make_s3_bucket(request.param)


@pytest.fixture
def layout(s3):
    return DogestryLayout(open_bucket(BucketUrl.parse(s3.url)))


def test_an_old_bucket_with_checksums(layout):
    layers = [tar_of(a=b"alpha"), EMPTY, tar_of(b=bytes(range(256)) * 40_000)]
    assert not layout.is_there()
    ids = push_old(layout.bucket, layers, "opsgoodies.com/docker-repo/hipache/latest", with_sum=True)
    layout.bucket.put("repositories/garbled/1", b"")

    assert layout.is_there()
    assert sorted(layout.tags()) == [
        ("garbled", "1", None),
        ("opsgoodies.com/docker-repo/hipache", "latest", ids[2]),
    ]
    assert layout.full_id(ids[2][:12]) == layout.tag("opsgoodies.com/docker-repo/hipache", "latest") == ids[2]
    assert layout.tag("opsgoodies.com/docker-repo", "hipache") is None

    watched = FaultyBucket(layout.bucket)
    image = read_image(DogestryLayout(watched), ids[2], None, Progress())

    assert [b"".join(layer.open()) for layer in image.layers] == [layers[0], layers[2]]
    assert sorted(key for call, key in watched.calls if call == "open_stream") == sorted(
        f"images/{one}/layer.tar" for one in ids
    )
    assert json.loads(image.config)["rootfs"]["diff_ids"] == [str(layer.diff_id) for layer in image.layers]


def test_an_image_there_and_back(s3, layout):
    layers = [tar_of(a=bytes(9 * MIB)), tar_of(b=b"beta")]
    diff_ids = [Digest.of(layer) for layer in layers]
    said = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": list(map(str, diff_ids))}}
    config = json.dumps(said).encode()
    ids = layer_ids(Digest.of(config), diff_ids)
    for number, layer in enumerate(layers):
        pieces = iter([layer[at : at + 700_000] for at in range(0, len(layer), 700_000)])
        layout.put_image(ids[number], image_json(ids, number, config, len(layer)), pieces, len(layer))
    layout.set_tag("team/app", "1.0", ids[-1])

    image = read_image(layout, layout.tag("team/app", "1.0"), None, Progress())

    assert image.config == config
    assert [b"".join(layer.open()) for layer in image.layers] == layers
    names = ("VERSION", "json", "layer.tar")
    assert s3.keys() == sorted(
        [f"images/{one}/{name}" for one in ids for name in names] + ["repositories/team/app/1.0"]
    )


def test_more_than_a_thousand_images_and_tags(layout):
    ids = [f"{number:04x}{old_id(number)[4:]}" for number in range(1100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda one: layout.bucket.put(f"images/{one}/json", b"{}"), ids))
        list(pool.map(lambda one: layout.set_tag("many", one[:4], one), ids))

    assert layout.full_id("044b") == ids[1099]
    assert layout.full_id("044c") is None
    with pytest.raises(UsageError, match="16 images"):
        layout.full_id("002")
    assert sorted(layout.tags()) == [("many", one[:4], one) for one in ids]


def test_keys_that_no_image_can_have_hide_nothing(s3, layout):
    ids = push_old(layout.bucket, [tar_of(a=b"alpha")], "app/latest")
    below = f"{s3.prefix}/" if s3.prefix else ""
    for key in (
        "repositories/a b/1",
        "repositories/é/1",
        "repositories/a%2Fb/1",
        "repositories/app/~",
        "images/x/json",
    ):
        s3.client.put_object(Bucket=s3.name, Key=below + key, Body=ids[0].encode())

    assert list(layout.tags()) == [("app", "latest", ids[0])]
    assert layout.full_id(ids[0][:4]) == ids[0]
