from datetime import UTC, datetime, timedelta, timezone

import pytest

from holdfast.errors import UsageError
from holdfast.model.digest import Digest
from holdfast.model.names import LATEST, Repository, SourceName, Tag, split_reference


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        (b"/var/www", "paths/var/www"),
        (b"pgdata", "volumes/pgdata"),
        (b"team/app", "volumes/team/app"),
        (b"/srv/a_b/c.d/e--f", "paths/srv/a_b/c.d/e--f"),
        (b"/Users", "paths/x--kvzwk4tt"),
        (b"/.ssh", "paths/x--fzzxg2a"),
        (b"/", "paths/x--f4"),
    ],
)
def test_a_source_has_its_repository(name, repository):
    found = SourceName(name).repository

    assert str(found) == repository
    assert SourceName.of_repository(found) == SourceName(name)


def test_a_name_that_looks_escaped_is_escaped_itself():
    assert SourceName(b"x--f4").repository != SourceName(b"/").repository
    assert str(SourceName(b"x--f4").repository).startswith("volumes/x--")
    assert str(SourceName(b"h--f4").repository).startswith("volumes/x--")
    for name in (b"x--f4", b"h--f4", b"/x--f4"):
        assert SourceName.of_repository(SourceName(name).repository) == SourceName(name)


def test_a_long_name_becomes_a_hash_and_two_stay_two():
    one, other = SourceName(b"/" + b"a/" * 200 + b"x"), SourceName(b"/" + b"a/" * 200 + b"y")

    assert len(str(one.repository)) <= 255
    assert str(one.repository).startswith("paths/h--")
    assert one.repository != other.repository
    assert SourceName.of_repository(one.repository) is None


@pytest.mark.parametrize(
    "name", ["hipache", "images/x", "paths", "volumes", "paths/x--0", "volumes/x--1", "paths/x--me"]
)
def test_other_repositories_are_no_sources(name):
    assert SourceName.of_repository(Repository(name)) is None


@pytest.mark.parametrize("name", [b"", b"//", b"/a/", b"/a//b", b"/a/../b", b"..", b".", b"a/./b", b"a\0b"])
def test_what_is_no_name(name):
    with pytest.raises(UsageError):
        SourceName(name)


@pytest.mark.parametrize("name", ["", "A", "a//b", "/a", "a/", "a..b", "a/-b", ".a", "a b", "a" * 256, "ä", "a\n"])
def test_what_is_no_repository(name):
    with pytest.raises(UsageError):
        Repository(name)


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "a" * 129, "a b", "latest\n", "ä"])
def test_what_is_no_tag(name):
    with pytest.raises(UsageError):
        Tag(name)


def test_a_snapshots_tag_is_utc_and_reads_back():
    here = timezone(timedelta(hours=5, minutes=30))
    tag = Tag.of_snapshot(datetime(2026, 11, 20, 11, 35, 1, 999_999, tzinfo=here), "3fa9c1" + "0" * 58)

    assert tag.name == "20261120T060501Z-3fa9c1"
    assert tag.snapshot_time() == datetime(2026, 11, 20, 6, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize("name", ["latest", "20261120T060501Z", "20261320T060501Z-3fa9c1", "20261120T060501Z-3FA9C1"])
def test_other_tags_have_no_time(name):
    assert Tag(name).snapshot_time() is None


def test_latest_is_a_tag():
    assert str(LATEST) == "latest"


@pytest.mark.parametrize(
    ("text", "name", "tag"),
    [
        ("/var/www", "/var/www", None),
        ("/var/www@latest", "/var/www", "latest"),
        ("pgdata@20261120T060501Z-3fa9c1", "pgdata", "20261120T060501Z-3fa9c1"),
        ("pgdata@20261120T06", "pgdata", "20261120T06"),
        ("/home/me@home", "/home/me@home", None),
        ("/home/me@home@latest", "/home/me@home", "latest"),
        ("@latest", "@latest", None),
        ("a@", "a@", None),
    ],
)
def test_references(text, name, tag):
    assert split_reference(text) == (name, tag)


def test_digests():
    digest = Digest.of(b"kelp")

    assert Digest.parse(str(digest)) == digest
    assert digest.matches(b"kelp")
    assert not digest.matches(b"kelP")
    assert Digest.parse("sha512:" + "0" * 128).algorithm == "sha512"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "0" * 63,
        "sha256:" + "A" * 64,
        "md5:" + "0" * 32,
        "sha512:" + "0" * 64,
        "sha256:" + "0" * 64 + "\n",
        "sha256:../../" + "0" * 58,
    ],
)
def test_what_is_no_digest(text):
    with pytest.raises(UsageError):
        Digest.parse(text)
