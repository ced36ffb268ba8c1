"""Trees and moments that must not make a snapshot which cannot be restored, nor a restore that deletes too much."""

import errno
import os
import socket
from pathlib import Path
from zlib import crc32

import pytest

from backups import Rig, state
from holdfast.archive import pack, scan
from holdfast.archive.scan import Rules
from holdfast.errors import SourceError
from holdfast.volumes import backup


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def _failing(real, fails, error):
    def call(*args, **kwargs):
        if fails(*args):
            raise OSError(error, os.strerror(error))
        return real(*args, **kwargs)

    return call


def test_an_empty_directory(rig):
    rig.backup()
    assert rig.restored() == state(rig.source)
    rig.backup()


def test_a_first_path_that_begins_a_page(rig):
    name = next(name for name in (f"f{n}" for n in range(10_000)) if crc32(name.encode()) % 128 == 0)
    (rig.source / name).write_bytes(b"kelp")
    rig.backup()
    assert rig.restored() == state(rig.source)


@pytest.mark.parametrize(
    "names",
    [
        [b"a\x80", "aé".encode(), b"b"],
        [b"\x82", "é".encode(), "\U0001f40b".encode(), b"z"],
        [b"a\xff/x", b"a\x7f", b"a"],
    ],
)
def test_names_that_are_no_text_sort_by_their_bytes(rig, names):
    root = os.fsencode(rig.source)
    for name in names:
        os.makedirs(os.path.dirname(os.path.join(root, name)), exist_ok=True)
        with open(os.path.join(root, name), "wb") as file:
            file.write(name)
    rig.backup()
    rig.backup()
    assert rig.restored() == state(rig.source)


def test_a_name_listed_twice_is_one_path(rig, monkeypatch):
    (rig.source / "a").write_bytes(b"kelp")
    real = os.scandir

    class Twice:
        def __init__(self, folder):
            with real(folder) as entries:
                self._entries = iter(list(entries) * 2)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def __iter__(self):
            return self

        def __next__(self):
            return next(self._entries)

    monkeypatch.setattr(scan.os, "scandir", Twice)
    rig.backup()
    monkeypatch.undo()
    assert rig.restored() == state(rig.source)


def test_a_root_that_cannot_be_listed_is_no_backup(rig, monkeypatch):
    (rig.source / "a").write_bytes(b"kelp")
    rig.backup()
    before = state(rig.source)
    monkeypatch.setattr(scan.os, "scandir", _failing(os.scandir, lambda _folder: True, errno.ESTALE))
    with pytest.raises(SourceError):
        rig.backup()
    monkeypatch.undo()
    assert rig.restored() == before


def test_attributes_that_cannot_be_read_cost_only_themselves(rig, monkeypatch):
    (rig.source / "d").mkdir()
    (rig.source / "d" / "x").write_bytes(b"kelp")
    monkeypatch.setattr(
        pack, "read_xattrs", _failing(pack.read_xattrs, lambda place: str(place).endswith("/d"), errno.EIO)
    )
    done = rig.backup()
    monkeypatch.undo()
    assert [failed.path for failed in done.config.errors] == ["d"]
    assert rig.restored() == state(rig.source)
    assert rig.backup().complete  # and they are read again


def test_an_inode_used_again_is_another_file(rig, monkeypatch):
    (rig.source / "a1").write_bytes(b"first")
    os.link(rig.source / "a1", rig.source / "a2")
    (rig.source / "z1").write_bytes(b"other")
    os.link(rig.source / "z1", rig.source / "z2")
    os.utime(rig.source / "z1", ns=(1, 1))
    reused = (rig.source / "a1").stat()
    real = os.fstat

    class Status:
        def __init__(self, status):
            self._status = status

        def __getattr__(self, name):
            return reused.st_ino if name == "st_ino" else getattr(self._status, name)

    monkeypatch.setattr(pack.os, "fstat", lambda descriptor: Status(real(descriptor)))
    rig.backup()
    monkeypatch.undo()
    back = rig.new_target()
    rig.restore(back)
    assert (back / "z1").read_bytes() == b"other"
    assert (back / "a2").read_bytes() == b"first"


