"""Listings go on past the 1,000 keys that one answer of an object store holds."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from commandline import Holdfast
from holdfast.model.digest import Digest
from holdfast.model.names import LATEST, Repository, Tag
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from holdfast.storage.store import Store
from trees import write

MANY = 1_234


@pytest.fixture(params=["", "deep/prefix"])
def store(request, make_s3_bucket):
    return Store(open_bucket(BucketUrl.parse(make_s3_bucket(request.param).url)))


def _put_all(store, keys, data):
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda key: store.bucket.put(key, data), keys))


def test_more_tags_keys_and_repositories_than_one_answer_holds(store):
    digest = Digest.of(b"a manifest")
    tags = sorted(f"t{number:05d}" for number in range(MANY))
    places = [f"docker/registry/v2/repositories/paths/many/_manifests/tags/{tag}/current/link" for tag in tags]
    others = [f"docker/registry/v2/repositories/volumes/v{n:05d}/_manifests/tags/x/current/link" for n in range(MANY)]
    _put_all(store, places + others, str(digest).encode())

    assert [tag.name for tag in store.tags(Repository("paths/many"))] == tags
    assert store.tags(Repository("paths/man")) == []
    assert store.resolve(Repository("paths/many"), Tag(tags[-1])) == digest
    names = [repository.name for repository in store.repositories("volumes")]
    assert names == [f"volumes/v{number:05d}" for number in range(MANY)]
    assert len(list(store.repositories())) == MANY + 1
    assert sorted(info.key for info in store.bucket.objects("docker/registry/v2/repositories/paths/many")) == places
    assert {info.size for info in store.bucket.objects("docker")} == {len(str(digest))}


def test_more_snapshots_than_one_answer_holds(s3_bucket, tmp_path):
    write(tmp_path / "source/file", "content")
    holdfast = Holdfast(s3_bucket.url)
    holdfast.backup(tmp_path / "source")
    store = Store(open_bucket(BucketUrl.parse(s3_bucket.url)))
    (repository,) = store.repositories("paths")
    digest = store.resolve(repository, LATEST)
    began = datetime(2020, 1, 1, tzinfo=UTC)
    tags = [Tag.of_snapshot(began + timedelta(hours=number), digest.hex) for number in range(MANY)]
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda tag: store.set_tag(repository, tag, digest), tags))

    listed = holdfast.run("snapshots", tmp_path / "source", "--json").json["snapshots"]

    assert [one["tag"] for one in listed][:-1] == [tag.name for tag in tags]
    assert (
        holdfast.restore(tmp_path / "source", "--at", "2020-02-20T12:30:00Z")["tag"]
        == "20200220T120000Z-" + digest.hex[:6]
    )
