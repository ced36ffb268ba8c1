"""The engine face with all that is real: `docker pull`, of each docker command there is, through it into an engine."""

import os
import shutil
import signal
import socket
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from commandline import Holdfast
from engines import wait_until
from gate import Gate
from images import build, random_bytes
from serving import Serving
from shipping import MIB, Ship, blob_key, id_in, layer, layers_in, load

pytestmark = [pytest.mark.needs("docker", "seaweedfs")]

HOST = "opsgoodies.com"
WRONG = {"AWS_ACCESS_KEY_ID": "wrong", "AWS_SECRET_ACCESS_KEY": "wrong-secret", "AWS_SESSION_TOKEN": "wrong-token"}


def _docker_commands():
    found = [shutil.which("docker", path=folder) for folder in os.get_exec_path()]
    return list({os.path.realpath(path): path for path in found if path}.values())


each_docker = pytest.mark.parametrize("docker", _docker_commands() or ["docker"], indirect=True)
"""For a test that is to run with every docker command of this machine."""


@pytest.fixture
def docker(request, tmp_path):
    """docker(server, "pull", …): a docker command, with a configuration of its own."""
    program = getattr(request, "param", "docker")

    def run(server, *arguments, code=0):
        done = subprocess.run(
            [program, "--config", tmp_path / "docker", "--host", f"tcp://127.0.0.1:{server.port}", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return run


@pytest.fixture
def login(tmp_path):
    """login(url, access, secret): as a user does it, for the docker command of this test."""

    def write(url, access, secret):
        Holdfast("file:///not-used").run(
            *("login", HOST, "--access-key", access, "--s3-url", url, "--secret-key-stdin"),
            env={"DOCKER_CONFIG": str(tmp_path / "docker")},
            input=secret.encode(),
        )

    return write


@pytest.fixture
def engine(two_engines):
    """The engine that the server pulls into."""
    return two_engines[0]


@pytest.fixture
def serve(tmp_path, engine):
    """serve(store, **environment): a server that pulls into the engine."""
    started = []

    def start(store, *arguments, **env):
        settings = {"HOLDFAST_STORE": store, "HOLDFAST_ENGINE_DOCKER": engine.host, **env}
        started.append(Serving(tmp_path, settings, *arguments, face="engine"))
        return started[-1]

    yield start
    for serving in started:
        serving.stop()


@pytest.fixture
def gate(seaweedfs):
    gate = Gate(urlsplit(seaweedfs.endpoint).port)
    yield gate
    gate.stop()


@pytest.fixture
def name():
    return f"docker-repo/test-{uuid.uuid4().hex}"


@pytest.fixture
def pushed(docker_engine, s3_bucket, name):
    """What a push of the image of that name tells: two layers, one of them of some size."""
    build(docker_engine, name, [{"srv/a": random_bytes(3 * MIB, name)}, {"srv/b": b"kelp"}])
    return Ship(s3_bucket.url).push(docker_engine, name)


@each_docker
def test_docker_pulls_from_the_servers_own_store(docker, serve, s3_bucket, engine, name, pushed):
    server = serve(s3_bucket.url)
    asked = f"{HOST}/{name}"

    told = docker(server, "pull", asked)
    assert id_in(engine, asked) == pushed["image_id"]
    assert f"Pulling from {name}" in told
    assert told.count("Pull complete") == 2
    assert f"Digest: {pushed['digest']}" in told
    assert f"Downloaded newer image for {asked}:latest" in told

    assert f"Image is up to date for {asked}:latest" in docker(server, "pull", asked)
    assert [line["state"] for line in server.logged() if line["event"] == "pull done"] == ["pulled", "up to date"]


def test_docker_pulls_by_tag_and_by_digest_and_without_a_host(docker, serve, s3_bucket, engine, docker_engine, name):
    build(docker_engine, f"{name}:1.2", [{"a": b"kelp"}])
    pushed = Ship(s3_bucket.url).push(docker_engine, f"{name}:1.2")
    server = serve(s3_bucket.url)

    docker(server, "pull", f"{name}:1.2")
    assert id_in(engine, f"{name}:1.2") == pushed["image_id"]
    engine.docker("rmi", f"{name}:1.2")
    assert pushed["digest"] in docker(server, "pull", f"{name}@{pushed['digest']}")
    assert engine.docker("image", "inspect", pushed["image_id"])

    told = docker(server, "pull", f"{name}:1.3", code=1)
    assert "1.3" in told


@each_docker
def test_an_image_that_is_nowhere_is_an_error_of_docker(docker, serve, s3_bucket, name):
    told = docker(serve(s3_bucket.url), "pull", f"{HOST}/{name}", code=1)

    assert "Error response from daemon" in told
    assert name in told


def test_a_registry_of_the_configuration(docker, serve, s3_bucket, engine, name, pushed, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"engine:\n  registries:\n    {HOST}: {s3_bucket.url}\n")
    server = serve(f"file://{tmp_path}/other", "--config", str(config))

    docker(server, "pull", f"{HOST}/{name}")
    assert id_in(engine, f"{HOST}/{name}") == pushed["image_id"]
    docker(server, "pull", f"other.example.com/{name}", code=1)


@each_docker
def test_a_client_brings_its_own_keys_and_the_server_has_wrong_ones(
    docker, serve, login, s3_bucket, engine, name, pushed, tmp_path
):
    server = serve(f"file://{tmp_path}/other", **WRONG, AWS_ENDPOINT_URL_S3=s3_bucket.endpoint)
    login(f"s3://{s3_bucket.name}?region=us-east-1", s3_bucket.access_key, s3_bucket.secret_key)

    docker(server, "pull", f"{HOST}/{name}")
    assert id_in(engine, f"{HOST}/{name}") == pushed["image_id"]
    assert s3_bucket.secret_key not in server.log.read_text()


def test_a_client_cannot_use_the_servers_keys(docker, serve, login, s3_bucket, name, pushed, tmp_path):
    server = serve(f"file://{tmp_path}/other", AWS_ENDPOINT_URL_S3=s3_bucket.endpoint)
    login(f"s3://{s3_bucket.name}", "wrong", "wrong-secret")

    told = docker(server, "pull", f"{HOST}/{name}", code=1)
    assert "Error response from daemon" in told
    assert "wrong-secret" not in told + server.log.read_text()


def test_a_client_makes_no_bucket(docker, serve, login, make_s3_bucket, name, tmp_path):
    missing = make_s3_bucket(create=False)
    server = serve(f"file://{tmp_path}/other", AWS_ENDPOINT_URL_S3=missing.endpoint)
    login(f"s3://{missing.name}", missing.access_key, missing.secret_key)

    docker(server, "pull", f"{HOST}/{name}", code=1)
    assert not missing.exists()


def test_a_client_cannot_have_the_server_call_an_address(docker, serve, login, s3_bucket, name):
    server = serve(s3_bucket.url)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        login(f"s3://{s3_bucket.name}?endpoint=http://127.0.0.1:{listening.getsockname()[1]}", "key", "secret")

        told = docker(server, "pull", f"{HOST}/{name}", code=1)
        assert "endpoint=" in told
        with pytest.raises(BlockingIOError):
            listening.accept()


@each_docker
def test_a_damaged_layer_is_an_error_of_docker(docker, serve, s3_bucket, engine, docker_engine, name):
    load(docker_engine, name, [layer(a=random_bytes(2 * MIB, name))])
    pushed = Ship(s3_bucket.url).push(docker_engine, name)
    (described,) = layers_in(s3_bucket, pushed["digest"])
    damaged = random_bytes(described["size"], "other")
    s3_bucket.client.put_object(Bucket=s3_bucket.name, Key=blob_key(s3_bucket, described["digest"]), Body=damaged)

    told = docker(serve(s3_bucket.url), "pull", name, code=1)
    assert described["digest"] in told
    assert "Done" not in told
    assert id_in(engine, name) is None


@each_docker
def test_a_token_goes_with_dockers_own_headers(docker, serve, s3_bucket, engine, name, pushed, tmp_path):
    server = serve(s3_bucket.url, HOLDFAST_ENGINE_TOKEN="kelp-and-rock")
    assert "token" in docker(server, "pull", name, code=1)
    assert id_in(engine, name) is None

    (tmp_path / "docker").mkdir(exist_ok=True)
    Path(tmp_path, "docker/config.json").write_text('{"HttpHeaders": {"Authorization": "Bearer kelp-and-rock"}}')
    docker(server, "pull", name)
    assert id_in(engine, name) == pushed["image_id"]


def test_a_client_of_dogestry_gets_what_it_waits_for(serve, s3_bucket, engine, name, pushed):
    server = serve(s3_bucket.url)
    assert server.ask("GET", "/status/check").body == b"OK"

    answer = server.ask("POST", f"/1.19/images/create?fromImage={HOST}/{name}:latest")
    assert answer.lines[-1] == {"status": "Done"}
    assert id_in(engine, f"{HOST}/{name}") == pushed["image_id"]


def test_an_engine_that_does_not_answer(docker, serve, s3_bucket, name, pushed, tmp_path):
    server = serve(s3_bucket.url, HOLDFAST_ENGINE_DOCKER=f"unix://{tmp_path}/nothing.sock")

    assert "nothing.sock" in docker(server, "pull", name, code=1)


def test_a_platform_that_is_not_the_engines(docker, serve, s3_bucket, engine, name, pushed):
    server = serve(s3_bucket.url)

    assert "arm64" in docker(server, "pull", "--platform", "linux/arm64", name, code=1)
    docker(server, "pull", "--platform", "linux/amd64", name)
    assert id_in(engine, name) == pushed["image_id"]


def test_a_pull_under_way_ends_well_when_the_server_is_told_to_stop(serve, s3_bucket, gate, engine, name, pushed):
    server = serve(f"s3://{s3_bucket.name}?endpoint=http://127.0.0.1:{gate.port}&region=us-east-1")
    gate.close_after(MIB)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.ask, "POST", f"/v1.41/images/create?fromImage={name}")
        gate.wait_until_held()
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: any(line["event"] == "stopping" for line in server.logged()), "the server stops")
        gate.open()

        assert asked.result().lines[-1] == {"status": "Done"}
    assert server.wait() == 0
    assert id_in(engine, name) == pushed["image_id"]


def test_both_faces_in_one_process(serve, s3_bucket, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"persist:\n  listen: '0'\n  roots: [{tmp_path}]\n")
    server = serve(s3_bucket.url, "--config", str(config))

    (listening,) = [line for line in server.logged() if line["event"] == "listening" and line["face"] == "persist"]
    assert listening["address"].startswith("127.0.0.1:")
    metrics = server.ask("GET", "/-/metrics").body
    assert b"holdfast_jobs_running" in metrics
    assert b"holdfast_pulls_running" in metrics
    assert server.end() == 0
