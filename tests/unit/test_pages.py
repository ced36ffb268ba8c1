import random
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from holdfast.archive import pages
from holdfast.archive.pages import FULL_PAGE, LARGEST_PAGE, MOST_BLOBS, IndexWriter, blobs_to_drop, in_order
from holdfast.errors import DamageError
from holdfast.model.snapshot import (
    MOST_CHUNKS,
    RECORD,
    Entry,
    IndexHeader,
    IndexRow,
    LayerRow,
    PageRow,
    is_safe,
    sort_key,
)


def entry(path, kind="f", **given):
    fields = {
        "mode": 0o644,
        "uid": 0,
        "gid": 0,
        "size": 0,
        "mtime_ns": 0,
        "ctime_ns": 0,
        "inode": 0,
        "target": None,
        "xattrs": None,
        "chunks": b"",
    }
    return Entry(path, kind, **(fields | given))


def _random_files(count):
    return [entry(path) for path in sorted(random.Random(n).randbytes(40).hex().encode() for n in range(count))]


class Written:
    """An index as a writer made it, and its pages by name."""

    def __init__(self, entries, known=None, kept=None):
        self.kept = dict(kept or {})
        self.spilled = []
        with ThreadPoolExecutor(2) as pool:
            writer = IndexWriter(known=known, spill=self._spill, keep=self.kept.__setitem__, pool=pool)
            for one in entries:
                writer.add(one)
            self.blob = writer.finish([], self.reread)
        self.header = self.blob.header
        self.new_pages = writer.new_pages

    def reread(self, row):
        return self.kept[row.blake3]

    def _spill(self, blob):
        self.spilled.append(blob)
        return IndexRow(f"spilled-{len(self.spilled)}", blob.pages_start, blob.size)

    def as_parent(self):
        own = IndexRow("parent", self.blob.pages_start, self.blob.size)
        return IndexHeader(self.header.layers, [own, *self.header.indexes[1:]], self.header.pages)

    @property
    def names(self):
        return [row.blake3 for row in self.header.pages]


def _files(count):
    paths = sorted((b"%02x/file-%05d" % (n % 50, n) for n in range(count)), key=sort_key)
    return [entry(path, size=n, chunks=RECORD.pack(bytes([n % 256]) * 32, 0, n, 7)) for n, path in enumerate(paths)]


def test_pages_hold_about_sixty_entries():
    written = Written(_files(20_000))

    assert 250 < len(written.names) < 400


@pytest.mark.parametrize("where", [0, 1, 7_777, 19_999])
def test_one_path_more_disturbs_two_pages_at_most(where):
    files = _files(20_000)
    before = Written(files)
    more = entry(files[where].path + b"-more")
    after = Written(sorted([*files, more], key=lambda e: sort_key(e.path)), known=before.as_parent())

    assert after.new_pages == len(set(after.names) - set(before.names))
    assert 1 <= after.new_pages <= 2
    assert len(set(before.names) - set(after.names)) <= 2


def test_one_path_less_disturbs_two_pages_at_most():
    files = _files(20_000)
    before = Written(files)

    for where in (0, 5_000, 19_999):
        after = Written(files[:where] + files[where + 1 :], known=before.as_parent())
        assert after.new_pages <= 2


def test_nothing_changed_makes_no_new_page():
    before = Written(_files(3_000))
    after = Written(_files(3_000), known=before.as_parent())

    assert after.new_pages == 0
    assert [row.digest for row in after.header.indexes] == ["", "parent"]
    assert {row.index for row in after.header.pages} == {1}


def _long_file(records, path=b"big"):
    """The entries of one file, cut as a backup cuts them."""
    cut = [[]]
    for record in records:
        cut[-1].append(record)
        if len(cut[-1]) >= MOST_CHUNKS or (len(cut[-1]) >= 256 and record[0] < 2):
            cut.append([])
    offset = 0
    for number, part in enumerate(cut):
        chunks = b"".join(part)
        yield entry(
            path, "f" if number == 0 else "+", size=len(records) * 1000 if number == 0 else offset, chunks=chunks
        )
        offset += 1000 * len(part)


