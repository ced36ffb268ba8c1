"""The commands for images, as far as they go without an engine: options, what they print, and where keys go."""

import base64
import fcntl
import http.server
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import threading
from contextlib import contextmanager

import pytest

from commandline import COMMAND, Holdfast
from holdfast.cli import images
from holdfast.errors import EngineError, EngineUnavailable, NoSpaceError
from holdfast.images.pull import HostResult, Pulled
from holdfast.model.digest import Digest
from holdfast.model.names import Repository, Tag
from holdfast.model.oci import IMAGE_CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, Descriptor, Manifest
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from holdfast.storage.store import Store
from servers import free_ports

ACCESS = "AKIAEXAMPLE"
SECRET = "An0therSecret/That+Nobody:MaySee0123456789"
S3_URL = "s3://ops-goodies/images?region=us-west-2"
REGISTRY = "opsgoodies.com"
ON_A_TERMINAL = "import fcntl,os,sys,termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def stored(local):
    """A store with the image ``team/app:1.2``, of one layer."""
    store = Store(open_bucket(BucketUrl.parse(local.store)))
    repository, layer = Repository("team/app"), bytes(1024)
    config = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer))]}}
    ).encode()
    for data in (config, layer):
        store.put_blob(repository, Digest.of(data), data)
    manifest = Manifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        config=Descriptor(IMAGE_CONFIG_TYPE, str(Digest.of(config)), len(config)),
        layers=[Descriptor(LAYER_TYPE, str(Digest.of(layer)), len(layer))],
    )
    digest = store.put_manifest(repository, manifest.encode())
    store.set_tag(repository, Tag("1.2"), digest)
    return store, digest


def _dead_host():
    return f"tcp://127.0.0.1:{free_ports(1)[0]}"


def _explained(ran, *words):
    kinds = {line.partition(" ")[0] for line in ran.err.splitlines()}
    assert {"error:", "hint:"} <= kinds
    for word in words:
        assert word in ran.err
    assert ran.out == b""


