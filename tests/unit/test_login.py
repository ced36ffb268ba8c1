"""Keys come into docker's configuration, and nothing else there changes, whatever happens on the way."""

import base64
import errno
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.config import Secret
from holdfast.errors import HoldfastError, NoSpaceError, TargetError, UsageError
from holdfast.images import login as module
from holdfast.images.login import docker_directory, login, registry_host

REGISTRY = "opsgoodies.com"
URL = "s3://ops-goodies/images?region=us-west-2"
SECRET = "S3cr3t+Key/With:Colon="
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
DOCUMENTS = st.dictionaries(st.text(), VALUES, max_size=6)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "docker"


def _log_in(directory, registry=REGISTRY, access_key="AKIA", secret=SECRET, url=URL):
    return login(registry, access_key, Secret(secret), url, directory=str(directory))


def _put(directory, content):
    directory.mkdir(exist_ok=True)
    path = directory / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def _entry(path, registry=REGISTRY):
    return json.loads(path.read_bytes())["auths"][registry]


def test_what_is_written_is_what_docker_reads(directory):
    done = _log_in(directory)

    path = directory / "config.json"
    entry = _entry(path)
    assert base64.b64decode(entry["auth"]).decode() == f"AKIA:{SECRET}"
    assert entry["email"] == URL
    assert set(entry) == {"auth", "email"}
    assert done.told() == {"registry": REGISTRY, "path": str(path), "hidden_by": None}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@given(before=DOCUMENTS, auths=st.none() | DOCUMENTS)
def test_everything_else_stays_in_its_order(tmp_path_factory, before, auths):
    directory = tmp_path_factory.mktemp("docker")
    before = {**before, **({"auths": auths} if auths is not None else {})}
    path = _put(directory, before)

    _log_in(directory)

    after = json.loads(path.read_bytes())
    assert list(after) == [*before, *(["auths"] if auths is None else [])]
    auths_after = after.pop("auths")
    assert {**before, "auths": None} == {**after, "auths": None}
    assert list(auths_after) == [*(auths or {}), *([] if REGISTRY in (auths or {}) else [REGISTRY])]
    assert {**(auths or {}), REGISTRY: None} == {**auths_after, REGISTRY: None}


def test_an_earlier_login_is_replaced_as_a_whole(directory):
    path = _put(directory, {"auths": {"a.example": {"auth": "eDp5"}, REGISTRY: {"identitytoken": "t"}}})
    path.chmod(0o644)

    _log_in(directory, access_key="NEW")

    assert _entry(path, "a.example") == {"auth": "eDp5"}
    assert base64.b64decode(_entry(path)["auth"]).startswith(b"NEW:")
    assert "identitytoken" not in _entry(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("before", [b"", b" \n", b"{}", b'{"auths": null}', b'\xef\xbb\xbf{"auths": {}}'])
def test_a_file_with_nothing_in_it_will_do(before, directory):
    path = _put(directory, before)

    _log_in(directory)

    assert _entry(path)["email"] == URL


@pytest.mark.parametrize(
    "before",
    [
        b"{",
        b"[]",
        b'"text"',
        b'{"auths": []}',
        b'{"auths": false}',
        b'{"auths": "x"}',
        b"\xff\xfe\xfd",
        b"[" * 100_000,
        b"1" * 10_000,
        b" " * (5 << 20),
    ],
    ids=lambda before: repr(before[:20]),
)
def test_a_file_that_docker_did_not_write_is_left_alone(before, directory):
    path = _put(directory, before)

    with pytest.raises(UsageError, match=r"config\.json") as caught:
        _log_in(directory)

    assert caught.value.hint
    assert path.read_bytes() == before
    assert os.listdir(directory) == ["config.json"]


def test_an_error_shows_nothing_of_what_the_file_holds(directory):
    _put(directory, b'{"auths": {"x": {"auth": "' + base64.b64encode(b"u:password") + b'"}}')

    with pytest.raises(UsageError) as caught:
        _log_in(directory)

    shown = f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
    assert base64.b64encode(b"u:password").decode() not in shown


@pytest.mark.parametrize(
    ("given_as", "host"),
    [
        ("opsgoodies.com", "opsgoodies.com"),
        ("https://opsgoodies.com", "opsgoodies.com"),
        ("http://opsgoodies.com:5000/v1/", "opsgoodies.com:5000"),
        ("opsgoodies.com/docker-repo", "opsgoodies.com"),
        (" localhost ", "localhost"),
        ("[::1]:5000", "[::1]:5000"),
        ("10.0.0.1:22375", "10.0.0.1:22375"),
    ],
)
def test_a_registry_by_its_host_or_url(given_as, host, directory):
    assert registry_host(given_as) == host
    assert _log_in(directory, registry=given_as).registry == host


@pytest.mark.parametrize(
    "name",
    [
        "",
        "https://",
        "opsgoodies",
        "user:password@opsgoodies.com",
        "a b.com",
        "a.com:port",
        "a.com:",
        "x\n.com",
        "é.com",
    ],
)
def test_what_docker_would_not_take_for_a_registry(name, directory):
    with pytest.raises(UsageError, match="registry"):
        _log_in(directory, registry=name)
    assert not directory.exists()


@pytest.mark.parametrize("name", ["docker.io", "https://index.docker.io/v1/"])
def test_dockers_own_registry_does_not_get_the_keys(name, directory):
    with pytest.raises(UsageError) as caught:
        _log_in(directory, registry=name)
    assert "Docker's own" in caught.value.hint
    assert not directory.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"access_key": ""},
        {"access_key": "AK:IA"},
        {"access_key": "AKIA\n"},
        {"access_key": "AK\udcffIA"},
        {"secret": ""},
        {"secret": f"{SECRET}\x00"},
        {"secret": f"{SECRET}\udcff"},
        {"url": ""},
        {"url": "file:///tmp/x"},
        {"url": SECRET},
        {"url": "s3://"},
        {"url": "s3://b?regoin=x"},
        {"url": f"s3://AKIA:{SECRET}@b"},
    ],
    ids=repr,
)
def test_keys_and_urls_that_cannot_be(wrong, directory):
    with pytest.raises(UsageError) as caught:
        _log_in(directory, **wrong)

    assert SECRET not in f"{caught.value} {caught.value.hint}"
    assert not directory.exists()


