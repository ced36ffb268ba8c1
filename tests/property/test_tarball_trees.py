"""Trees that Hypothesis makes, through a tarball and back; and archives that it breaks."""

import io
import os
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from backups import contents, memory_bucket
from holdfast.archive import gzip
from holdfast.archive.scan import Rules, scan
from holdfast.archive.treetar import TreeTar
from holdfast.archive.untar import Untar
from holdfast.errors import DamageError
from tarball_rig import archive, as_whole_seconds, bring_back, place, save
from trees import assert_same, fingerprint, write

names = st.binary(min_size=1, max_size=120).filter(lambda n: n not in (b".", b"..") and not {0, 47} & set(n))
files = st.dictionaries(st.lists(names, min_size=1, max_size=4).map(b"/".join), st.binary(max_size=3_000), max_size=8)
hostile_names = st.lists(
    st.sampled_from(["..", ".", "", "a", "b", "link", "/", "\0", "x" * 200]), min_size=1, max_size=4
).map("/".join)


def _make(root, tree):
    """Make what of a tree can be made: a path below a file cannot."""
    root.mkdir(exist_ok=True)
    for path, content in tree.items():
        try:
            write(os.fsencode(root) + b"/" + path, content)
        except OSError:
            continue


@given(files, files, st.booleans())
def test_any_tree_comes_back_over_any_other(tree, other, compress):
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        _make(source, tree)
        _make(target, other)
        bucket = memory_bucket()

        saved = save(bucket, source, compress=compress)
        restored = bring_back(bucket, source, target)

        assert saved.complete
        assert restored.complete
        assert_same(as_whole_seconds(fingerprint(source)), as_whole_seconds(fingerprint(target)))


@given(files)
def test_tarfile_reads_what_we_write(tree):
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        _make(source, tree)
        root = os.open(source, os.O_RDONLY)
        try:
            data = b"".join(TreeTar(lambda _path, _error: None).stream(scan(root, Rules(), lambda _p, _e: None)))
        finally:
            os.close(root)
        with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as made:
            found = {os.fsencode(one.name): made.extractfile(one).read() for one in made if one.isfile()}

        expected = {
            os.fsencode(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()
        }
        assert {path.removeprefix(b"./"): content for path, content in found.items()} == expected


@given(st.binary(max_size=4_000), st.integers(1, 700))
def test_bytes_that_are_no_archive_are_damage(data, size):
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    for stream in (iter(pieces), gzip.decompressed(iter(pieces))):
        try:
            for _ in Untar(stream).members():
                pass
        except DamageError:
            pass


@given(st.data())
def test_an_archive_with_any_bytes_changed_is_read_or_is_damage(data):
    whole = bytearray(
        archive(("./", None), ("a", b"x" * 700), ("l" * 150, b"y"), ("d/e", b"z"), pax_headers={"mtime": "1.5"})
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        bucket = memory_bucket()
        inside, target = Path(folder) / "inside", Path(folder) / "inside" / "target"
        write(target / "surplus", "surplus")
        place(bucket, target, bytes(whole), isdirectory="true", iscompressed="false")
        try:
            done = bring_back(bucket, target, target)
        except DamageError:
            assert (target / "surplus").read_bytes() == b"surplus"
        else:
            assert (target / "surplus").exists() == bool(done.failed)
        assert os.listdir(folder) == ["inside"]
        assert os.listdir(inside) == ["target"]


@given(
    st.lists(
        st.tuples(hostile_names, st.sampled_from("fdlh"), hostile_names),
        min_size=1,
        max_size=8,
    )
)
def test_no_archive_writes_outside_its_target(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as made:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type = {"f": tarfile.REGTYPE, "d": tarfile.DIRTYPE, "l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE}[kind]
            info.linkname = link if kind in "lh" else ""
            info.size = 4 if kind == "f" else 0
            made.addfile(info, io.BytesIO(b"evil"))
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "inside"
        target = inside / "target"
        write(inside / "a", "outside")
        write(inside / "b" / "a", "outside")
        write(target / "a", "old")
        before = {name: content for name, content in contents(inside).items() if not name.startswith("target")}
        bucket = memory_bucket()
        place(bucket, target, out.getvalue(), isdirectory="true", iscompressed="false")

        try:
            bring_back(bucket, target, target)
        except DamageError:
            assert (target / "a").exists() or (target / "a").is_symlink()

        after = {name: content for name, content in contents(inside).items() if not name.startswith("target")}
        assert after == before
        assert os.listdir(folder) == ["inside"]
