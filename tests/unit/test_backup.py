import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from backups import Rig, state
from holdfast.archive import metadata
from holdfast.archive.frames import LAYER_BYTES
from holdfast.errors import NotFoundError, SourceError
from holdfast.model.names import SourceName
from holdfast.model.snapshot import Entry, LayerRow
from holdfast.progress import Progress
from holdfast.volumes.backup import Source
from holdfast.volumes.parent import Merge, layers_to_drop


def _row(id_, tar_bytes, live_bytes):
    return LayerRow(id_, f"d{id_}", tar_bytes, live_bytes)


KIB = 1024


def test_the_least_used_layers_are_dropped_until_half_of_what_is_held_is_needed():
    rows = [_row(0, 900 * KIB, 300 * KIB), _row(1, 900 * KIB, 899 * KIB), _row(2, 900 * KIB, 20 * KIB)]

    assert layers_to_drop(rows, 0, LAYER_BYTES) == {2}
    assert layers_to_drop(rows[:2], 0, LAYER_BYTES) == set()
    assert layers_to_drop([_row(0, 900 * KIB, 300 * KIB)], 0, LAYER_BYTES) == {0}
    assert layers_to_drop([_row(0, 900 * KIB, 0)], 0, LAYER_BYTES) == {0}


def test_headers_of_paths_without_contents_count_as_needed():
    rows = [_row(0, 2000 * 512, 0)]

    assert layers_to_drop(rows, 2000, LAYER_BYTES) == set()
    assert layers_to_drop([*rows, _row(1, 2000 * 512, 0)], 2000, LAYER_BYTES) == set()
    assert layers_to_drop([*rows, _row(1, 2000 * 512, 0), _row(2, 2000 * 512, 0)], 2000, LAYER_BYTES) == {0}


def test_a_thousand_small_layers_are_put_together():
    small = LAYER_BYTES // 4 - 1
    rows = [_row(n, small, small) for n in range(1024)] + [_row(5000, LAYER_BYTES, LAYER_BYTES)]

    assert layers_to_drop(rows, 0, LAYER_BYTES) == set()
    assert layers_to_drop([*rows, _row(1024, small, small)], 0, LAYER_BYTES) == set(range(1025))


def test_what_a_source_is(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")

    assert Source.of_path(os.fsencode(tmp_path / "file")).kind == "file"
    link = Source.of_path(os.fsencode(tmp_path / "link"))
    assert (link.kind, link.path) == ("directory", os.path.realpath(os.fsencode(tmp_path)))
    assert link.name == SourceName(os.fsencode(tmp_path / "link"))
    with pytest.raises(NotFoundError):
        Source.of_path(os.fsencode(tmp_path / "none"))
    with pytest.raises(SourceError):
        Source.of_path(os.fsencode(tmp_path / "pipe"))
    with pytest.raises(SourceError):
        Source.of_path(os.fsencode(tmp_path / "file" / "below"))


def _entries(*paths):
    return [
        Entry(path.rstrip(b"+"), "+" if path.endswith(b"+") else "f", 0, 0, 0, 0, 0, 0, 0, None, None, b"")
        for path in paths
    ]


class Merged:
    def __init__(self, *paths):
        self.forgotten = []
        self.merge = Merge(iter(_entries(*paths)), lambda old: self.forgotten.append((old.path, old.kind)))


def test_a_merge_forgets_what_is_gone():
    merged = Merged(b"a", b"b", b"b+", b"c")

    assert merged.merge.at(b"c").path == b"c"
    assert merged.forgotten == [(b"a", "f"), (b"b", "f"), (b"b", "+")]
    merged.merge.keep()
    merged.merge.end()
    assert len(merged.forgotten) == 3


def test_a_merge_keeps_a_file_with_all_that_goes_on():
    merged = Merged(b"a", b"a+", b"a+", b"b")

    assert merged.merge.at(b"a").path == b"a"
    assert [e.kind for e in merged.merge.keep()] == ["f", "+", "+"]
    assert merged.merge.at(b"b").path == b"b"
    assert merged.forgotten == []


def test_a_merge_forgets_a_changed_file_with_all_that_goes_on():
    merged = Merged(b"a", b"a+", b"b")

    merged.merge.at(b"a")
    assert merged.merge.at(b"aa") is None
    assert merged.forgotten == [(b"a", "f"), (b"a", "+")]
    merged.merge.end()
    assert merged.forgotten[-1] == (b"b", "f")


def test_a_merge_goes_by_the_walks_order():
    merged = Merged(b"a", b"a/b", b"a.c")

    assert merged.merge.at(b"a/b") is not None
    assert merged.merge.at(b"a.c") is not None
    assert merged.merge.at(b"zz") is None
    assert merged.merge.at(b"zzz") is None


def _entry(ctime_ns, monkeypatch, now_ns):
    status = os.stat_result((0o100644, 1, 1, 1, 0, 0, 5, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0, ctime_ns))
    monkeypatch.setattr(metadata, "time_ns", lambda: now_ns)
    return metadata.entry_of(b"a", "f", status)


@pytest.mark.parametrize(
    ("ctime_ns", "age_ns", "trusted"),
    [
        (1_700_000_000_123_456_789, 5_000_000, False),
        (1_700_000_000_123_456_789, 19_999_999, False),
        (1_700_000_000_123_456_789, 25_000_000, True),
        (1_700_000_000_000_000_000, 1_900_000_000, False),  # a file system without fractions
        (1_700_000_000_000_000_000, 2_000_000_001, True),
        (1_700_000_000_123_456_789, -60_000_000_000, False),  # the clock was set back
    ],
)
def test_a_change_within_the_clocks_tick_is_not_trusted(monkeypatch, ctime_ns, age_ns, trusted):
    entry = _entry(ctime_ns, monkeypatch, ctime_ns + age_ns)

    assert entry.ctime_ns == (ctime_ns if trusted else 0)


def test_a_file_rewritten_within_one_tick_is_backed_up_again(tmp_path, monkeypatch):
    """Same size, same times, same inode: only the racy-clean rule tells that it may have changed."""
    rig = Rig(tmp_path)
    (rig.source / "a").write_bytes(b"first")
    stamp = (rig.source / "a").stat()
    monkeypatch.setattr(metadata, "time_ns", lambda: stamp.st_ctime_ns + 1_000_000)
    rig.backup()

    (rig.source / "a").write_bytes(b"other")
    os.utime(rig.source / "a", ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))
    rig.backup()

    target = rig.new_target()
    rig.restore(target)
    assert (target / "a").read_bytes() == b"other"


