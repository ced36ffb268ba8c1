"""Run as a program: back up into a directory, again and again, and die at the N-th durable step, for every N.

Each attempt is a child of its own that ends like a killed process, in the middle of its work: ``os._exit`` before or
after the step, with no handler run. The parent goes on from what is left, and prints how many steps there are.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from pathlib import Path

from holdfast.archive import frames
from holdfast.model.names import LATEST, SourceName
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from holdfast.storage.cache import Cache
from holdfast.storage.store import Store
from holdfast.volumes import backup, restore
from holdfast.volumes.snapshots import Snapshot, list_snapshots, open_snapshot

KILLED = 137
NAME = SourceName(b"trial")
STEPS = ("replace", "link", "fsync", "mkdir", "writev", "rename", "pwrite", "symlink", "unlink")


def store_in(folder: Path) -> Store:
    return Store(open_bucket(BucketUrl.parse(f"file://{folder}")))


def back_up(folder: Path, source: Path, cache: Path) -> None:
    backup.back_up(store_in(folder), Cache(cache), backup.Source.of_path(os.fsencode(source), NAME))


def bring_back(folder: Path, target: Path, cache: Path, snapshot: Snapshot | None = None) -> None:
    snapshot = snapshot or open_snapshot(store_in(folder), Cache(cache), NAME)
    done = restore.restore(snapshot, restore.Options(target=os.fsencode(target)))
    assert done.complete


def dying_at(number: int, work, *arguments) -> bool:
    """Do work in a child that dies at its N-th step; whether it died (else it came to its end)."""
    child = os.fork()
    if child == 0:
        try:
            _die_at(number)
            work(*arguments)
        except BaseException:  # noqa: BLE001 - the child must end here
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), code
    return code == KILLED


def _die_at(number: int) -> None:
    left = [number]

    def wrap(name):
        real = getattr(os, name)

        def step(*arguments, **given):
            left[0] -= 1
            if left[0] == 0:
                try:
                    if number % 2:
                        real(*arguments, **given)  # half of them die just after the step
                finally:
                    os._exit(KILLED)
            return real(*arguments, **given)

        setattr(os, name, step)

    for name in STEPS:
        wrap(name)


def check(folder: Path, scratch: Path, expected: list[dict], number: int) -> None:
    """Every snapshot that is visible restores to one of the states it can be."""
    for count, listed in enumerate(list_snapshots(store_in(folder))):
        target, cache = scratch / f"{number}-{count}", scratch / f"cache-{number}-{count}"
        snapshot = open_snapshot(store_in(folder), Cache(cache), NAME, tag=listed.tag.name)
        bring_back(folder, target, cache, snapshot)
        assert contents(target) in expected, number
        shutil.rmtree(target)


def contents(root: Path) -> dict:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


def fill(source: Path, seed: int) -> None:
    (source / "folder").mkdir(parents=True, exist_ok=True)
    for number in range(10):
        (source / "folder" / str(number)).write_bytes(bytes([seed, number]) * 20_000)
    (source / "big").write_bytes(bytes([seed]) + os.urandom(300_000))


def backups(folder: Path) -> int:
    """Kill the second backup at every step; the third must just work."""
    source = folder / "source"
    fill(source, 1)
    first = contents(source)
    back_up(folder / "template", source, folder / "template-cache")
    fill(source, 2)
    second = contents(source)
    number = 0
    while True:
        number += 1
        store, cache = folder / f"store-{number}", folder / f"cache-{number}"
        shutil.copytree(folder / "template", store)
        shutil.copytree(folder / "template-cache", cache)
        died = dying_at(number, back_up, store, source, cache)
        check(store, folder, [first, second], number)
        back_up(store, source, cache)
        target = folder / f"target-{number}"
        bring_back(store, target, folder / f"fresh-{number}")
        assert contents(target) == second, number
        assert store_in(store).resolve(NAME.repository, LATEST)
        for used in (store, cache, target):
            shutil.rmtree(used)
        if not died:
            return number


def restores(folder: Path) -> int:
    """Kill a restore at every step; the next must just work, and what was there is there until then."""
    source = folder / "source"
    fill(source, 1)
    back_up(folder / "store", source, folder / "cache")
    new = contents(source)
    number = 0
    while True:
        number += 1
        target = folder / f"target-{number}"
        (target / "folder").mkdir(parents=True)
        (target / "folder" / "1").write_bytes(b"older")
        (target / "surplus").write_bytes(b"to be deleted at the very end")
        before = contents(target)
        died = dying_at(number, bring_back, folder / "store", target, folder / "cache")
        after = contents(target)
        if after != new:
            for name, content in before.items():
                if name != "surplus":  # the last step of all
                    assert after[name] in (content, new.get(name)), (number, name)
        bring_back(folder / "store", target, folder / f"cache-{number}")
        assert contents(target) == new, number
        shutil.rmtree(target)
        if not died:
            return number


if __name__ == "__main__":
    frames.LAYER_BYTES = 128 * 1024
    work = {"backups": backups, "restores": restores}[sys.argv[1]]
    print(work(Path(sys.argv[2])))  # noqa: T201
