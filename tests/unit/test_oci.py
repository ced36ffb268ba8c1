"""Manifests, indexes and configs of anybody's making."""

import json

import pytest

from holdfast.errors import DamageError
from holdfast.model.digest import Digest
from holdfast.model.oci import (
    DOCKER_CONFIG_TYPE,
    DOCKER_INDEX_TYPE,
    DOCKER_MANIFEST_TYPE,
    IMAGE_CONFIG_TYPE,
    MANIFEST_TYPE,
    Descriptor,
    ImageConfig,
    ImageManifest,
    Index,
    Platform,
    chain_ids,
    read_manifest,
)

A, B, C = (Digest.of(word) for word in (b"a", b"b", b"c"))


def _manifest(**more):
    config = {"mediaType": IMAGE_CONFIG_TYPE, "digest": str(A), "size": 3}
    return {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": []} | more


def _index(*entries, **more):
    return {"schemaVersion": 2, "mediaType": DOCKER_INDEX_TYPE, "manifests": list(entries)} | more


def test_what_docker_wrote_before_there_was_oci_is_read_as_well():
    config = {"mediaType": DOCKER_CONFIG_TYPE, "digest": str(A), "size": 3}
    layer = {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": str(B), "size": 7}
    manifest = read_manifest(
        json.dumps(_manifest(mediaType=DOCKER_MANIFEST_TYPE, config=config, layers=[layer])).encode()
    )

    assert isinstance(manifest, ImageManifest)
    assert manifest.is_image
    assert [found.parsed() for found in manifest.layers] == [B]


def test_an_index_tells_platforms():
    entry = {"mediaType": MANIFEST_TYPE, "digest": str(A), "size": 3}
    arm = entry | {"platform": {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "1"}}
    index = read_manifest(json.dumps(_index(entry, arm)).encode())

    assert isinstance(index, Index)
    assert [str(found.platform) for found in index.manifests] == ["None", "linux/arm/v7"]
    assert str(Platform()) == "unknown"


@pytest.mark.parametrize(
    "more",
    [
        {"artifactType": "application/vnd.example"},
        {"config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(A), "size": 2}},
    ],
)
def test_artifacts_are_no_images(more):
    assert not read_manifest(json.dumps(_manifest(**more)).encode()).is_image


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b'{"config": 1}', b'{"manifests": null}'),
        json.dumps(_manifest(manifests=[])).encode(),
        json.dumps(_manifest(layers={})).encode(),
        json.dumps({"layers": []}).encode(),
        json.dumps({"schemaVersion": 1, "fsLayers": []}).encode(),
        json.dumps(_manifest(mediaType="?")).encode().replace(b"?", b"\x80"),
        json.dumps(_index(mediaType="?")).encode().replace(b"?", b"\x80"),
        b'{"what": ' + DEEP,
        b'{"manifests": ' + DEEP,
        b'{"config": {"x": ' + DEEP,
    ],
)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(DamageError):
        read_manifest(data)


def test_engines_write_null_for_no_layers():
    manifest = read_manifest(json.dumps(_manifest(layers=None)).encode())

    assert isinstance(manifest, ImageManifest)
    assert manifest.layers == []


@pytest.mark.parametrize(
    "data", [b"", b"null", b'{"rootfs": 1}', b'{"rootfs": {"diff_ids": [1]}}', b'{"os": "\x80"}', b'{"a": ' + DEEP]
)
def test_what_is_no_config_is_refused(data):
    with pytest.raises(DamageError):
        ImageConfig.decode(data)


@pytest.mark.parametrize("text", ["", "sha256:12", "sha256:" + "A" * 64, "../../etc/passwd", "md5:" + "0" * 32])
def test_digests_are_only_what_can_be_one(text):
    with pytest.raises(DamageError):
        Descriptor(MANIFEST_TYPE, text, 1).parsed()
    with pytest.raises(DamageError):
        _ = ImageConfig.decode(json.dumps({"rootfs": {"diff_ids": [text]}}).encode()).diff_ids


@pytest.mark.parametrize("data", [b"{}", b'{"rootfs": {}}', b'{"rootfs": {"diff_ids": null}}'])
def test_an_image_may_have_no_layers(data):
    assert ImageConfig.decode(data).diff_ids == ()


def test_a_chain_names_a_layer_with_all_below_it():
    # As in the specification: the first is the layer itself, each next one hashes the chain below and the layer.
    below = Digest.of(f"{A} {B}".encode())

    assert chain_ids([A, B, C]) == [A, below, Digest.of(f"{below} {C}".encode())]
    assert chain_ids([]) == []
    assert chain_ids([A, B])[-1] != chain_ids([B, A])[-1]
