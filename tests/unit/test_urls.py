import pytest

from holdfast.errors import UsageError
from holdfast.model.urls import BucketUrl


@pytest.mark.parametrize(
    ("text", "scheme", "bucket", "prefix"),
    [
        ("s3://b", "s3", "b", ""),
        ("s3://b/", "s3", "b", ""),
        ("s3://b/p/q/", "s3", "b", "p/q"),
        ("s3://b/with%20space", "s3", "b", "with space"),
        ("file:///srv/store", "file", "", "srv/store"),
        ("file:///srv/store/", "file", "", "srv/store"),
        ("gs://b/p", "gs", "b", "p"),
        ("az://b/p", "az", "b", "p"),
        ("memory://b", "memory", "b", ""),
    ],
)
def test_reads(text, scheme, bucket, prefix):
    url = BucketUrl.parse(text)

    assert (url.scheme, url.bucket, url.prefix) == (scheme, bucket, prefix)
    assert BucketUrl.parse(str(url)) == url


def test_reads_every_option_of_s3():
    url = BucketUrl.parse(
        "s3://b/p?region=eu-1&endpoint=https://h:9000&profile=me&path_style=true&create=false&anonymous=yes"
        "&layout=tarball"
    )

    assert url.option("region") == "eu-1"
    assert url.option("endpoint") == "https://h:9000"
    assert url.flag("path_style", default=False)
    assert not url.flag("create", default=True)
    assert url.flag("anonymous", default=False)
    assert BucketUrl.parse(str(url)) == url


def test_the_directory_of_a_file_store():
    assert BucketUrl.parse("file:///srv/the%20store").directory == "/srv/the store"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bucket",
        "/srv/store",
        "http://b",
        "ftp://b/p",
        "s3://",
        "s3:///p",
        "gs://",
        "memory://",
        "file://relative/path",
        "file:relative",
        "file://",
        "s3://b/../c",
        "s3://b/./c",
        "s3://b/%2e%2e/c",
        "s3://b/a%00b",
        "file:///srv/../etc",
        "s3://b?regoin=eu",
        "file:///s?region=eu",
        "s3://b?layout=zip",
        "s3://b?create=perhaps",
        "s3://b?endpoint=h:9000",
        "s3://b?endpoint=ftp://h",
        "s3://b?endpoint=https://key:word@h",
        "s3://key:word@b/p",
    ],
)
def test_refuses(text):
    with pytest.raises(UsageError):
        BucketUrl.parse(text)


def test_a_near_miss_says_what_was_meant():
    with pytest.raises(UsageError) as caught:
        BucketUrl.parse("s3://b?regoin=eu")
    assert "'region'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAKEY:S3CRET@b/p",
        "s3://AKIAKEY:S3CRET/WITH/SLASHES@b/p",
        "https://AKIAKEY:S3CRET@b/p",
        "s3://b?endpoint=https://AKIAKEY:S3CRET@h",
        "s3://b?secret_access_key=S3CRET",
        "http://host/p?token=S3CRET",
    ],
)
def test_an_error_shows_no_secret(text):
    with pytest.raises(UsageError) as caught:
        BucketUrl.parse(text)
    assert "S3CRET" not in f"{caught.value!r} {caught.value} {caught.value.hint}"


@pytest.mark.parametrize("option", ["account_key", "sas_token", "token", "client_secret"])
def test_a_url_shows_no_secret(option):
    url = BucketUrl.parse(f"az://b/p?{option}=S3CRET&create=false")

    assert "S3CRET" not in f"{url} {url!r}"
    assert url.option(option) == "S3CRET"