def test_a_change_inside_a_file_of_100_000_chunks_disturbs_few_pages():
    rng = random.Random(7)
    records = [RECORD.pack(rng.randbytes(32), 0, n * 1000, 1000) for n in range(100_000)]
    before = Written(_long_file(records))
    for where in (10, 50_000, 99_990):
        changed = [*records]
        changed[where] = RECORD.pack(rng.randbytes(32), 1, 0, 1000)
        after = Written(_long_file(changed), known=before.as_parent())

        # Its first entry has the file's times too, so that page is always new.
        assert after.new_pages <= 3
    assert len(before.names) > 10


def test_pages_stay_small_whatever_is_in_them():
    records = b"".join(RECORD.pack(bytes([n % 256]) * 32, 0, n, 1) for n in range(MOST_CHUNKS))
    many = [entry(b"big", size=1), *(entry(b"big", "+", size=n, chunks=records) for n in range(1, 1500))]
    heavy = [entry(b"x/%06d" % n, xattrs=[(b"user.a", bytes(60_000))]) for n in range(300)]
    long_paths = [entry(b"y/" + b"%06d" % n + b"/z" * 2000) for n in range(3000)]
    written = Written([*many, *heavy, *long_paths])

    sizes = [len(data) for data in written.kept.values()]
    assert max(sizes) <= FULL_PAGE + 70_000 < LARGEST_PAGE


def test_pages_are_spilled_before_they_fill_memory(monkeypatch):
    monkeypatch.setattr(pages, "BLOB_BYTES", 50_000)
    monkeypatch.setattr(pages, "_PENDING_BYTES", 20_000)
    written = Written(_random_files(6_000))

    assert len(written.spilled) > 2
    assert all(blob.size < 200_000 for blob in written.spilled)
    at = [row.index for row in written.header.pages]
    assert at[0] != 0
    assert at[-1] == 0
    names = {row.digest for row in written.header.indexes[1:]}
    assert names == {f"spilled-{n}" for n in range(1, len(written.spilled) + 1)}


def test_the_least_used_blobs_go_until_half_of_what_is_held_is_in_use():
    assert blobs_to_drop([(0, 0), (100, 50), (100, 49), (100, 100)]) == set()
    assert blobs_to_drop([(0, 0), (100, 30), (100, 20), (100, 60)]) == {2}
    assert blobs_to_drop([(0, 0), (100, 3), (100, 2), (100, 1)]) == {1, 2, 3}
    assert blobs_to_drop([(80, 80), (100, 30)]) == set()
    assert blobs_to_drop([(0, 0), (100, 0), (100, 100)]) == {1}


def test_the_blob_being_written_is_never_left_behind():
    assert 0 not in blobs_to_drop([(1000, 1)] + [(10, 10)] * 200)


