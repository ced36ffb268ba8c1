"""A source that does not hold still, or cannot be read: told, and never a reason to lose the rest."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from backups import Rig, contents, state
from holdfast.archive import pack, scan
from holdfast.errors import NotFoundError, SourceError
from holdfast.volumes import backup

LARGE = 3_000_000


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path)
    for name in ("a", "b", "c"):
        (rig.source / name).write_bytes(name.encode() * 1000)
    (rig.source / "large").write_bytes(os.urandom(LARGE))
    (rig.source / "z").write_bytes(b"the last")
    return rig


class Once:
    """Does something once, just before or after a call of an os function on a certain file."""

    def __init__(self, monkeypatch, path, action, *, before=True, times=1):
        self.path, self.action, self.left = os.fspath(path), action, times
        self.before = before
        for name in ("pread", "preadv", "readv", "read"):
            if hasattr(os, name):
                monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real):
        def call(descriptor, *arguments):
            strikes = self.left and os.readlink(f"/proc/self/fd/{descriptor}") == self.path
            if strikes and self.before:
                self.left -= 1
                self.action()
            result = real(descriptor, *arguments)
            if strikes and not self.before:
                self.left -= 1
                self.action()
            return result

        return call


def _append(path, data):
    def action():
        with path.open("ab") as file:
            file.write(data)

    return action


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", ["b", "large"])
def test_a_file_that_grows_while_it_is_read_is_read_again(rig, monkeypatch, name, before):
    once = Once(monkeypatch, rig.source / name, _append(rig.source / name, b"more" * 10_000), before=before)
    done = rig.backup()
    monkeypatch.undo()

    assert once.left == 0
    assert done.complete
    assert done.changed == ()
    assert rig.restored() == state(rig.source)


@pytest.mark.parametrize("name", ["b", "large"])
def test_a_file_that_shrinks_while_it_is_read_is_read_again(rig, monkeypatch, name):
    size = (rig.source / name).stat().st_size
    once = Once(monkeypatch, rig.source / name, lambda: os.truncate(rig.source / name, size // 3))
    done = rig.backup()
    monkeypatch.undo()

    assert once.left == 0
    assert done.complete
    assert rig.restored() == state(rig.source)


@pytest.mark.parametrize("name", ["b", "large"])
def test_a_file_that_never_holds_still_is_kept_and_marked(rig, monkeypatch, name):
    once = Once(monkeypatch, rig.source / name, _append(rig.source / name, b"more"), times=1000)
    done = rig.backup()
    monkeypatch.undo()

    assert once.left < 999
    assert done.complete
    assert done.changed == (name,)
    target = rig.new_target()
    rig.restore(target)
    got, now = (target / name).read_bytes(), (rig.source / name).read_bytes()
    assert now.startswith(got)
    assert len(got) >= 1000
    for other in ("a", "c", "z"):
        assert (target / other).read_bytes() == (rig.source / other).read_bytes()

    rig.backup()  # not trusted: read again although nothing changed since
    assert rig.restored() == state(rig.source)


@pytest.mark.parametrize("name", ["b", "large"])
def test_a_file_that_shrinks_each_time_is_kept_and_marked(rig, monkeypatch, name):
    def shrink():
        size = (rig.source / name).stat().st_size
        os.truncate(rig.source / name, max(size - 100, 10))

    Once(monkeypatch, rig.source / name, shrink, times=1000)
    done = rig.backup()
    monkeypatch.undo()

    assert done.changed == (name,)
    target = rig.new_target()
    assert rig.restore(target).complete
    assert (target / "z").read_bytes() == b"the last"
    rig.backup()
    assert rig.restored() == state(rig.source)


def test_a_file_rewritten_in_place_while_it_is_read_is_read_again(rig, monkeypatch):
    path = rig.source / "large"

    def rewrite():
        with path.open("r+b") as file:
            file.write(b"\0" * 1000)

    Once(monkeypatch, path, rewrite, before=False)
    rig.backup()
    monkeypatch.undo()

    assert rig.restored() == state(rig.source)


def _after_listing(monkeypatch, action):
    """Do something once a directory has been listed and before what is in it is looked at."""
    real = scan._list  # noqa: SLF001
    done = []

    def listed(folder, path, *rest):
        found = real(folder, path, *rest)
        if not done:
            done.append(1)
            action()
        return found

    monkeypatch.setattr(scan, "_list", listed)


@pytest.mark.parametrize("name", ["b", "large"])
@pytest.mark.parametrize("again", [False, True], ids=["first", "second backup"])
def test_a_file_that_vanishes_is_passed_over(rig, monkeypatch, name, again):
    if again:
        rig.backup()
        (rig.source / name).write_bytes(b"changed")
    _after_listing(monkeypatch, (rig.source / name).unlink)
    done = rig.backup()
    monkeypatch.undo()

    assert done.complete
    assert contents(rig.source).keys() == {"a", "b", "c", "large", "z"} - {name}
    restored = rig.restored()
    assert restored.keys() == state(rig.source).keys()


def test_a_file_that_vanishes_between_looking_and_opening_is_passed_over(rig, monkeypatch):
    real = pack.Packer._file  # noqa: SLF001

    def vanish(self, found):
        if found.name == "b":
            (rig.source / "b").unlink()
        return real(self, found)

    monkeypatch.setattr(pack.Packer, "_file", vanish)
    done = rig.backup()
    monkeypatch.undo()

    assert done.complete
    assert rig.restored().keys() == state(rig.source).keys()


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
def test_a_file_that_becomes_something_else_is_never_followed(rig, monkeypatch, tmp_path, kind):
    secret = tmp_path / "secret"
    secret.write_bytes(b"outside the source")
    path = rig.source / "b"

    def swap():
        path.unlink()
        {"symlink": lambda: path.symlink_to(secret), "directory": path.mkdir, "fifo": lambda: os.mkfifo(path)}[kind]()

    _after_listing(monkeypatch, swap)
    rig.backup()
    monkeypatch.undo()

    target = rig.new_target()
    rig.restore(target)
    assert not (target / "b").is_file() or (target / "b").is_symlink()
    rig.backup()
    assert rig.restored() == state(rig.source)


def test_a_directory_replaced_by_a_symlink_during_the_walk_is_not_entered(rig, monkeypatch, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"outside the source")
    folder = rig.source / "folder"
    folder.mkdir()
    (folder / "inside").write_bytes(b"inside")
    real = os.open

    def swapping(path, flags, *rest, **given):
        if path == "folder" and not folder.is_symlink():
            shutil.rmtree(folder)
            folder.symlink_to(outside)
        return real(path, flags, *rest, **given)

    monkeypatch.setattr(os, "open", swapping)
    done = rig.backup()
    monkeypatch.undo()

    target = rig.new_target()
    rig.restore(target)
    assert not (target / "folder" / "secret").exists()
    assert {error.path for error in done.config.errors} <= {"folder"}


def test_a_source_that_vanishes_half_way(rig, monkeypatch):
    _after_listing(monkeypatch, lambda: shutil.rmtree(rig.source))
    done = rig.backup()
    monkeypatch.undo()

    assert done.config.counts.files == 0


def test_a_source_that_is_not_there(rig):
    shutil.rmtree(rig.source)

    with pytest.raises(NotFoundError):
        rig.backup()


def test_a_source_that_goes_just_before_it_is_opened(rig):
    source = backup.Source.of_path(os.fsencode(rig.source), rig.name)
    shutil.rmtree(rig.source)

    with pytest.raises((SourceError, NotFoundError)):
        backup.back_up(rig.store, rig.cache, source)


@pytest.mark.parametrize("again", [False, True], ids=["first", "second backup"])
def test_a_file_that_cannot_be_read_is_told_and_the_rest_is_kept(rig, monkeypatch, again):
    if again:
        rig.backup()
        (rig.source / "b").write_bytes(b"changed")
    real = os.open

    def refuse(path, *rest, **given):
        if path == "b":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *rest, **given)

    monkeypatch.setattr(os, "open", refuse)
    done = rig.backup()
    monkeypatch.undo()

    assert not done.complete
    assert [(error.path, error.reason) for error in done.config.errors] == [("b", "Permission denied")]
    target = rig.new_target()
    rig.restore(target)
    assert set(contents(target)) == {"a", "c", "large", "z"}
    rig.backup()
    assert rig.restored() == state(rig.source)


@pytest.mark.parametrize("name", ["b", "large"])
def test_a_disk_that_fails_under_one_file(rig, monkeypatch, name):
    def fail():
        raise OSError(errno.EIO, "Input/output error")

    Once(monkeypatch, rig.source / name, fail, times=1000)
    done = rig.backup()
    monkeypatch.undo()

    assert [error.path for error in done.config.errors] == [name]
    target = rig.new_target()
    rig.restore(target)
    assert set(contents(target)) == {"a", "b", "c", "large", "z"} - {name}


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
def test_without_privilege_what_cannot_be_read_is_told():
    with tempfile.TemporaryDirectory(prefix="holdfast-nobody-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        source, home = folder / "source", folder / "home"
        for made in (source, source / "closed", home):
            made.mkdir()
            os.chown(made, 65534, 65534)
        for file, mode in (("open", 0o644), ("shut", 0o600), ("closed/inside", 0o644)):
            (source / file).write_bytes(file.encode())
            (source / file).chmod(mode)
        os.chown(source / "open", 65534, 65534)
        os.chown(source / "closed", 0, 0)
        (source / "closed").chmod(0o700)
        env = {"PATH": os.environ["PATH"], "HOME": str(home)}

        def run(*arguments):
            command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "holdfast"]
            return subprocess.run([*command, *arguments], env=env, capture_output=True, text=True, cwd="/", check=False)

        if run("--version").returncode:
            pytest.skip("this Python cannot be run by others")
        done = run("backup", str(source), "--name", "trial", "--json")
        assert done.returncode == 3, done.stderr
        document = json.loads(done.stdout)
        assert {(e["path"], e["reason"]) for e in document["errors"]} == {
            ("shut", "Permission denied"),
            ("closed", "Permission denied"),
        }
        assert not document["complete"]
        back = run("restore", "trial", "--target", str(home / "back"))
        assert back.returncode == 0, back.stderr
        assert (home / "back" / "open").read_bytes() == b"open"
        assert sorted(contents(home / "back")) == ["closed", "open"]
        assert "owners cannot be restored" in back.stderr
        assert run("backup", str(source / "closed" / "inside")).returncode == 1
        unwritable = run("restore", "trial", "--target", str(folder / "not-mine"))
        assert unwritable.returncode == 1
        assert "Permission denied" in unwritable.stderr
        assert "Traceback" not in unwritable.stderr
