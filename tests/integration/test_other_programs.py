"""GNU tar, zstd, Debian's registry and skopeo read what we wrote, and we what they wrote."""

import hashlib
import json
import subprocess
import urllib.request
from pathlib import Path

import pytest

from commandline import Holdfast
from holdfast.errors import DamageError
from holdfast.model.digest import Digest
from holdfast.model.names import Repository, Tag
from holdfast.model.oci import MANIFEST_TYPE
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from holdfast.storage.store import Store
from trees import KIB, MIB, assert_same, fingerprint, make_rich, random_bytes, rewrite, write


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


def _store(url):
    return Store(open_bucket(BucketUrl.parse(url)))


def _snapshot(url):
    """The only repository of a store, its latest manifest, and where that lies."""
    store = _store(url)
    (repository,) = store.repositories()
    digest = store.resolve(repository, Tag("latest"))
    return store, repository, digest, store.read_manifest(repository, digest)


def _layers(url, media_type):
    store, _, _, manifest = _snapshot(url)
    assert {layer.media_type for layer in manifest.layers[1:]} == {media_type}
    return [store.read_blob(layer.parsed(), limit=layer.size) for layer in manifest.layers[1:]]


def _run(*command, **more):
    done = subprocess.run(command, capture_output=True, check=False, **more)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


def _copy(origin, destination, *options):
    """Copy with skopeo, every byte as it is."""
    fixed = ("--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false")
    _run("skopeo", *fixed, *options, origin, destination)


@pytest.mark.needs("tar", "zstd")
@pytest.mark.parametrize("compression", ["zstd", "zstd:19", "none"])
def test_gnu_tar_and_zstd_read_layers(compression, source, tmp_path):
    """Every layer by itself, and all of a first snapshot together, with the parts of a large file joined by cat."""
    for number in range(5):
        write(
            source / f"dir/file-{number}", random_bytes(700 * KIB, number), mtime_ns=1_600_000_000_000_000_000 + number
        )
    write(source / ("long name " * 20) / ("x" * 200), "content")
    write(source / "not\nonly\tplain", "content 2")
    write(source / "big", random_bytes((70 if compression != "zstd:19" else 20) * MIB, 9))
    (source / "dir/again").hardlink_to(source / "dir/file-1")
    (source / "link").symlink_to("t" * 300)
    Holdfast(f"file://{tmp_path}/store").backup(source, "--compression", compression)
    before = fingerprint(source)

    media_type = "application/vnd.oci.image.layer.v1.tar" + ("" if compression == "none" else "+zstd")
    blobs = _layers(f"file://{tmp_path}/store", media_type)
    archives = blobs if compression == "none" else [_run("zstd", "-d", "-c", input=blob) for blob in blobs]
    listed = [line for archive in archives for line in _run("tar", "tv", input=archive).splitlines()]
    out = tmp_path / "out"
    out.mkdir()
    for archive in archives:
        _run("tar", "xp", "--numeric-owner", "--delay-directory-restore", cwd=out, input=archive)

    assert len(archives) == (2 if compression != "zstd:19" else 1)
    parts = sorted((out / ".holdfast/parts/big").iterdir())
    assert len(parts) == sum(b".holdfast/parts/big/" in line for line in listed) > 1
    offset = 0
    for part in parts:
        assert int(part.name) == offset
        offset += part.stat().st_size
    assert b"".join(part.read_bytes() for part in parts) == (source / "big").read_bytes()
    after = fingerprint(out)
    for path in [path for path in after if path.startswith(b".holdfast")] + [b"."]:
        del after[path]
    del before[b"big"], before[b"."]
    for facts in (*before.values(), *after.values()):
        facts["mtime_ns"] //= 10**9
    assert_same(before, after)


