"""Many clients of one server for a minute: nobody gets an error or another's files, and the server does not grow."""

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from backups import contents
from holdfast.model.names import SourceName
from holdfast.model.snapshot import RECORD_SIZE
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from holdfast.storage.cache import Cache
from holdfast.storage.store import Store
from holdfast.volumes.snapshots import list_snapshots, open_snapshot
from serving import Serving
from trees import KIB, MIB, write

LOAD_S = 60
CLIENTS = 32
SHARING = 8
VERSIONS = 4


class Watch:
    """What a server and its workers take, whoever looks: (seconds, resident bytes, threads, descriptors)."""

    def __init__(self, server: Serving) -> None:
        self._server = server
        self._began = time.monotonic()
        self._seen: list[tuple[float, int, int, int]] = []

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def look(self) -> None:
        resident = threads = descriptors = 0
        for pid in (self._server.pid, *self._server.workers()):
            with open(f"/proc/{pid}/statm") as file:
                resident += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            threads += len(os.listdir(f"/proc/{pid}/task"))
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        self._seen.append((self.seconds, resident, threads, descriptors))

    def most(self, start_s: float, end_s: float) -> tuple[int, ...]:
        """The most of each that was seen in a stretch of time."""
        seen = [numbers for at, *numbers in self._seen if start_s <= at < end_s]
        return tuple(map(max, zip(*seen, strict=True)))


def _make(folder, version, rng):
    """Files that all say which version they are of."""
    for name in ("one", "two", "below/three", f"below/of {version}"):
        write(folder / name, f"{version} ".encode() * rng.choice((1, 100, 20 * KIB)))


def _ask(server, verb, path):
    answer = server.ask(verb, str(path))
    assert answer.status == 200, answer.body
    return answer.json["data"]


def _save_and_restore(server, folder, watch, number):
    """A client with a directory of its own, which it damages and gets back."""
    rng = random.Random(number)
    rounds = 0
    while watch.seconds < LOAD_S:
        _make(folder, f"{number}-{rounds}", rng)
        saved = contents(folder)
        assert _ask(server, "GET", folder)["complete"]
        write(folder / "two", b"damaged")
        (folder / "one").unlink()
        write(folder / "surplus" / "file", b"more")
        done = _ask(server, rng.choice(("PUT", "PUT", "POST")), folder)
        found = contents(folder)
        if "surplus" in found:  # merged
            assert done["deleted"] == []
            assert {name: content for name, content in found.items() if not name.startswith("surplus")} == saved
            _ask(server, "PUT", folder)
        assert contents(folder) == saved
        watch.look()
        rounds += 1
    return rounds


def _share(server, folder, watch, number, tags):
    """A client that saves, or restores a version into, the directory of all."""
    rng = random.Random(number)
    rounds = 0
    while watch.seconds < LOAD_S:
        _ask(server, "PUT", f"{folder}?snapshot={rng.choice(tags)}")
        _ask(server, "GET", folder)
        watch.look()
        rounds += 1
    return rounds


def _files(store, cache, name, tag):
    """What a snapshot says of files' names and contents."""
    entries = open_snapshot(store, cache, name, tag=tag).entries()
    return [(entry.path, entry.kind, entry.size, _chunk_names(entry)) for entry in entries]


def _chunk_names(entry):
    return [entry.chunks[at : at + 32] for at in range(0, len(entry.chunks), RECORD_SIZE)]


@pytest.mark.needs("seaweedfs")
@pytest.mark.timeout(240)
def test_many_clients_for_a_minute(tmp_path, s3_bucket):
    data, shared = tmp_path / "data", tmp_path / "data" / "shared"
    server = Serving(tmp_path, {"HOLDFAST_STORE": s3_bucket.url, "HOLDFAST_PERSIST_ROOTS": str(data)})
    try:
        tags = []
        for version in range(VERSIONS):
            _make(shared, version, random.Random(version))
            tags.append(_ask(server, "GET", shared)["tag"])
            (shared / f"below/of {version}").unlink()
        watch = Watch(server)
        with ThreadPoolExecutor(CLIENTS + SHARING) as pool:
            own = [pool.submit(_save_and_restore, server, data / f"{n}", watch, n) for n in range(CLIENTS)]
            joint = [pool.submit(_share, server, shared, watch, n, tags) for n in range(SHARING)]
            rounds = [client.result() for client in (*own, *joint)]

        assert min(rounds) >= 2, rounds
        health = server.ask("GET", "/-/health").json
        assert (health["running"], health["waiting"]) == (0, 0)
        assert not [line for line in server.logged() if line["level"] in ("warn", "error")]
        _assert_only_what_was_saved(s3_bucket, tmp_path, shared, tags)
        early, late = watch.most(LOAD_S / 6, LOAD_S / 3), watch.most(LOAD_S * 2 / 3, LOAD_S)
        # By now caches, pools and arenas are about as full as they get: 30 MiB more were seen. Of the
        # thousand jobs and more in between, none may leave a thread, a descriptor, or a buffer of 100 KiB behind.
        assert late[0] < early[0] + 64 * MIB
        assert late[1] < early[1] + 64
        assert late[2] < early[2] + 128
        assert server.end() == 0
    finally:
        server.stop()


def _assert_only_what_was_saved(bucket, tmp_path, shared, tags):
    store, cache = Store(open_bucket(BucketUrl.parse(bucket.url))), Cache(tmp_path / "cache")
    name = SourceName(os.fsencode(shared))
    known = [_files(store, cache, name, tag) for tag in tags]
    listed = list(list_snapshots(store, name))
    assert len(listed) > len(tags)
    for one in listed:
        assert _files(store, cache, name, one.tag.name) in known, one.tag
