import io
import os
import re
import tarfile

from hypothesis import assume, given
from hypothesis import strategies as st

from holdfast.archive import tar
from holdfast.errors import UsageError
from holdfast.model.names import Repository, SourceName

# https://github.com/opencontainers/distribution-spec, <name>
OCI = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")

plain = st.text("ab0._-/x", min_size=1, max_size=30).map(str.encode)
names = st.one_of(st.binary(min_size=1, max_size=40), plain, plain.map(lambda name: b"/" + name), st.just(b"/"))


def _source(name):
    try:
        return SourceName(name)
    except UsageError:
        return None


@given(names)
def test_a_name_goes_to_an_oci_repository_and_comes_back(name):
    source = _source(name)
    assume(source is not None)
    repository = source.repository

    assert len(repository.name) <= 255
    assert OCI.fullmatch(repository.name)
    assert repository.name.startswith("paths/" if name.startswith(b"/") else "volumes/")
    if "/h--" not in repository.name:
        assert SourceName.of_repository(repository) == source


@given(st.lists(names, max_size=8, unique=True))
def test_two_names_never_share_a_repository(several):
    sources = [source for source in map(_source, several) if source is not None]

    assert len({source.repository for source in sources}) == len(sources)


@given(st.from_regex(r"(paths|volumes)/[a-z0-9][a-z0-9/.x-]{0,30}", fullmatch=True))
def test_a_repository_is_at_most_one_name(name):
    try:
        repository = Repository(name)
    except UsageError:
        return
    source = SourceName.of_repository(repository)

    assert source is None or source.repository == repository


paths = st.binary(min_size=1, max_size=300).filter(
    lambda path: b"\0" not in path and not path.endswith(b"/") and not path.startswith(b"/")
)


@given(
    name=paths,
    kind=st.sampled_from("fdlhp"),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    size=st.integers(0, 3000),
    seconds=st.integers(-(2**40), 2**40),
    nanoseconds=st.integers(0, 999_999_999),
    target=paths,
)
def test_the_standard_library_reads_every_header(name, kind, mode, uid, gid, size, seconds, nanoseconds, target):
    size = size if kind == "f" else 0
    target = target if kind in "lh" else b""
    content = os.urandom(size)
    head = tar.header(name, kind, mode, uid, gid, size, seconds * 10**9 + nanoseconds, target)
    stream = head + content + tar.padding(size) + tar.END

    with tarfile.open(fileobj=io.BytesIO(stream), encoding="utf-8", errors="surrogateescape") as archive:
        (info,) = archive.getmembers()
        assert os.fsencode(info.name) == name
        assert (info.mode, info.uid, info.gid, info.size, int(info.mtime)) == (mode, uid, gid, size, seconds)
        assert os.fsencode(info.linkname) == target
        if kind == "f":
            assert archive.extractfile(info).read() == content


@given(st.lists(st.tuples(st.from_regex(rb"user\.[a-z]{1,9}", fullmatch=True), st.binary(max_size=80)), max_size=4))
def test_extended_attributes_come_back_byte_for_byte(xattrs):
    head = tar.header(b"a", "f", 0o644, 0, 0, 0, 0, xattrs=sorted(xattrs))

    with tarfile.open(fileobj=io.BytesIO(head + tar.END), errors="surrogateescape") as archive:
        (info,) = archive.getmembers()
        found = {k: v.encode("utf-8", "surrogateescape") for k, v in info.pax_headers.items()}
    assert found == {"SCHILY.xattr." + name.decode(): value for name, value in sorted(xattrs)}