def test_docker_registry_serves_a_snapshot_from_our_bucket(make_s3_bucket, docker_registry, source):
    bucket = make_s3_bucket("some/prefix")
    make_rich(source)
    holdfast = Holdfast(bucket.url)
    holdfast.backup(source)
    write(source / "more", random_bytes(MIB))
    tag = holdfast.backup(source)["tag"]
    _, repository, digest, manifest = _snapshot(bucket.url)
    registry = docker_registry(bucket)

    def get(path):
        request = urllib.request.Request(f"{registry.url}/v2/{path}", headers={"Accept": MANIFEST_TYPE})
        with urllib.request.urlopen(request) as answer:
            return answer.read(), answer.headers

    assert json.loads(get("_catalog")[0]) == {"repositories": [repository.name]}
    tags = json.loads(get(f"{repository}/tags/list")[0])["tags"]
    assert {tag, "latest"} < set(tags)
    assert len(tags) == 3
    for reference in (tag, "latest", digest):
        body, headers = get(f"{repository}/manifests/{reference}")
        assert Digest.of(body) == digest
        assert headers["Docker-Content-Digest"] == str(digest)
        assert headers["Content-Type"] == MANIFEST_TYPE
    blobs = [manifest.config, *manifest.layers]
    assert len(blobs) >= 4
    base = f"docker/registry/v2/repositories/{repository}/_manifests"
    assert {f"{base}/tags/{name}/index/sha256/{digest.hex}/link" for name in (tag, "latest")} < set(bucket.keys())
    assert f"{base}/revisions/sha256/{digest.hex}/link" in bucket.keys()  # noqa: SIM118
    for blob in blobs:
        body, headers = get(f"{repository}/blobs/{blob.digest}")
        assert f"sha256:{hashlib.sha256(body).hexdigest()}" == blob.digest
        assert len(body) == blob.size == int(headers["Content-Length"])


@pytest.mark.needs("skopeo")
def test_skopeo_carries_a_snapshot_to_another_registry(s3_bucket, docker_registry, source, tmp_path):
    make_rich(source)
    here = Holdfast(s3_bucket.url)
    here.backup(source)
    write(source / "large", random_bytes(20 * MIB))
    rewrite(source / "links/first", 0, b"changed")
    here.backup(source)
    before = fingerprint(source)
    _, repository, digest, _ = _snapshot(s3_bucket.url)
    ours, theirs = docker_registry(s3_bucket), docker_registry(tmp_path / "theirs")
    origin = f"docker://{ours.host}/{repository}:latest"

    raw = _run("skopeo", "inspect", "--raw", "--tls-verify=false", origin)
    _copy(origin, f"docker://{theirs.host}/{repository}:latest", "--src-tls-verify=false")
    there = Holdfast(f"file://{tmp_path}/theirs")
    there.restore(source, "--target", tmp_path / "back")

    assert Digest.of(raw) == digest
    assert _snapshot(there.store)[2] == digest
    assert_same(before, fingerprint(tmp_path / "back"))
    assert there.backup(source)["bytes_read"] == 0  # and it goes on from there


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("where", ["bucket", "bucket below a prefix", "directory"])
def test_what_a_registry_took_we_read(where, make_s3_bucket, docker_registry, tmp_path):
    bucket = None if where == "directory" else make_s3_bucket("" if where == "bucket" else "a/b")
    registry = docker_registry(bucket or tmp_path / "store")
    layer = random_bytes(3 * MIB)
    image = _image(tmp_path / "image", layer)
    for name in ("team/app:1.0", "team/app:2", "other:x"):
        _copy(image, f"docker://{registry.host}/{name}")

    store = _store(bucket.url if bucket else f"file://{tmp_path}/store")

    assert [repository.name for repository in store.repositories()] == ["other", "team/app"]
    app = Repository("team/app")
    assert [tag.name for tag in store.tags(app)] == ["1.0", "2"]
    manifest = store.read_manifest(app, store.resolve(app, Tag("1.0")))
    blob = manifest.layers[0].parsed()
    assert store.read_blob(blob, limit=4 * MIB) == layer
    assert store.blob_size(blob) == len(layer) == manifest.layers[0].size
    assert store.read_blob_range(blob, 1 * MIB, 1000) == layer[MIB : MIB + 1000]
    assert json.loads(store.read_blob(manifest.config.parsed(), limit=MIB))["architecture"] == "amd64"
    with pytest.raises(DamageError, match="truncated"):
        store.read_blob_range(blob, 3 * MIB - 10, 11)


def _image(directory: Path, layer: bytes) -> str:
    """An image of one layer, as an OCI layout on disk."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    base = "application/vnd.oci.image"
    layers = [put(layer, f"{base}.layer.v1.tar")]
    rootfs = {"type": "layers", "diff_ids": [layers[0]["digest"]]}
    config = put(
        json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode(), f"{base}.config.v1+json"
    )
    document = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
    manifest = put(json.dumps(document).encode(), MANIFEST_TYPE)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    return f"oci:{directory}"