# Options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["push", "/var/backups", "app"], ["file:///var/backups"]),
        (["push", "app:1.2", "s3://b"], ["not a store", "s3://"]),
        (["push", "s3://b?layout=tarball", "app"], ["tarball", "dogestry"]),
        (["push", "memory://b", "app"], ["memory://"]),
        (["push", "s3://b", "app", "--compression", "lz4"], ["lz4", "zstd:LEVEL", "gzip"]),
        (["push", "s3://b", "app", "--compression", "gzip:9"], ["gzip:9"]),
        (["push", "s3://b", "app", "--tempdir", "/no/such/place"], ["--tempdir", "/no/such/place"]),
        (["pull", "/var/backups", "app"], ["file:///var/backups"]),
        (["pull", "s3://b", "app", "--pullhosts", ""], ["--pullhosts"]),
        (["pull", "s3://b", "app", "--pullhosts", " , "], ["--pullhosts"]),
        (["pull", "s3://b", "app", "--pullhosts", "h1,ftp://h2"], ["ftp://h2", "tcp://"]),
        (["list", "/var/backups"], ["file:///var/backups"]),
        (["login", "nowhere"], ["nowhere", "opsgoodies.com"]),
        (["login", REGISTRY, "--secret-key-stdin"], ["--access-key", "--s3-url"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_explained(arguments, words, local):
    _explained(local.run(*arguments, code=2, stdin=subprocess.DEVNULL), *words)


def test_a_lock_file_that_cannot_be(local, stored, tmp_path):
    ran = local.run("pull", local.store, "team/app:1.2", "--lockfile", tmp_path, code=2)

    assert str(tmp_path) in ran.err


def test_without_an_engine_a_push_says_so(local, tmp_path):
    env = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}

    _explained(local.run("push", local.store, "app", env=env, code=1), f"{tmp_path}/none.sock")
    document = local.run("push", local.store, "app", "--json", env=env, code=1).json
    assert document["exit_code"] == 1
    assert not (tmp_path / "store").exists()


def test_an_image_that_is_not_there(local, stored):
    _explained(local.run("pull", local.store, "team/app:9", "--pullhosts", _dead_host(), code=4), "team/app:9", "list")
    assert local.run("pull", local.store, "other", "--json", code=4).json["exit_code"] == 4


def test_the_list_of_a_store(local, stored):
    digest = str(stored[1])

    assert local.run("list", local.store).lines == ["team/app:1.2"]
    assert local.run("-use-metaservice", "list", local.store).lines == ["team/app:1.2"]
    assert local.run("list", local.store, "--json").json == {
        "images": [{"name": "team/app", "tag": "1.2", "layout": "registry", "digest": digest, "image_id": None}]
    }


def test_the_list_says_what_lies_in_the_old_layout(local, tmp_path):
    tags = tmp_path / "store" / "repositories" / "hipache"
    tags.mkdir(parents=True)
    (tags / "tag").write_text("ab" * 32)

    assert local.run("list", local.store).lines == ["hipache:tag  (dogestry)"]


def test_the_list_of_an_empty_store(local, tmp_path):
    assert local.run("list", local.store).out == b""
    assert local.run("list", local.store, "--json").json == {"images": []}
    assert not (tmp_path / "store").exists()


# Hosts


def test_one_host_that_is_dead_is_an_error(local, stored):
    host = _dead_host()

    _explained(local.run("pull", local.store, "team/app:1.2", "--pullhosts", host, code=1), host)


def test_hosts_that_are_all_dead(local, stored):
    first, second = _dead_host(), _dead_host()
    command = ("pull", local.store, "team/app:1.2", "--pullhosts", f"{first}, {second},{first}/")

    ran = local.run(*command, code=1)
    _explained(ran, f"{first} failed: ", f"{second} failed: ", "none of 2 hosts", "team/app:1.2")
    document = local.run(*command, "--json", code=1).json
    assert [(host["host"], host["state"]) for host in document["hosts"]] == [(first, "failed"), (second, "failed")]
    assert document["complete"] is False
    assert document["exit_code"] == 1
    assert document["store"] == local.store
    assert "none of 2 hosts" in document["error"]


@pytest.fixture
def pull(local, monkeypatch, capsys):
    """pull(*hosts): the exit code, stdout and stderr of a pull that came out so."""

    def run(*hosts, json=False):
        done = Pulled("team/app:1.2", "sha256:" + "ab" * 32, hosts, bytes_read=3, seconds=1.5)
        monkeypatch.setattr("holdfast.images.pull.pull", lambda *_arguments: done)
        code = images.pull(local.store, "team/app:1.2", json=json)
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return run


GOOD = HostResult("tcp://h1:2375", "pulled", image_id="sha256:cd", layers=3, bytes_sent=3 << 20, seconds=2.0)
SAME = HostResult("tcp://h2:2375", "up to date", image_id="sha256:cd", seconds=0.1)
SERVER = HostResult("tcp://h3:2375", "pulled", by_server=True, seconds=1.0)
FULL = HostResult("tcp://h4\x1b:2375", "failed", error=NoSpaceError("no space\x1b", hint="make room"))
DEAD = HostResult("tcp://h5:2375", "failed", error=EngineUnavailable("dead"))


def test_each_host_has_its_line(pull):
    code, out, err = pull(GOOD, SAME, SERVER)

    assert code == 0
    assert err == ""
    assert out.splitlines() == [
        "tcp://h1:2375: pulled, 3 layers (3.0 MiB) sent, in 2.0 s",
        "tcp://h2:2375: up to date, in 0.1 s",
        "tcp://h3:2375: pulled by its own Holdfast, in 1.0 s",
        f"team/app:1.2 has digest sha256:{'ab' * 32}, image id sha256:cd",
    ]


def test_a_server_that_does_not_tell_the_images_id(pull):
    assert pull(SERVER)[1].splitlines()[-1] == f"team/app:1.2 has digest sha256:{'ab' * 32}"


def test_hosts_that_failed_leave_it_incomplete(pull):
    code, out, err = pull(GOOD, FULL, DEAD)

    assert code == 3
    assert out.splitlines()[0].startswith("tcp://h1:2375: pulled")
    assert out.splitlines()[-1] == "incomplete: 2 of 3 hosts failed"
    assert err.splitlines() == [
        "warning: tcp://h4\\x1b:2375 failed: no space\\x1b (make room)",
        "warning: tcp://h5:2375 failed: dead",
    ]


def test_the_results_of_hosts_as_json(pull):
    code, out, _ = pull(GOOD, FULL, json=True)

    document = json.loads(out)
    assert code == 3
    assert document["complete"] is False
    assert [host["host"] for host in document["hosts"]] == [GOOD.host, FULL.host]
    assert document["hosts"][1]["error"] == "no space\x1b"
    assert "error" not in document


def test_all_hosts_that_failed_give_the_first_ones_way_out(pull):
    code, out, err = pull(FULL, DEAD, HostResult("tcp://h6:2375", "failed", error=EngineError("refused")))

    assert code == 1
    assert out == ""
    assert err.splitlines()[-2:] == ["error: none of 3 hosts got team/app:1.2", "hint: make room"]


# Dogestry's spelling


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-pullhosts tcp://h:2375 pull s3://b/ hipache", "pull --pullhosts tcp://h:2375 s3://b/ hipache"),
        ("-pullhosts=h1,h2 -force-local pull s3://b x", "pull --pullhosts h1,h2 --force-local s3://b x"),
        ("-tempdir /t -lockfile=/l push s3://b x", "push --tempdir /t --lockfile /l s3://b x"),
        ("-use-metaservice push s3://b x", "push --use-metaservice s3://b x"),
        ("-disable-checks pull s3://b x", "pull --disable-checks s3://b x"),
        ("-use-metaservice list s3://b", "list --use-metaservice s3://b"),
        # what is not Dogestry's stays as it is
        ("-pullhosts h backup x", "-pullhosts h backup x"),
        ("-pullhosts pull s3://b x", "-pullhosts pull s3://b x"),
        ("-pullhosts", "-pullhosts"),
        ("-force-local=true pull s3://b x", "-force-local=true pull s3://b x"),
        ("--debug pull s3://b x", "--debug pull s3://b x"),
        ("pull s3://b x -pullhosts h", "pull s3://b x -pullhosts h"),
        ("backup . -x", "backup . -x"),
        ("", ""),
    ],
)
def test_options_with_one_dash_before_the_command(old, new):
    assert images.newly_spelled(old.split()) == new.split()


