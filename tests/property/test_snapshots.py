"""Any tree, changed in any way between backups: every snapshot restores exactly what was there."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from backups import Rig, leftovers, state
from holdfast.archive import chunks, frames, longfile, pack, pages
from holdfast.model.snapshot import HOLE_LAYER, RECORD, weight
from holdfast.volumes import parent, restore
from holdfast.volumes.snapshots import Snapshot

NAMES = [b"a", b"b", b"c.d", b"sp ace", b"caf\xe9", b"line\nfeed", b"z" * 60]
SIZES = [0, 1, 511, 512, 513, 4096, 5000, 20_000, 70_000]


def shrink(patch):
    """Make everything small, so that a few kilobytes meet every boundary."""
    patch.setattr(chunks, "MIN_CHUNK", 512)
    patch.setattr(chunks, "AVERAGE_CHUNK", 1024)
    patch.setattr(chunks, "MAX_CHUNK", 4096)
    patch.setattr(pack, "SMALL_FILE", 4096)
    patch.setattr(longfile, "RUN_BYTES", 8192)
    patch.setattr(longfile, "MOST_CHUNKS", 6)
    patch.setattr(longfile, "_FEWEST_CHUNKS", 2)
    patch.setattr(frames, "LAYER_BYTES", 32 * 1024)
    patch.setattr(frames, "_FRAME_FULL", 12 * 1024)
    patch.setattr(pages, "_ENTRIES_A_PAGE", 3)
    patch.setattr(pages, "_CONTINUATIONS_A_PAGE", 2)
    patch.setattr(pages, "BLOB_BYTES", 1500)
    patch.setattr(pages, "_PENDING_BYTES", 700)
    patch.setattr(pages, "MOST_BLOBS", 6)
    patch.setattr(parent, "_SMALL_LAYERS", 5)


class Snapshots(RuleBasedStateMachine):
    """Changes a tree, backs it up, and restores any snapshot of it, into new places and over old ones."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        shrink(self.patch)
        self.folder = Path(tempfile.mkdtemp(prefix="holdfast-model-"))
        self.rig = Rig(self.folder)
        self.root = os.fsencode(self.rig.source)
        self.snapshots = []
        self.target = self.folder / "again"

    def teardown(self):
        self.patch.undo()
        shutil.rmtree(self.folder)

    # What is there

    def _paths(self, *, folders):
        found = []
        for base, names, files in os.walk(self.root):
            found += [os.path.join(base, name) for name in (names if folders else files)]
            if not folders:
                found += [os.path.join(base, name) for name in names if os.path.islink(os.path.join(base, name))]
        return sorted(path for path in found if not folders or not os.path.islink(path))

    def _pick(self, at, *, folders):
        paths = self._paths(folders=folders)
        return paths[at % len(paths)] if paths else None

    def _regular(self, at):
        paths = [p for p in self._paths(folders=False) if os.path.isfile(p) and not os.path.islink(p)]
        return paths[at % len(paths)] if paths else None

    def _new(self, at, name):
        folders = [self.root, *self._paths(folders=True)]
        path = os.path.join(folders[at % len(folders)], name)
        return None if os.path.lexists(path) else path

    # Changes

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed):
        self.rng = random.Random(seed)

    places, names = st.integers(0, 1000), st.sampled_from(NAMES)

    @rule(at=places, name=names, size=st.sampled_from(SIZES))
    def write(self, at, name, size):
        if path := self._new(at, name):
            with open(path, "wb") as file:
                file.write(self.rng.randbytes(size))

    @rule(at=places, name=names, size=st.sampled_from(SIZES[3:]))
    def write_sparse(self, at, name, size):
        if path := self._new(at, name):
            with open(path, "wb") as file:
                file.truncate(300_000 + size)
                file.seek(self.rng.randrange(0, 200_000))
                file.write(self.rng.randbytes(size))

    @rule(at=places, size=st.sampled_from(SIZES))
    def append(self, at, size):
        if path := self._regular(at):
            with open(path, "ab") as file:
                file.write(self.rng.randbytes(size))

    @rule(at=places)
    def truncate(self, at):
        if path := self._regular(at):
            os.truncate(path, self.rng.randrange(0, os.path.getsize(path) + 3000))

    @rule(at=places)
    def overwrite_inside(self, at):
        path = self._regular(at)
        if path and os.path.getsize(path):
            with open(path, "r+b") as file:
                file.seek(self.rng.randrange(os.path.getsize(path)))
                file.write(self.rng.randbytes(10))

    @rule(at=places, name=names, other=places)
    def copy(self, at, name, other):
        source, path = self._regular(other), self._new(at, name)
        if source and path:
            shutil.copyfile(source, path)

    @rule(at=places, name=names)
    def mkdir(self, at, name):
        if path := self._new(at, name):
            os.mkdir(path)

    @rule(at=places, folder=st.booleans())
    def remove(self, at, folder):
        if path := self._pick(at, folders=folder):
            shutil.rmtree(path) if folder else os.unlink(path)

    @rule(at=places, to=places, name=names, folder=st.booleans())
    def rename(self, at, to, name, folder):
        old, new = self._pick(at, folders=folder), self._new(to, name)
        if old and new and not (new + b"/").startswith(old + b"/"):
            os.rename(old, new)

    @rule(at=places, name=names, to=names)
    def symlink(self, at, name, to):
        if path := self._new(at, name):
            os.symlink(b"../" + to, path)

    @rule(at=places, name=names, other=places)
    def hard_link(self, at, name, other):
        source, path = self._pick(other, folders=False), self._new(at, name)
        if source and path:
            os.link(source, path, follow_symlinks=False)

    @rule(at=places, name=names)
    def fifo(self, at, name):
        if path := self._new(at, name):
            os.mkfifo(path)

    @rule(at=places, mode=st.sampled_from([0o600, 0o644, 0o4755, 0o000]), folder=st.booleans())
    def chmod(self, at, mode, folder):
        path = self._pick(at, folders=True) if folder else self._regular(at)
        if path:
            os.chmod(path, mode | 0o700 if folder else mode)

    @rule(at=places, value=st.sampled_from([b"", b"1", b"2" * 100]))
    def set_attribute(self, at, value):
        if path := self._regular(at):
            os.setxattr(path, "user.kelp", value)

    # Backing up and restoring

    @rule(level=st.sampled_from([None, 1, 3]))
    def back_up(self, level):
        done = self.rig.backup(level=level)
        assert done.complete
        assert done.changed == ()
        self.snapshots.append((self.rig.store.resolve(self.rig.name.repository, done.tag), state(self.root)))
        assert self._open(len(self.snapshots) - 1).digest == done.digest

    def _open(self, number, cache=None):
        digest = self.snapshots[number][0]
        return Snapshot(self.rig.store, cache or self.rig.cache, self.rig.name.repository, digest)

    def _restore(self, number, target, *, cache=None, **options):
        options = restore.Options(target=os.fsencode(target), **options)
        done = restore.restore(self._open(number, cache), options)
        assert done.complete
        assert leftovers(target) == []
        return done

    @precondition(lambda self: self.snapshots)
    @rule(which=places, verify=st.booleans())
    def restore_over_another(self, which, verify):
        number = which % len(self.snapshots)
        self._restore(number, self.target, verify=verify)
        assert state(self.target) == self.snapshots[number][1]

    @precondition(lambda self: self.snapshots)
    @rule(which=places, at=places)
    def restore_one_path(self, which, at):
        number = which % len(self.snapshots)
        before = self.snapshots[number][1]
        path = sorted(before)[at % len(before)]
        target = self.rig.new_target()
        self._restore(number, target, paths=(path,) if path else ())
        found = state(target)
        kept = [p for p in before if p == path or p.startswith(path + b"/") or not path]
        for one in kept:  # all but which other names it has, for those may be out of reach
            assert found[one][:6] + found[one][7:] == before[one][:6] + before[one][7:]
        assert {p for p in found if p.startswith(path)} == set(kept) | ({b""} if not path else set())

    @precondition(lambda self: self.snapshots)
    @rule()
    def forget_the_cache(self):
        self.rig.fresh_cache()

    @precondition(lambda self: self.snapshots)
    @rule()
    def restore_every_snapshot(self):
        for number, (_, before) in enumerate(self.snapshots):
            target = self.rig.new_target()
            self._restore(number, target, cache=self.rig.cache)
            assert state(target) == before


