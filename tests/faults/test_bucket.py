"""A bucket that is refused, unreachable, slow, or goes away: one clear sentence, no traceback, nothing lost."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from datetime import timedelta

import pytest

from backups import Rig, leftovers, memory_bucket, state
from faulty import FaultyBucket
from holdfast.errors import AccessDenied, DamageError, HoldfastError, NotFoundError, ObjectNotFound, Unavailable
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket, s3
from servers import free_ports


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    for number in range(20):
        (rig.source / f"{number}").write_bytes(os.urandom(50_000))
    return rig


def _s3(rig, url):
    return rig.on(open_bucket(BucketUrl.parse(url)))


@pytest.fixture
def impatient(monkeypatch):
    """Retries that end at once."""
    backoff = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}
    monkeypatch.setattr(s3, "RETRIES", {"max_retries": 1, "retry_timeout": timedelta(seconds=1), "backoff": backoff})
    monkeypatch.setattr(s3, "_TIMEOUTS", {"connect_timeout": "1s", "read_timeout": "1s", "timeout": "1s"})
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S3CRET")


def test_nobody_listens(rig, impatient):
    (port,) = free_ports(1)
    there = _s3(rig, f"s3://bucket?endpoint=http://127.0.0.1:{port}&region=us-east-1")

    for work in (there.backup, there.open):
        with pytest.raises(Unavailable) as caught:
            work()
        assert "check the endpoint" in (caught.value.hint or "")
        assert "S3CRET" not in str(caught.value)


def test_somebody_listens_and_never_answers(rig, impatient):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        there = _s3(rig, f"s3://bucket?endpoint=http://127.0.0.1:{port}&region=us-east-1")

        with pytest.raises(Unavailable):
            there.backup()


def test_somebody_answers_with_nonsense(rig, impatient):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        there = _s3(rig, f"s3://bucket?endpoint=http://127.0.0.1:{server.getsockname()[1]}&region=us-east-1")
        with pytest.raises(HoldfastError):
            there.backup()
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.mark.needs("seaweedfs")
def test_a_wrong_key(rig, s3_bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S3CRET-and-wrong")
    there = _s3(rig, s3_bucket.url)

    for work in (there.backup, there.open):
        with pytest.raises(AccessDenied) as caught:
            work()
        assert "check the credentials" in (caught.value.hint or "")
        assert "S3CRET" not in str(caught.value)


@pytest.mark.needs("seaweedfs")
def test_a_bucket_that_does_not_exist(rig, make_s3_bucket):
    bucket = make_s3_bucket(create=False)
    there = _s3(rig, bucket.url)
    with pytest.raises(NotFoundError):
        there.open()
    assert not bucket.exists()

    there.backup()
    assert there.restored() == state(rig.source)


@pytest.mark.needs("seaweedfs")
def test_a_bucket_deleted_half_way(rig, s3_bucket):
    class Deleted(FaultyBucket):
        def put(self, key, data):
            if "/blobs/" in key and s3_bucket.exists():
                s3_bucket.delete()
            super().put(key, data)

    there = _s3(rig, s3_bucket.url)
    there.bucket = Deleted(there.bucket)
    with pytest.raises(HoldfastError):
        there.backup()

    again = _s3(rig, s3_bucket.url)
    again.backup()
    assert again.restored() == state(rig.source)


@pytest.mark.needs("seaweedfs")
def test_damage_in_s3_is_damage(rig, s3_bucket):
    """Ranges behind the end of an object, and objects that are gone, as S3 itself reports them."""
    there = _s3(rig, s3_bucket.url)
    there.backup()
    snapshot = there.open()
    (digest, *_) = [row.digest for row, _ in snapshot.layers.values()]
    key = next(
        one.key for one in there.bucket.objects("docker/registry/v2/blobs") if digest.partition(":")[2] in one.key
    )
    whole = there.bucket.get(key, limit=1 << 30)
    for data in (whole[: len(whole) // 2], whole[:10], b""):
        there.bucket.put(key, data)
        with pytest.raises(DamageError) as caught:
            there.restore(there.new_target())
        assert digest in str(caught.value)
    there.bucket.delete(key)
    with pytest.raises(DamageError):
        there.restore(there.new_target())
    there.backup()
    there.fresh_cache()
    assert there.restored() == state(rig.source)


def test_a_store_directory_deleted_half_way(rig, tmp_path):
    store = tmp_path / "store"
    there = rig.on(open_bucket(BucketUrl.parse(f"file://{store}")))
    there.backup()

    class Deleted(FaultyBucket):
        def put(self, key, data):
            if "/blobs/" in key and not self.hit:
                self.hit = True
                shutil.rmtree(store)
            super().put(key, data)

    (rig.source / "new").write_bytes(os.urandom(100_000))
    with pytest.raises(ObjectNotFound):
        rig.on(Deleted(there.bucket)).backup()

    there.backup()
    assert there.restored() == state(rig.source)


def test_a_slow_bucket_is_only_slow(rig):
    """Each answer comes when all the others that are under way have been asked for, or after a moment."""

    class Slow(FaultyBucket):
        def _do(self, kind, key, action):
            threading.Event().wait(0.005)
            return super()._do(kind, key, action)

    there = rig.on(Slow(memory_bucket()))
    there.backup()

    assert there.restored() == state(rig.source)


def test_the_command_line_says_it_in_one_sentence(tmp_path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*arguments):
        command = [sys.executable, "-m", "holdfast", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    (tmp_path / "store").mkdir()
    url = f"file://{tmp_path}/store"
    cases = {
        ("restore", "nothing", "--store", url, "--target", str(tmp_path / "t")): 4,
        ("ls", "nothing", "--store", url): 4,
        ("backup", str(tmp_path / "none"), "--store", url): 4,
        ("backup", str(tmp_path), "--store", "ftp://x"): 2,
        ("backup", str(tmp_path), "--store", url, "--compression", "gzip"): 2,
        ("backup", str(tmp_path), "--store", f"file://{tmp_path}/missing?create=false"): 4,
        ("restore", "/x@latest", "--at", "2026-01-01", "--store", url): 2,
    }
    for arguments, code in cases.items():
        done = run(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert done.stderr.startswith("error: "), arguments
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert not (tmp_path / "t").exists()
    assert not (tmp_path / "missing").exists()
    assert leftovers(tmp_path) == []


def test_a_name_that_does_not_exist_is_answered_with_those_that_do(rig):
    rig.backup()
    other = Rig(rig.folder, rig.bucket, type(rig.name)(b"tirla"))

    with pytest.raises(NotFoundError) as caught:
        other.open()
    assert "trial" in (caught.value.hint or "")
    with pytest.raises(NotFoundError) as caught:
        rig.open("20000101T000000Z-000000")
    assert rig.store.tags(rig.name.repository)[0].name in (caught.value.hint or "")
    with pytest.raises(NotFoundError):
        rig.restore(rig.new_target(), paths=(b"none",))