def test_an_old_command_line_does_what_the_new_one_does(local, stored, tmp_path):
    host = _dead_host()
    old = ["-tempdir", tmp_path, f"-lockfile={tmp_path}/lock", "-use-metaservice", "-pullhosts", host]

    ran = local.run(*old, "pull", local.store, "team/app:1.2", code=1)

    _explained(ran, host)
    assert (tmp_path / "lock").exists()


# The lock file


@contextmanager
def _held(path):
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _line(process):
    """Read what it says while it waits."""
    return process.stderr.readline().decode()


def test_who_holds_the_lock_file_is_waited_for(local, stored, tmp_path):
    lock = tmp_path / "lock"

    with _held(lock):
        waiting = local.start("pull", local.store, "nothing", "--lockfile", lock)
        said = _line(waiting)
    err = waiting.communicate(timeout=60)[1].decode()

    assert "waiting" in said
    assert str(lock) in said
    assert waiting.returncode == 4
    assert "waiting" not in err


def test_a_lock_file_that_was_left_behind_holds_nobody_up(local, stored, tmp_path):
    lock = tmp_path / "lock"
    with _held(lock):
        killed = local.start("pull", local.store, "nothing", "--lockfile", lock)
        _line(killed)
        killed.kill()
        killed.communicate(timeout=60)

    ran = local.run("pull", local.store, "nothing", "--lockfile", lock, code=4)

    assert "waiting" not in ran.err
    assert lock.exists()


def test_who_waits_for_the_lock_file_can_be_stopped(local, stored, tmp_path):
    lock = tmp_path / "lock"

    with _held(lock):
        waiting = local.start("pull", local.store, "nothing", "--lockfile", lock)
        _line(waiting)
        waiting.send_signal(signal.SIGTERM)
        waiting.communicate(timeout=60)

    assert waiting.returncode == 130


# Login


@pytest.fixture
def docker_config(tmp_path):
    return tmp_path / "docker" / "config.json"


