import os
import stat
import time

import pytest

from backups import Rig, state
from holdfast.storage.cache import Cache


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def test_keeps_until_somebody_deletes(cache):
    assert cache.get("ab" * 32) is None
    cache.put("ab" * 32, b"kelp")
    assert cache.get("ab" * 32) == b"kelp"
    next(cache.folder.rglob("ab" * 32)).unlink()
    assert cache.get("ab" * 32) is None


def test_is_the_users_alone(cache):
    cache.put("ab" * 32, b"kelp")

    (piece,) = cache.folder.rglob("ab" * 32)
    assert stat.S_IMODE(piece.stat().st_mode) == 0o600
    assert stat.S_IMODE(piece.parent.stat().st_mode) == 0o700


def test_one_that_cannot_be_written_is_no_error(cache, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "makedirs", refuse)
    cache.put("ab" * 32, b"kelp")

    assert cache.get("ab" * 32) is None


def test_a_place_that_is_a_file_is_no_error(tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    cache = Cache(tmp_path / "cache")
    cache.put("ab" * 32, b"kelp")
    cache.trim()

    assert cache.get("ab" * 32) is None


def test_a_month_unused_is_trimmed_once_a_day(cache):
    for name in ("aa" * 32, "bb" * 32):
        cache.put(name, b"kelp")
    (old,) = cache.folder.rglob("aa" * 32)
    month_ago = time.time() - 31 * 24 * 3600
    os.utime(old, (month_ago, month_ago))

    cache.trim()
    assert cache.get("aa" * 32) is None
    assert cache.get("bb" * 32) == b"kelp"

    cache.put("aa" * 32, b"kelp")
    os.utime(old, (month_ago, month_ago))
    cache.trim()
    assert cache.get("aa" * 32) == b"kelp"


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-1], lambda data: data[:-1] + b"\0"],
    ids=["empty", "short", "flipped"],
)
def test_altered_pieces_are_ignored(tmp_path, damage):
    rig = Rig(tmp_path)
    (rig.source / "a").write_bytes(b"kelp")
    rig.backup()
    pieces = [path for path in (rig.cache.folder / "pieces").rglob("*") if path.is_file()]
    assert len(pieces) >= 2
    for piece in pieces:
        piece.write_bytes(damage(piece.read_bytes()))

    assert rig.restored() == state(rig.source)
    (rig.source / "b").write_bytes(b"more")
    rig.backup()
    assert rig.restored() == state(rig.source)