def test_of_too_many_blobs_the_smaller_half_goes():
    blobs = [(0, 0)] + [(size, size) for size in range(1, MOST_BLOBS + 2)]
    dropped = blobs_to_drop(blobs)

    assert dropped == set(range(1, (MOST_BLOBS + 1) // 2 + 1))
    assert blobs_to_drop(blobs[:-1]) == set()


def test_pages_of_a_sparse_blob_are_written_again():
    before = Written(_files(5_000))
    half = _files(5_000)[:1_500]
    after = Written(half, known=before.as_parent(), kept=before.kept)
    assert [row.digest for row in after.header.indexes] == [""]


@pytest.mark.parametrize(
    "paths",
    [[b"b", b"a"], [b"a", b"a"], [b"a/b", b"a"], [b"a.b", b"a/b"], [b"", b"a", b""]],
)
def test_entries_out_of_order_are_refused(paths):
    with pytest.raises(DamageError):
        list(in_order([entry(path) for path in paths]))


def test_order_is_the_walks():
    paths = [b"", b"a", b"a/b", b"a/b/c", b"a.b", b"a0", b"b"]

    assert [e.path for e in in_order(entry(path) for path in paths)] == paths


@pytest.mark.parametrize(
    "entries",
    [
        [("+", b"a")],
        [("d", b"a"), ("+", b"a")],
        [("f", b"a"), ("+", b"b")],
        [("f", b"a"), ("+", b"a"), ("l", b"b"), ("+", b"b")],
        [("h", b"a"), ("+", b"a")],
    ],
)
def test_a_continuation_of_nothing_is_refused(entries):
    with pytest.raises(DamageError):
        list(in_order([entry(path, kind) for kind, path in entries]))


@pytest.mark.parametrize(
    "path",
    [b"/", b"/a", b"a/", b"a//b", b".", b"..", b"./a", b"../a", b"a/..", b"a/../b", b"a/./b", b"a\0b"],
)
def test_unsafe_paths(path):
    assert not is_safe(path)
    data = msgspec.msgpack.encode([entry(path)])
    with pytest.raises(DamageError):
        pages.decode_page(data, pages.page_name(data))


@pytest.mark.parametrize("path", [b"", b"a", b"...", b"..a", b"a..", b".a/b.", b"a/..b", b"\xff\n"])
def test_safe_paths(path):
    assert is_safe(path)


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x91\xc0", b"\x91\x91\xc4\x01a", bytes(1000)])
def test_a_page_of_something_else_is_refused(data):
    with pytest.raises(DamageError):
        pages.decode_page(data, pages.page_name(data))


def test_a_page_of_another_name_is_refused():
    data = msgspec.msgpack.encode([entry(b"a")])

    with pytest.raises(DamageError):
        pages.decode_page(data, bytes(32))


@pytest.mark.parametrize(
    "header",
    [
        IndexHeader([], [], []),
        IndexHeader([LayerRow(1, "a", 1, 1), LayerRow(1, "b", 1, 1)], [IndexRow("", 0, 0)], []),
        IndexHeader([], [IndexRow("", 0, 0)], [PageRow(b"", bytes(32), 1, 0, 10)]),
        IndexHeader([], [IndexRow("", 0, 0)], [PageRow(b"", bytes(32), -1, 0, 10)]),
        IndexHeader([], [IndexRow("", 0, 0)], [PageRow(b"", bytes(32), 0, -1, 10)]),
        IndexHeader([], [IndexRow("", 0, 0)], [PageRow(b"", bytes(32), 0, 0, 0)]),
        IndexHeader([], [IndexRow("", 0, 0)], [PageRow(b"", bytes(32), 0, 0, LARGEST_PAGE + 1)]),
    ],
)
def test_a_header_whose_rows_do_not_fit_is_refused(header):
    with pytest.raises(DamageError):
        pages.parse_header(msgspec.msgpack.encode(header))


def test_a_subset_needs_only_the_pages_that_can_hold_it():
    written = Written(_files(20_000))
    needed = pages.pages_below(written.header, b"1f")
    held = [e for row in needed for e in pages.decode_page(written.kept[row.blake3], row.blake3)]

    assert len(needed) < len(written.names) / 2
    assert {e.path for e in _files(20_000) if e.path.startswith(b"1f/")} <= {e.path for e in held}


def test_a_time_beyond_what_the_format_can_say_is_cut_to_what_it_can():
    """Some file systems hold times past the year 2554; that is no reason to lose a backup."""
    written = Written(
        [entry(b"a", mtime_ns=10**21, ctime_ns=10**21), entry(b"b", mtime_ns=-(10**21)), entry(b"c", mtime_ns=7)]
    )
    (row,) = written.header.pages

    times = [one.mtime_ns for one in pages.decode_page(written.kept[row.blake3], row.blake3)]
    assert times == [2**64 - 1, -(2**63), 7]


def test_more_blobs_in_one_backup_than_may_be_left_behind(monkeypatch):
    """What was spilled by this very index is not read back to be written again."""
    monkeypatch.setattr(pages, "BLOB_BYTES", 2_000)
    monkeypatch.setattr(pages, "_PENDING_BYTES", 1_000)
    monkeypatch.setattr(pages, "_ENTRIES_A_PAGE", 20)
    written = Written(_random_files(4_000))

    assert len(written.spilled) > MOST_BLOBS
    assert len(written.header.indexes) == len(written.spilled) + 1