def test_reads_that_give_less_than_there_is(rig, monkeypatch):
    (rig.source / "a").write_bytes(bytes(range(256)) * 40)
    real = os.preadv
    monkeypatch.setattr(pack.os, "preadv", lambda fd, places, at: real(fd, [places[0][:100]], at))
    done = rig.backup()
    monkeypatch.undo()
    assert done.changed == ()
    assert rig.restored() == state(rig.source)


def test_a_single_file_that_cannot_be_read_is_no_backup(rig, monkeypatch):
    (rig.source / "a").write_bytes(b"kelp")
    source = backup.Source.of_path(os.fsencode(rig.source / "a"))
    monkeypatch.setattr(pack.os, "preadv", _failing(os.preadv, lambda *_: True, errno.EIO))
    with pytest.raises(SourceError, match="cannot read"):
        backup.back_up(rig.store, rig.cache, source)


def test_a_file_that_became_a_symlink_is_kept_as_one(rig, monkeypatch):
    (rig.source / "a").write_bytes(b"kelp")
    real = pack.Packer._file  # noqa: SLF001

    def swap(self, found):
        (rig.source / "a").unlink()
        (rig.source / "a").symlink_to("elsewhere")
        return real(self, found)

    monkeypatch.setattr(pack.Packer, "_file", swap)
    done = rig.backup()
    monkeypatch.undo()
    assert done.complete
    target = rig.new_target()
    rig.restore(target)
    assert (target / "a").readlink() == Path("elsewhere")


def test_a_layer_that_was_not_stored_fails_the_backup(rig, monkeypatch):
    (rig.source / "a").write_bytes(os.urandom(3_000_000))
    real = backup._Run._put_layer  # noqa: SLF001

    def lost(self, layer):
        real(self, layer)
        self._fresh.pop(layer.id)

    monkeypatch.setattr(backup._Run, "_put_layer", lost)  # noqa: SLF001
    with pytest.raises(Exception, match="not stored"):
        rig.backup()


def test_merge_never_removes_what_another_restore_moved_aside(rig):
    (rig.source / "a").write_bytes(b"kelp")
    rig.backup()
    target = rig.new_target()
    aside = target / (".holdfast-aside-" + "0" * 32)
    aside.mkdir(parents=True)
    (aside / "precious").write_bytes(b"mine")
    (target / (".holdfast-" + "z" * 32)).write_bytes(b"no name of ours")
    rig.restore(target, mode="merge")
    assert (aside / "precious").read_bytes() == b"mine"
    assert (target / (".holdfast-" + "z" * 32)).exists()


def test_what_was_left_out_is_spared_below_what_goes(rig):
    (rig.source / "a").write_bytes(b"kelp")
    rig.backup(rules=Rules(exclude=("*.key",)))
    target = rig.new_target()
    rig.restore(target)
    (target / "new" / "deep").mkdir(parents=True)
    (target / "new" / "deep" / "private.key").write_bytes(b"mine")
    (target / "new" / "deep" / "else").write_bytes(b"goes")
    (target / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(target / "run" / "s"))
        rig.restore(target)
    assert (target / "new" / "deep" / "private.key").read_bytes() == b"mine"
    assert not (target / "new" / "deep" / "else").exists()
    assert (target / "run" / "s").exists()


def test_an_owner_that_cannot_be_set_costs_no_contents(rig, monkeypatch):
    (rig.source / "a").write_bytes(b"kelp")
    (rig.source / "a").chmod(0o6755)
    os.chown(rig.source, os.getuid(), os.getgid())
    rig.backup()
    monkeypatch.setattr("holdfast.archive.extract.os.fchown", _failing(os.fchown, lambda *_: True, errno.EINVAL))
    target = rig.new_target()
    target.mkdir()
    done = rig.restore(target)
    monkeypatch.undo()
    assert done.complete
    assert (target / "a").read_bytes() == b"kelp"
    assert (target / "a").stat().st_mode & 0o7777 == 0o755  # nobody becomes set-user-ID of somebody else


def test_a_restore_is_over_only_when_every_file_is(rig, monkeypatch):
    (rig.source / "a").write_bytes(os.urandom(3_000_000))
    rig.backup()
    monkeypatch.setattr("holdfast.volumes.writing.FileWriter._finish", lambda _self, _file: None)
    with pytest.raises(Exception, match="not finished"):
        rig.restore(rig.new_target())
