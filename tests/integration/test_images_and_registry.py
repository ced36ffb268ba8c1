"""What Holdfast pushes, registries and their clients take; what they push, Holdfast takes: on one bucket."""

import hashlib
import json
import urllib.request

import pytest

from images import build, diff_ids, random_bytes
from shipping import MIB, Ship, files, id_in, keeps_blobs, layer, layers_in, load, read_blob, skopeo

pytestmark = [
    pytest.mark.needs("docker", "docker-registry", "seaweedfs"),
    # A command leaves its connections to its end, which these commands, being run in this process, do not have.
    pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning"),
]

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def registry(docker_registry, s3_bucket):
    return docker_registry(s3_bucket)


def test_docker_pulls_what_was_pushed_with_gzip(each_engine, every_kind, ship, s3_bucket, registry, image):
    there = build(each_engine, f"team/{image}", [{"a": random_bytes(5 * MIB, image)}, {"b": b"kelp"}])
    pushed = ship.push(each_engine, f"team/{image}", "--compression", "gzip")

    for engine in every_kind:
        engine.docker("pull", f"{registry.host}/team/{image}")
        assert files(engine, f"{registry.host}/team/{image}") == files(each_engine, f"team/{image}")
        if keeps_blobs(engine):
            assert id_in(engine, f"{registry.host}/team/{image}") == pushed["digest"]
        elif not keeps_blobs(each_engine):
            assert id_in(engine, f"{registry.host}/team/{image}") == there
        engine.docker("rmi", f"{registry.host}/team/{image}")
    types = {one["mediaType"].rpartition(".")[2] for one in layers_in(s3_bucket, pushed["digest"])}
    assert len(types) == 1
    assert next(iter(types)) in ("tar+gzip", "gzip", "tar")  # the containerd store keeps layers as it has them


def test_new_engines_pull_what_was_pushed_with_zstd(docker_engine, every_kind, ship, s3_bucket, registry, image):
    there = load(docker_engine, image, [layer(a=random_bytes(5 * MIB, image)), layer(b=b"kelp")])

    pushed = ship.push(docker_engine, image)

    assert all(one["mediaType"].endswith("+zstd") for one in layers_in(s3_bucket, pushed["digest"]))
    for engine in every_kind[1:]:
        engine.docker("pull", f"{registry.host}/{image}")
        assert id_in(engine, f"{registry.host}/{image}") == (pushed["digest"] if keeps_blobs(engine) else there)
        assert files(engine, f"{registry.host}/{image}") == files(docker_engine, image)


def test_what_docker_pushed_is_pulled_into_every_kind_of_engine(
    each_engine, every_kind, ship, s3_bucket, registry, image
):
    name = f"{registry.host}/team/{image}:1.0"
    there = build(each_engine, name, [{"a": random_bytes(5 * MIB, image)}, {"b": b"kelp"}])
    each_engine.docker("push", name)
    expected = files(each_engine, name)

    assert ship.list() == [f"team/{image}:1.0"]
    for engine in every_kind:
        pulled = ship.pull(engine, f"team/{image}:1.0")
        assert files(engine, f"team/{image}:1.0") == expected
        if keeps_blobs(engine) == keeps_blobs(each_engine):
            assert pulled["image_id"] == there
    assert ship.pull(each_engine, f"team/{image}:1.0")["bytes_read"] == 0


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_skopeo_reads_what_was_pushed(docker_engine, ship, registry, image, tmp_path, compression):
    layers = [layer(a=random_bytes(5 * MIB, image)), layer(b=b"kelp"), layer()]
    there = load(docker_engine, f"team/{image}", layers)
    pushed = ship.push(docker_engine, f"team/{image}", "--compression", compression)
    source, copied = f"docker://{registry.host}/team/{image}:latest", tmp_path / "copied"

    told = json.loads(skopeo("inspect", "--tls-verify=false", source))
    skopeo("copy", "--src-tls-verify=false", "--dest-decompress", source, f"dir:{copied}")

    assert told["Digest"] == pushed["digest"]
    assert len(told["Layers"]) == len(layers)
    expected = [there, *diff_ids(docker_engine, f"team/{image}")]
    assert {digest.removeprefix("sha256:") for digest in expected} < {path.name for path in copied.iterdir()}


@pytest.mark.needs("skopeo")
def test_what_skopeo_copied_with_zstd_is_pulled(docker_engine, every_kind, ship, s3_bucket, registry, image, tmp_path):
    load(docker_engine, image, [layer(a=random_bytes(5 * MIB, image)), layer(b=b"kelp")])
    docker_engine.docker("save", "--output", tmp_path / "saved.tar", image)
    copy = ["copy", "--dest-tls-verify=false", "--dest-compress-format", "zstd", "--format", "oci"]
    skopeo(*copy, f"docker-archive:{tmp_path}/saved.tar", f"docker://{registry.host}/copied:1")

    pulled = ship.pull_into([engine.host for engine in every_kind], "copied:1")

    assert [host["state"] for host in pulled["hosts"]] == ["pulled"] * len(every_kind)
    manifest = json.loads(read_blob(s3_bucket, pulled["digest"]))
    assert {one["mediaType"].rpartition("+")[2] for one in manifest["layers"]} == {"zstd"}
    for engine in every_kind:
        assert files(engine, "copied:1") == files(docker_engine, image)
        assert id_in(engine, "copied:1") == (pulled["digest"] if keeps_blobs(engine) else manifest["config"]["digest"])
        engine.docker("rmi", "copied:1")