Snapshots.TestCase.settings = settings(max_examples=40, stateful_step_count=50)
TestSnapshots = Snapshots.TestCase


def referenced(snapshot):
    """Bytes that a snapshot's chunks take in a tar, each chunk once."""
    records = {}
    for entry in snapshot.entries():
        for name, layer, offset, length in RECORD.iter_unpack(entry.chunks):
            if layer != HOLE_LAYER:
                records[layer, offset] = (name, length)
    return sum(weight(length) for _, length in records.values())


@pytest.mark.parametrize("seed", range(4))
def test_what_is_stored_stays_near_what_is_used(tmp_path, seed):
    """After many rounds of change, a snapshot's layers hold about twice what it uses, and no more."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        patch.setattr(parent, "_SMALL_LAYERS", 1024)
        rig = Rig(tmp_path)
        for number in range(40):
            (rig.source / str(number)).write_bytes(rng.randbytes(6_000))
        rig.backup()
        first = set(rig.open().layers)
        for _ in range(25):
            for _ in range(6):
                path = rig.source / str(rng.randrange(40))
                if rng.random() < 0.5:
                    path.write_bytes(rng.randbytes(6_000))
                else:
                    with path.open("r+b") as file:
                        file.seek(rng.randrange(5_000))
                        file.write(rng.randbytes(500))
            rig.backup()
            snapshot = rig.open()
            stored = sum(row.tar_bytes for row, _ in snapshot.layers.values())
            # Between two backups a layer may lose what the last change took from it: six files at most.
            assert stored <= 2 * referenced(snapshot) + 6 * 2 * 6_000 + 32 * 1024
        assert first - set(rig.open().layers)
        assert rig.restored() == state(rig.source)


def test_a_chain_of_small_backups_stays_short(tmp_path):
    rng = random.Random(1)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        rig = Rig(tmp_path)
        for number in range(60):
            (rig.source / f"{number:02}").write_bytes(rng.randbytes(300))
            rig.backup()
            snapshot = rig.open()
            # Five small ones, the newest, and those of 8 KiB and more that small ones were put together in.
            assert len(snapshot.layers) <= 5 + 1 + 60 * 1024 // 8192 + 1
            assert len(snapshot.header.indexes) <= 6 + 3
        assert rig.restored() == state(rig.source)


@pytest.mark.parametrize("seed", range(12))
def test_a_path_behind_a_file_of_many_pages_can_be_restored_alone(tmp_path, seed):
    """The page it lies in may begin in the middle of the file before."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        rig = Rig(tmp_path)
        for number in range(6):
            (rig.source / f"{number}-long").write_bytes(rng.randbytes(rng.randrange(20_000, 200_000)))
            (rig.source / f"{number}-short").write_bytes(b"%d" % number)
        rig.backup()
        for name in sorted(os.listdir(rig.source)):
            target = rig.new_target()
            rig.restore(target, paths=(os.fsencode(name),))
            assert (target / name).read_bytes() == (rig.source / name).read_bytes()
