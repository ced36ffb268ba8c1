"""What Docker calls an image, and where that lies in a store."""

import pytest

from holdfast.errors import UsageError
from holdfast.model.images import ImageName, image_id
from holdfast.model.names import Repository, SourceName

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ubuntu", "ubuntu:latest"),
        ("ubuntu:22.04", "ubuntu:22.04"),
        ("library/ubuntu", "ubuntu:latest"),
        ("docker.io/ubuntu", "ubuntu:latest"),
        ("docker.io/library/ubuntu:22.04", "ubuntu:22.04"),
        ("index.docker.io/library/ubuntu", "ubuntu:latest"),
        ("docker.io/team/app", "team/app:latest"),
        ("docker.io/library/team/app", "library/team/app:latest"),
        ("library/team/app", "library/team/app:latest"),
        ("docker.io/quay.io/app", "docker.io/quay.io/app:latest"),
        ("index.docker.io/localhost/app", "docker.io/localhost/app:latest"),
        ("quay.io/library/app", "quay.io/library/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("[::1]:5000/app:1", "[::1]:5000/app:1"),
        ("HOST/app", "HOST/app:latest"),
        ("app:V1.2-RC_3", "app:V1.2-RC_3"),
        (f"app@sha256:{HEX}", f"app@sha256:{HEX}"),
        (f"app:1@sha256:{HEX}", f"app:1@sha256:{HEX}"),
        (f"localhost:5000/app@sha256:{HEX}", f"localhost:5000/app@sha256:{HEX}"),
        ("a__b/c-d---e.f", "a__b/c-d---e.f:latest"),
        ("deadbeef", "deadbeef:latest"),
    ],
)
def test_a_name_is_read_as_docker_reads_it(text, shown):
    assert str(ImageName.parse(text)) == shown
    assert ImageName.parse(shown) == ImageName.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "app:", "app@", "@", "/app", "app/", "a//b", "a b", "app:a b", "app:-1", "-app", "app-", "a..b"),
        *("a/../b", "../app", "app:../../x", "localhost:port/app", "[::1]", "app:" + "t" * 129),
        *("app:\n", "app\n", "app@sha256:12", f"app@md5:{HEX}", f"app:@sha256:{HEX}", f"app@sha256:{HEX.upper()}"),
        *("http://host/app", "ä", "a_-b", "a" * 256, "\x1b[31m"),
    ],
)
def test_what_is_no_name_is_refused(text):
    with pytest.raises(UsageError):
        ImageName.parse(text)


def test_upper_case_is_refused_with_a_hint():
    with pytest.raises(UsageError) as refused:
        ImageName.parse("team/App")

    assert refused.value.hint == "names are in lower case"


@pytest.mark.parametrize(
    ("text", "host", "without"),
    [
        ("opsgoodies.com/docker-repo/hipache", "opsgoodies.com", "docker-repo/hipache:latest"),
        ("localhost:5000/app:1", "localhost:5000", "app:1"),
        ("team/app", None, "team/app:latest"),
        ("docker.io/team/app", None, "team/app:latest"),
        ("app", None, "app:latest"),
    ],
)
def test_the_host_of_a_registry_can_be_left_out(text, host, without):
    name = ImageName.parse(text)

    assert name.host == host
    assert str(name.without_host()) == without


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("hipache", "hipache"),
        ("team/app:1.2", "team/app"),
        ("registry.example.org/team/app", "registry.example.org/team/app"),
        ("localhost:5000/app", "x--nrxwgylmnbxxg5b2guydama/app"),
    ],
)
def test_an_image_lies_under_its_own_name(text, repository):
    assert str(ImageName.parse(text).repository) == repository


@pytest.mark.parametrize("text", ["volumes/pgdata", "paths/var/www", "volumes", "paths"])
def test_images_are_kept_apart_from_snapshots(text):
    name = ImageName.parse(text)

    assert SourceName.of_repository(name.repository) is None
    assert ImageName.of_repository(name.repository) == text
    assert ImageName.of_repository(Repository(text)) is None


@pytest.mark.parametrize(
    "foreign",
    ["x--dnntcwy", "x--mfza", "x--pmxc4ltv", "h--abc/x", "x--7/app", "x--mfrggza", "library/ubuntu", "x--", "a/x--mi"],
)
def test_a_foreign_repository_is_listed_as_what_it_is_called_and_never_as_another(foreign):
    try:
        repository = Repository(foreign)
    except UsageError:
        return

    assert ImageName.of_repository(repository) == foreign


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("abcd", "abcd"),
        (HEX, HEX),
        (f"sha256:{HEX}", HEX),
        ("sha256:abcd12", "abcd12"),
        ("abc", None),
        ("ABCD", None),
        ("abcg", None),
        ("app:abcd", None),
        (HEX + "0", None),
        ("abcd\n", None),
        ("", None),
    ],
)
def test_what_may_be_an_id(text, digits):
    assert image_id(text) == digits
