"""The servers that other tests rely on are what they claim to be."""

import hashlib
import json
import subprocess
import urllib.request

import boto3
import pytest
from botocore.exceptions import ClientError


def _error_code(caught):
    return caught.value.response["Error"]["Code"]


def test_a_bucket_gives_back_what_it_took(s3_bucket):
    # Credentials come from os.environ, as they do for the program under test.
    client = boto3.client("s3", endpoint_url=s3_bucket.endpoint)

    client.put_object(Bucket=s3_bucket.name, Key="a/b", Body=b"kelp")

    assert client.get_object(Bucket=s3_bucket.name, Key="a/b")["Body"].read() == b"kelp"
    assert s3_bucket.keys() == ["a/b"]


def test_seaweedfs_refuses_a_wrong_key(s3_bucket):
    wrong = {"aws_access_key_id": s3_bucket.access_key, "aws_secret_access_key": "wrong"}
    stranger = boto3.client("s3", endpoint_url=s3_bucket.endpoint, **wrong)

    with pytest.raises(ClientError) as caught:
        stranger.list_objects_v2(Bucket=s3_bucket.name)

    assert _error_code(caught) == "SignatureDoesNotMatch"


def test_seaweedfs_honours_conditional_writes(s3_bucket):
    put = s3_bucket.client.put_object
    put(Bucket=s3_bucket.name, Key="once", Body=b"first", IfNoneMatch="*")

    with pytest.raises(ClientError) as caught:
        put(Bucket=s3_bucket.name, Key="once", Body=b"second", IfNoneMatch="*")

    assert _error_code(caught) == "PreconditionFailed"
    assert s3_bucket.client.get_object(Bucket=s3_bucket.name, Key="once")["Body"].read() == b"first"


def test_seaweedfs_does_not_create_buckets_by_itself(make_s3_bucket):
    bucket = make_s3_bucket(create=False)

    with pytest.raises(ClientError) as caught:
        bucket.client.put_object(Bucket=bucket.name, Key="k", Body=b"")

    assert _error_code(caught) == "NoSuchBucket"
    assert not bucket.exists()


def test_a_second_seaweedfs_is_independent(s3_bucket, start_seaweedfs, make_s3_bucket):
    other = start_seaweedfs()
    elsewhere = make_s3_bucket(seaweedfs=other)

    names = [bucket["Name"] for bucket in s3_bucket.client.list_buckets()["Buckets"]]

    assert elsewhere.exists()
    assert elsewhere.name not in names


@pytest.mark.parametrize("kind", ["bucket", "bucket below a prefix", "directory"])
@pytest.mark.needs("skopeo")
def test_a_registry_serves_what_was_pushed_into_its_store(kind, docker_registry, make_s3_bucket, tmp_path):
    image = _make_image(tmp_path / "image")
    store = {
        "bucket": make_s3_bucket,
        "bucket below a prefix": lambda: make_s3_bucket(prefix="deep/below"),
        "directory": lambda: tmp_path / "store",
    }[kind]()
    registry, replica = docker_registry(store), docker_registry(store)

    subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", image, f"docker://{registry.host}/a/b:1"],
        check=True,
        capture_output=True,
    )

    with urllib.request.urlopen(f"{replica.url}/v2/a/b/tags/list") as response:
        assert json.load(response) == {"name": "a/b", "tags": ["1"]}
    tag = "docker/registry/v2/repositories/a/b/_manifests/tags/1/current/link"
    assert (tmp_path / "store" / tag).exists() if kind == "directory" else tag in store.keys()  # noqa: SIM118


def test_a_registry_answers(docker_registry):
    with urllib.request.urlopen(f"{docker_registry().url}/v2/") as response:
        assert response.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


def test_tests_have_a_home_of_their_own(home):
    assert list(home.iterdir()) == []


def _make_image(directory):
    """An image of no layers, as an OCI layout on disk."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(value, media_type):
        data = json.dumps(value).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    config = put(
        {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}},
        "application/vnd.oci.image.config.v1+json",
    )
    manifest = put(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [],
        },
        "application/vnd.oci.image.manifest.v1+json",
    )
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    return f"oci:{directory}"
