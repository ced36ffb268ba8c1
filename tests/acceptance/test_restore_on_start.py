"""`restore --if-empty --wait-for-store`: what the entrypoint of a container runs before its program."""

import errno
import os
import signal
import subprocess
from urllib.parse import urlsplit

import pytest

from backups import contents, leftovers, state
from commandline import Holdfast
from gate import Gate
from holdfast.archive.extract import Tree
from holdfast.cli import volumes
from holdfast.errors import INCOMPLETE, Unavailable
from holdfast.volumes import first
from servers import free_ports
from trees import random_bytes, write


@pytest.fixture
def saved(local, source):
    write(source / "file", "kelp")
    write(source / "folder/other", "rope")
    local.backup(source)
    return source


def _start(command, source, *arguments, code=0):
    return command.run("restore", source, "--if-empty", *arguments, code=code)


@pytest.mark.parametrize("kind", ["missing", "empty", "a new file system"])
def test_an_empty_place_is_filled(local, saved, tmp_path, kind):
    target = tmp_path / "target"
    if kind != "missing":
        target.mkdir()
    if kind == "a new file system":
        (target / "lost+found").mkdir()
    ran = _start(local, saved, "--target", target, "--json")

    assert ran.json["restored"] is True
    assert contents(target)["file"] == b"kelp"
    assert leftovers(target) == []


def test_a_place_with_something_in_it_is_left_alone(local, saved):
    (saved / "file").write_bytes(b"the program's own")
    (saved / "folder/other").unlink()
    before = state(saved)
    ran = _start(local, saved, "--json")

    assert ran.json["restored"] is False
    assert state(saved) == before
    assert "nothing was restored" in _start(local, saved).text


def test_the_store_is_not_even_asked_then(saved, source):
    dead = Holdfast(f"s3://bucket?endpoint=http://127.0.0.1:{free_ports(1)[0]}")
    assert "nothing was restored" in _start(dead, source).text


def test_a_single_file(local, source):
    file = source / "settings"
    write(file, "one")
    local.backup(file)
    file.write_text("two")
    _start(local, file)
    assert file.read_text() == "two"
    file.unlink()
    _start(local, file)
    assert contents(source) == {"settings": b"one"}


def test_nothing_saved_yet_is_told_apart(local, saved, tmp_path):
    ran = _start(local, tmp_path / "never", code=4)
    assert "never" in ran.err
    assert not (tmp_path / "never").exists()


def test_a_part_is_not_taken_for_the_whole(local, source, tmp_path):
    """However far a restore came before it was killed, the next start goes on with it."""
    for number in range(40):
        write(source / f"{number}", random_bytes(700_000, number))
    local.backup(source)
    target = tmp_path / "target"
    killed = 0
    for attempt in range(40):
        with local.start("restore", source, "--if-empty", "--target", target) as running:
            try:
                running.wait(0.1 + attempt * 0.02)
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGKILL)
        killed += running.returncode != 0
        if running.returncode == 0:
            break
    assert state(target) == state(source)
    assert leftovers(target) == []
    _start(local, source, "--target", target)
    assert killed


def test_the_mark_of_an_interrupted_restore_is_seen(local, saved, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_bytes(b"half")
    (target / (".holdfast-" + "0" * 32)).touch()
    _start(local, saved, "--target", target)

    assert state(target) == state(saved)


@pytest.mark.parametrize("layout", ["registry", "tarball"])
def test_the_mark_stays_until_all_is_done(tmp_path, monkeypatch, layout):
    """Directories get their metadata last of all: until then, only we could use them."""
    source, target = tmp_path / "source", tmp_path / "target"
    write(source / "folder/file", "kelp")
    for path in (source / "folder/file", source / "folder", source):
        os.utime(path, (7, 7))  # a tarball keeps whole seconds
    monkeypatch.setenv("HOLDFAST_STORE", f"file://{tmp_path}/store?layout={layout}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    volumes.backup(str(source), quiet=True)
    marked = []
    set_metadata = Tree.set_metadata

    def look_and_set(self, entry, status=None):
        marked.append((entry.path, not first.is_empty(bytes(target))))
        set_metadata(self, entry, status)

    monkeypatch.setattr(Tree, "set_metadata", look_and_set)
    volumes.restore(str(source), target=str(target), if_empty=True, quiet=True)

    assert marked == [(b"folder", False), (b"", True)]
    assert state(target) == state(source)
    assert leftovers(target) == []


@pytest.mark.parametrize("layout", ["registry", "tarball"])
def test_an_incomplete_restore_is_not_taken_for_the_whole(tmp_path, monkeypatch, layout):
    source, target = tmp_path / "source", tmp_path / "target"
    write(source / "file", "kelp")
    write(source / "other", "rope")
    monkeypatch.setenv("HOLDFAST_STORE", f"file://{tmp_path}/store?layout={layout}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    volumes.backup(str(source), quiet=True)
    create = Tree.create

    def fail_one(self, name, folder, entry):
        if entry.path == b"other":
            raise PermissionError(errno.EACCES, "Permission denied")
        return create(self, name, folder, entry)

    with monkeypatch.context() as failing:
        failing.setattr(Tree, "create", fail_one)
        assert volumes.restore(str(source), target=str(target), if_empty=True, quiet=True) == INCOMPLETE
    assert volumes.restore(str(source), target=str(target), if_empty=True, quiet=True) == 0

    assert contents(target) == contents(source)
    assert leftovers(target) == []


@pytest.mark.needs("seaweedfs")
def test_a_store_that_comes_late(s3_bucket, source, tmp_path):
    """It lets nobody in at first, and not before the restore has knocked."""
    write(source / "file", "kelp")
    Holdfast(s3_bucket.url).backup(source)
    gate = Gate(urlsplit(s3_bucket.endpoint).port)
    try:
        gate.close()
        late = Holdfast(f"s3://{s3_bucket.name}?endpoint=http://127.0.0.1:{gate.port}&region=us-east-1")
        arguments = ("restore", source, "--if-empty", "--target", tmp_path / "target", "--wait-for-store", "60s")
        with late.start(*arguments) as running:
            gate.wait_until_held()
            gate.cut()
            gate.open()
            _, error = running.communicate(timeout=90)
    finally:
        gate.stop()

    assert running.returncode == 0, error
    assert contents(tmp_path / "target") == {"file": b"kelp"}


def test_the_store_is_asked_again_while_patience_lasts(monkeypatch):
    asked = []

    def ask():
        asked.append(1)
        if len(asked) < 4:
            raise Unavailable("not yet")
        return "found"

    now = [0.0]
    monkeypatch.setattr(volumes.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(volumes.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    assert volumes.patiently(ask, 30) == "found"
    asked.clear()
    with pytest.raises(Unavailable):
        volumes.patiently(ask, 1)
    assert now[0] < 3


def test_patience_ends(tmp_path, source):
    dead = Holdfast(f"s3://bucket?endpoint=http://127.0.0.1:{free_ports(1)[0]}")
    ran = dead.run(
        "restore",
        source,
        "--wait-for-store",
        "1s",
        code=1,
        env={"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "not-a-word-of-it"},
    )
    assert "did not serve" in ran.err
    assert "not a duration" in dead.run("restore", source, "--wait-for-store", "soon", code=2).err