@pytest.mark.parametrize(
    ("settings", "helper"),
    [
        ({"credsStore": "desktop"}, "desktop"),
        ({"credHelpers": {REGISTRY: "ecr-login"}}, "ecr-login"),
        ({"credHelpers": {REGISTRY: ""}, "credsStore": "desktop"}, None),
        ({"credHelpers": {"other.example": "gcloud"}}, None),
        ({"credHelpers": {"other.example": "gcloud"}, "credsStore": "pass"}, "pass"),
        ({"credsStore": ""}, None),
        ({"credsStore": 5, "credHelpers": []}, None),
    ],
)
def test_a_helper_that_hides_what_was_written_is_named(settings, helper, directory):
    path = _put(directory, settings)

    assert _log_in(directory).hidden_by == helper
    assert {**json.loads(path.read_bytes()), "auths": None} == {**settings, "auths": None}


def test_a_symlink_stays_and_what_it_leads_to_changes(directory, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "settings").write_text('{"a": 1}')
    directory.mkdir()
    (directory / "config.json").symlink_to("../kept/settings")

    done = _log_in(directory)

    assert (directory / "config.json").is_symlink()
    assert done.path == str(kept / "settings")
    assert json.loads((kept / "settings").read_text())["a"] == 1
    assert _entry(kept / "settings")["email"] == URL
    assert os.listdir(kept) == ["settings"]
    assert os.listdir(directory) == ["config.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_file_stays_its_owners(directory):
    path = _put(directory, {})
    os.chown(path, 12345, 23456)

    _log_in(directory)

    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_logins_at_the_same_time_lose_nothing(directory):
    names = [f"r{number}.example" for number in range(40)]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: _log_in(directory, registry=name), names))

    assert sorted(json.loads((directory / "config.json").read_bytes())["auths"]) == sorted(names)
    assert os.listdir(directory) == ["config.json"]


@pytest.mark.parametrize("step", ["mkstemp", "fchown", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EDQUOT, NoSpaceError), (errno.EIO, TargetError)]
)
def test_a_disk_that_fails_leaves_the_file_as_it_was(step, code, kind, directory, monkeypatch):
    path = _put(directory, {"auths": {"a.example": {"auth": "eDp5"}}})
    before = path.read_bytes()

    def fail(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module.tempfile if step == "mkstemp" else module.os, step, fail)
    with pytest.raises(kind, match=r"config\.json"):
        _log_in(directory)

    assert path.read_bytes() == before
    assert os.listdir(directory) == ["config.json"]


@pytest.mark.parametrize("what", ["the directory is a file", "the file is a directory", "it leads nowhere"])
def test_what_stands_in_the_way(what, directory):
    if what == "the directory is a file":
        directory.write_text("")
    else:
        directory.mkdir()
    if what == "the file is a directory":
        (directory / "config.json").mkdir()
    if what == "it leads nowhere":
        (directory / "config.json").symlink_to("no/such/config.json")

    with pytest.raises(HoldfastError, match="cannot change") as caught:
        _log_in(directory)
    assert "DOCKER_CONFIG" in caught.value.hint


def test_where_docker_keeps_its_configuration(home):
    assert docker_directory({}) == str(home / ".docker")
    assert docker_directory({"DOCKER_CONFIG": ""}) == str(home / ".docker")
    assert docker_directory({"DOCKER_CONFIG": "/somewhere"}) == "/somewhere"