# Images for several platforms


def _send(registry, method, path, data, content_type):
    request = urllib.request.Request(
        path if path.startswith("http") else f"{registry.url}{path}",
        data=data,
        method=method,
        headers={"Content-Type": content_type},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        return response.headers


def _put_blob(registry, repository, data):
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    place = _send(registry, "POST", f"/v2/{repository}/blobs/uploads/", b"", "application/octet-stream")["Location"]
    _send(registry, "PUT", f"{place}&digest={digest}", data, "application/octet-stream")
    return {"digest": digest, "size": len(data)}


def _put_manifest(registry, repository, document, reference=None):
    data = json.dumps(document).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    _send(registry, "PUT", f"/v2/{repository}/manifests/{reference or digest}", data, document["mediaType"])
    return {"mediaType": document["mediaType"], "digest": digest, "size": len(data)}


def _put_index(registry, repository, contents):
    """Push an image for each of some platforms, and their index as ``latest``; gives its digest."""
    manifests = []
    for architecture, content in contents.items():
        packed = layer(a=content)
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(packed).hexdigest()}"]},
        }
        described = _put_blob(registry, repository, json.dumps(config).encode())
        layers = [_put_blob(registry, repository, packed) | {"mediaType": "application/vnd.oci.image.layer.v1.tar"}]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": described | {"mediaType": "application/vnd.oci.image.config.v1+json"},
            "layers": layers,
        }
        platform = {"os": "linux", "architecture": architecture}
        manifests.append(_put_manifest(registry, repository, manifest) | {"platform": platform})
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
    return _put_manifest(registry, repository, index, "latest")["digest"]


def test_an_index_is_pulled_for_the_platform_of_each_engine(every_kind, ship, s3_bucket, registry, image):
    index = _put_index(registry, image, {"arm64": b"for arm", "amd64": image.encode(), "s390x": b"for z"})

    pulled = ship.pull_into([engine.host for engine in every_kind], image)

    assert pulled["digest"] == index
    assert [host["state"] for host in pulled["hosts"]] == ["pulled"] * len(every_kind)
    for engine in every_kind:
        assert files(engine, image) == {"a": image.encode()}
        assert not keeps_blobs(engine) or id_in(engine, image) == index
        assert ship.pull(engine, image)["hosts"][0]["state"] == "up to date"


def test_an_index_without_the_platform_is_not_pulled(docker_engine, ship, registry, image):
    _put_index(registry, image, {"arm64": b"for arm", "s390x": b"for z"})

    told = ship.pull(docker_engine, image, code=4)

    assert "linux/amd64" in told["error"]
    assert "linux/arm64" in told["hint"]
    assert id_in(docker_engine, image) is None


def test_an_index_keeps_its_digest_on_its_way_through_an_engine(
    engine_28_containerd, make_s3_bucket, ship, registry, image
):
    index = _put_index(registry, image, {"arm64": b"for arm", "amd64": image.encode()})
    ship.pull(engine_28_containerd, image)
    engine_28_containerd.docker("tag", image, f"again/{image}:2")

    here = ship.push(engine_28_containerd, f"again/{image}:2")
    elsewhere = Ship(make_s3_bucket().url)
    there = elsewhere.push(engine_28_containerd, image)

    assert here["digest"] == there["digest"] == index
    assert (here["read_engine"], here["bytes_sent"]) == (False, 0)
    engine_28_containerd.docker("rmi", image, f"again/{image}:2")
    assert elsewhere.pull(engine_28_containerd, image)["image_id"] == index
    assert files(engine_28_containerd, image) == {"a": image.encode()}


@pytest.mark.needs("skopeo")
def test_an_index_that_skopeo_copied_whole_is_one_still(engine_28_containerd, ship, registry, image):
    index = _put_index(registry, image, {"arm64": b"for arm", "amd64": image.encode()})
    copy = ["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"]
    skopeo(*copy, f"docker://{registry.host}/{image}", f"docker://{registry.host}/copied:1")

    assert ship.pull(engine_28_containerd, "copied:1")["image_id"] == index
    assert diff_ids(engine_28_containerd, "copied:1") == [
        f"sha256:{hashlib.sha256(layer(a=image.encode())).hexdigest()}"
    ]
    engine_28_containerd.docker("rmi", "copied:1")


def test_a_repository_of_another_kind_is_no_image(docker_engine, ship, s3_bucket, registry, image):
    blob = _put_blob(registry, image, b"a chart, say")
    config = _put_blob(registry, image, b"{}")
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": "application/vnd.example.chart",
        "config": config | {"mediaType": "application/vnd.oci.empty.v1+json"},
        "layers": [blob | {"mediaType": "text/plain"}],
    }
    digest = _put_manifest(registry, image, manifest, "latest")["digest"]

    told = ship.pull(docker_engine, image, code=2)

    assert "application/vnd.example.chart" in told["error"]
    assert json.loads(read_blob(s3_bucket, digest)) == manifest
