"""Run as a program: save and restore tarballs on disk, and die at the N-th step, for every N."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import crashing
from crashing import contents, dying_at, fill

from holdfast.model.names import SourceName
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from holdfast.storage.bucket import Bucket
from holdfast.volumes.backup import Source
from holdfast.volumes.restore import Options
from holdfast.volumes.tarball import find_tarball, restore_tarball, save_tarball

NAME = SourceName(b"/trial")


def bucket_in(folder: Path) -> Bucket:
    return open_bucket(BucketUrl.parse(f"file://{folder}"))


def save(folder: Path, source: Path) -> None:
    save_tarball(bucket_in(folder), Source.of_path(os.fsencode(source), NAME), compress=False)


def bring_back(folder: Path, target: Path) -> None:
    tarball = find_tarball(bucket_in(folder), NAME)
    assert tarball is not None
    assert restore_tarball(tarball, Options(target=os.fsencode(target))).complete


def saves(folder: Path) -> int:
    """Kill the second save at every step: what is found is the first or the second, whole."""
    source = folder / "source"
    fill(source, 1)
    first = contents(source)
    save(folder / "template", source)
    fill(source, 2)
    second = contents(source)
    number = 0
    while True:
        number += 1
        store, target = folder / f"store-{number}", folder / f"target-{number}"
        shutil.copytree(folder / "template", store)
        died = dying_at(number, save, store, source)
        bring_back(store, target)
        assert contents(target) in ([first, second] if died else [second]), number
        shutil.rmtree(store)
        shutil.rmtree(target)
        if not died:
            return number


def restores(folder: Path) -> int:
    """Kill a restore at every step: what was there is there, perhaps under the name that it was moved aside to."""
    source = folder / "source"
    fill(source, 1)
    (source / "was-folder").write_bytes(b"a file now")
    (source / "was-file").mkdir()
    (source / "was-file" / "below").write_bytes(b"a folder now")
    os.link(source / "big", source / "second-name")
    (source / "link").symlink_to("big")
    save(folder / "store", source)
    new = contents(source)
    number = 0
    while True:
        number += 1
        target = folder / f"target-{number}"
        _old(target)
        before = contents(target)
        died = dying_at(number, bring_back, folder / "store", target)
        _check(target, before, new, number)
        bring_back(folder / "store", target)
        assert contents(target) == new, number
        shutil.rmtree(target)
        if not died:
            return number


def _old(target: Path) -> None:
    (target / "folder").mkdir(parents=True)
    (target / "folder" / "1").write_bytes(b"older")
    (target / "was-folder").mkdir()
    (target / "was-folder" / "below").write_bytes(b"in a folder")
    (target / "was-file").write_bytes(b"a file")
    (target / "surplus").write_bytes(b"to be deleted at the very end")


def _check(target: Path, before: dict, new: dict, number: int) -> None:
    after = contents(target)
    if all(after.get(name) == content for name, content in new.items()):
        return  # all is restored: deletions may have begun
    there = set(filter(None, after.values()))
    for name, content in before.items():
        if content is not None:
            assert after.get(name) in (content, new.get(name)) or content in there, (number, name)


if __name__ == "__main__":
    crashing.STEPS += ("write", "rmdir", "utime", "open")
    print({"saves": saves, "restores": restores}[sys.argv[1]](Path(sys.argv[2])))  # noqa: T201