def test_an_unchanged_file_is_not_read_again(tmp_path, monkeypatch):
    rig = Rig(tmp_path)
    (rig.source / "a").write_bytes(b"kelp")
    monkeypatch.setattr(metadata, "time_ns", lambda: (rig.source / "a").stat().st_ctime_ns + 10_000_000_000)
    assert rig.backup().config.counts.bytes_read == 4

    assert rig.backup().config.counts.bytes_read == 0
    (rig.source / "a").write_bytes(b"KELP")
    assert rig.backup().config.counts.bytes_read == 4


def test_known_bytes_make_no_new_layer(tmp_path, monkeypatch):
    rig = Rig(tmp_path)
    (rig.source / "a").write_bytes(b"kelp" * 1000)
    monkeypatch.setattr(metadata, "time_ns", lambda: (rig.source / "a").stat().st_ctime_ns + 10_000_000_000)
    rig.backup()
    layers = set(rig.open().layers)
    os.utime(rig.source / "a", ns=(1, 1))
    monkeypatch.setattr(metadata, "time_ns", lambda: (rig.source / "a").stat().st_ctime_ns + 10_000_000_000)

    done = rig.backup()

    assert (done.config.counts.bytes_read, done.config.counts.bytes_new) == (4000, 0)
    assert set(rig.open().layers) == layers


def test_the_same_bytes_are_stored_once(tmp_path):
    rig = Rig(tmp_path)
    data = os.urandom(3_000_000)
    (rig.source / "a").write_bytes(data)
    (rig.source / "b").write_bytes(data)
    (rig.source / "c").write_bytes(data[:500_000])
    (rig.source / "d").write_bytes(data[:500_000])
    done = rig.backup()

    assert done.config.counts.bytes_new == 3_500_000
    assert rig.restored() == state(rig.source)


def test_bytes_that_repeat_within_a_file_are_stored_once(tmp_path):
    rig = Rig(tmp_path)
    (rig.source / "a").write_bytes(b"\x01" * 10_000_000)
    done = rig.backup()

    assert done.config.counts.bytes_new <= 2 * 1024 * 1024
    assert rig.restored() == state(rig.source)


def test_without_a_cache_directory_everything_works(tmp_path):
    rig = Rig(tmp_path)
    rig.cache.folder.write_bytes(b"in the way")
    (rig.source / "a").write_bytes(b"kelp")
    rig.backup()
    (rig.source / "b").write_bytes(b"weed")
    rig.backup()

    assert rig.restored() == state(rig.source)


def test_another_hosts_snapshot_earns_a_warning(tmp_path, monkeypatch):
    rig = Rig(tmp_path)
    (rig.source / "a").write_bytes(b"kelp")
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    monkeypatch.setattr("holdfast.volumes.backup.machine_id", lambda: "another")
    rig.backup()
    monkeypatch.undo()
    progress = Progress()
    rig.backup(progress)

    assert any("elsewhere" in warning for warning in progress.warnings)


def test_progress_counts_from_many_threads():
    progress = Progress()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2_000):
            pool.submit(progress.advance, size=3, files=1, stored=2)

    assert (progress.bytes_done, progress.files_done, progress.bytes_stored) == (6_000, 2_000, 4_000)


def test_a_warning_is_kept_once_and_in_order():
    progress = Progress()
    for sentence in ("one", "two", "one"):
        progress.warn(sentence)

    assert progress.warnings == ["one", "two"]


def test_a_backup_reports_its_progress(tmp_path):
    rig = Rig(tmp_path)
    for number in range(5):
        (rig.source / str(number)).write_bytes(b"x" * 10)
    progress = Progress()
    rig.backup(progress)
    assert (progress.files_done, progress.bytes_done) == (5, 50)
    assert progress.bytes_stored > 0

    progress = Progress()
    rig.restore(rig.new_target(), progress=progress)
    assert (progress.files_done, progress.bytes_done) == (5, 50)
    assert (progress.files_total, progress.bytes_total) == (5, 50)