@pytest.fixture
def keyed(tmp_path, docker_config):
    """The command where DOCKER_CONFIG is a directory of the test's own."""
    return Holdfast(f"file://{tmp_path}/store", env={"DOCKER_CONFIG": str(docker_config.parent)})


def _written(docker_config):
    entry = json.loads(docker_config.read_bytes())["auths"][REGISTRY]
    return base64.b64decode(entry["auth"]).decode(), entry["email"]


def _fed(*lines):
    return {"input": "".join(f"{line}\n" for line in lines).encode()}


def test_three_lines_of_stdin_log_in(keyed, docker_config):
    # Keys in the environment have no say: who gives three lines gives all.
    env = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": "unused-secret-of-another"}

    ran = keyed.run("login", REGISTRY, env=env, **_fed(ACCESS, f" {SECRET} ", S3_URL))

    assert _written(docker_config) == (f"{ACCESS}:{SECRET}", S3_URL)
    assert ran.lines == [f"the keys for {REGISTRY} are in {docker_config}"]
    assert ran.err == ""


@pytest.mark.parametrize(
    ("options", "env", "lines"),
    [
        (["--access-key", ACCESS, "--s3-url", S3_URL, "--secret-key-stdin"], {}, [SECRET]),
        (["--access-key", ACCESS, "--s3-url", S3_URL], {}, [SECRET]),
        (["--access-key", ACCESS, "--s3-url", S3_URL], {"AWS_SECRET_ACCESS_KEY": SECRET}, []),
        (["--access-key", ACCESS], {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ACCESS_KEY_ID": ACCESS}, [S3_URL]),
        (["--access-key", ACCESS], {"AWS_SECRET_ACCESS_KEY": "of-another", "AWS_ACCESS_KEY_ID": "B"}, [SECRET, S3_URL]),
        (["--s3-url", S3_URL], {"AWS_SECRET_ACCESS_KEY": "of-whom"}, [ACCESS, SECRET]),
    ],
)
def test_keys_come_from_options_environment_and_stdin(options, env, lines, keyed, docker_config):
    document = keyed.run("login", REGISTRY, "--json", *options, env=env, **_fed(*lines)).json

    assert document == {"registry": REGISTRY, "path": str(docker_config), "hidden_by": None}
    assert _written(docker_config) == (f"{ACCESS}:{SECRET}", S3_URL)


def test_the_secret_comes_from_a_file_too(keyed, docker_config, tmp_path):
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    env = {"AWS_SECRET_ACCESS_KEY_FILE": str(tmp_path / "secret")}

    keyed.run("login", REGISTRY, "--access-key", ACCESS, "--s3-url", S3_URL, env=env, stdin=subprocess.DEVNULL)

    assert _written(docker_config)[0] == f"{ACCESS}:{SECRET}"


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([], "AWS_ACCESS_KEY"),
        ([ACCESS], "AWS_SECRET_KEY"),
        ([ACCESS, SECRET], "S3_URL"),
        ([ACCESS, S3_URL, SECRET], "S3_URL"),  # in the wrong order
        ([f"{ACCESS}:x", SECRET, S3_URL], "AWS_ACCESS_KEY"),
        ([ACCESS, SECRET, f"s3://{ACCESS}:{SECRET}@b"], "credentials"),
    ],
)
def test_what_is_missing_or_wrong_is_named_and_never_shown(lines, word, keyed, docker_config):
    ran = keyed.run("login", REGISTRY, code=2, **_fed(*lines))

    assert word in ran.err
    assert SECRET not in ran.err
    assert not docker_config.exists()


def test_bytes_that_are_no_text(keyed, docker_config):
    keyed.run("login", REGISTRY, code=2, input=b"\xff\n\xff\n\xff\n")

    assert not docker_config.exists()


def test_without_a_stdin(keyed):
    closed = Holdfast(keyed.store, env=keyed.env, wrapper=("/bin/sh", "-c", 'exec "$@" <&-', "sh"))

    assert "AWS_ACCESS_KEY" in closed.run("login", REGISTRY, code=2).err


def test_a_configuration_that_is_no_json_is_left_alone(keyed, docker_config):
    docker_config.parent.mkdir()
    docker_config.write_text("{")

    ran = keyed.run("login", REGISTRY, code=2, **_fed(ACCESS, SECRET, S3_URL))

    _explained(ran, str(docker_config), "nothing was changed")
    assert docker_config.read_text() == "{"


@contextmanager
def _person(keyed):
    """The command at a terminal, and the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, *COMMAND, "login", "https://opsgoodies.com/v1/"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, **keyed.env},
        start_new_session=True,
    )
    try:
        yield process, ours
    finally:
        process.kill()
        process.communicate(timeout=60)
        os.close(ours)
        os.close(theirs)


def _answer(terminal, question, answer):
    seen = ""
    while not seen.endswith(f"{question}: "):
        seen += os.read(terminal, 1024).decode()
    os.write(terminal, answer.encode())
    return seen


def test_a_person_is_asked_and_the_secret_is_not_shown(keyed, docker_config):
    with _person(keyed) as (process, terminal):
        seen = _answer(terminal, "AWS_ACCESS_KEY", f"{ACCESS}\n")
        seen += _answer(terminal, "AWS_SECRET_KEY", f"{SECRET}\n")
        seen += _answer(terminal, "S3_URL", f"{S3_URL}\n")
        out = process.communicate(timeout=60)[0]

    assert process.returncode == 0
    assert str(docker_config) in out.decode()
    assert ACCESS in seen
    assert SECRET not in seen
    assert _written(docker_config) == (f"{ACCESS}:{SECRET}", S3_URL)


def test_a_person_who_thinks_better_of_it(keyed, docker_config):
    with _person(keyed) as (process, terminal):
        _answer(terminal, "AWS_ACCESS_KEY", f"{ACCESS}\n")
        _answer(terminal, "AWS_SECRET_KEY", "\x03")
        process.communicate(timeout=60)
        shows = bool(termios.tcgetattr(terminal)[3] & termios.ECHO)

    assert process.returncode == 130
    assert shows
    assert not docker_config.exists()


class _Engine(http.server.BaseHTTPRequestHandler):
    """As much of an engine as the docker command needs to pull; the credentials that it sends are kept."""

    seen: list[dict[str, str]]

    def do_GET(self):
        self._answer(b'{"ApiVersion":"1.41","Version":"20.10","Os":"linux","Arch":"amd64"}')

    def do_HEAD(self):
        self._answer(b"")

    def do_POST(self):
        self.seen.append(json.loads(base64.urlsafe_b64decode(self.headers.get("X-Registry-Auth") or "e30=")))
        self._answer(b'{"status":"done"}\n')

    def _answer(self, body):
        self.send_response(200)
        self.send_header("Api-Version", "1.41")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def docker_sends(docker_config):
    """docker_sends(): the credentials that the docker command sends when it pulls from the registry."""
    handler = type("Handler", (_Engine,), {"seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def pull():
        command = ["docker", "-H", f"tcp://127.0.0.1:{server.server_port}", "pull", f"{REGISTRY}/docker-repo/hipache"]
        path = f"{docker_config.parent}:{os.environ.get('PATH', os.defpath)}"
        env = {**os.environ, "DOCKER_CONFIG": str(docker_config.parent), "PATH": path}
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)
        return handler.seen[-1]

    yield pull
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(shutil.which("docker") is None, reason="the docker command is not installed")
def test_the_docker_command_sends_what_was_written(keyed, docker_config, docker_sends):
    docker_config.parent.mkdir()
    docker_config.write_text('{"credsStore": "test"}')
    helper = docker_config.parent / "docker-credential-test"
    helper.write_text("#!/bin/sh\necho credentials not found in native keychain; exit 1\n")
    helper.chmod(0o755)

    ran = keyed.run("login", REGISTRY, **_fed(ACCESS, SECRET, S3_URL))
    assert "username" not in docker_sends()
    assert "docker-credential-test" in ran.err
    entry = f'"{REGISTRY}": ""'
    assert entry in ran.err

    # The way out, as the warning names it.
    document = json.loads(docker_config.read_text())
    docker_config.write_text(json.dumps({**document, "credHelpers": json.loads(f"{{{entry}}}")}))
    sent = docker_sends()
    assert (sent["username"], sent["password"]) == (ACCESS, SECRET)
    assert "warning" not in keyed.run("login", REGISTRY, **_fed(ACCESS, SECRET, S3_URL)).err
