"""What the pages tell a user to run with Docker, runs: on engines of the tests, with a bucket of theirs."""

import os
import shlex
import shutil
import sys

import pytest

from pages import NEEDS_DOCKER, RUN_WITH_DOCKER, blocks, page_name, run_commands
from servers import free_ports

pytestmark = [pytest.mark.needs("docker", "seaweedfs"), pytest.mark.timeout(300)]

WITHIN_S = 200
REGISTRY_PAGE = "use-it-beside-a-registry.md"  # the only one that needs an image of a registry
ANOTHER_HOST = "tcp://web-2:2375"  # where a page says this, it needs a second engine
BUCKET = "s3://my-bucket"
APPLICATION = {"Dockerfile": 'FROM scratch\nCOPY base /base\nCOPY app.js /app.js\nCMD ["/base"]\n', "app.js": "1\n"}
REGISTRY = {
    "Dockerfile": 'FROM debian\nCOPY . /r/\nENTRYPOINT ["/r/docker-registry", "serve", "/r/config"]\n',
    "config": '{"version": "0.1", "storage": {"filesystem": {"rootdirectory": "/data"}}, "http": {"addr": ":5000"}}',
}


@pytest.fixture
def engine(docker_engine, holdfast_image, base_image):
    """The engine of the pages, with the images that they take for granted; what they made is gone after the test."""
    for image, name in ((holdfast_image, "holdfast"), (base_image, "debian")):
        docker_engine.docker("tag", image, name)
    before = _made(docker_engine)
    yield docker_engine
    _remove(docker_engine, before)


@pytest.fixture
def another(two_engines):
    """A second host's engine."""
    engine = two_engines[0]
    before = _made(engine)
    yield engine
    _remove(engine, before)


@pytest.fixture
def registry_image(engine, program, tmp_path):
    """The image registry:2, out of Debian's package; settings are given to it as variables."""
    context = tmp_path / "registry"
    context.mkdir()
    shutil.copy(program("docker-registry"), context / "docker-registry")
    for name, text in REGISTRY.items():
        (context / name).write_text(text)
    engine.build(context, "registry:2")


def _made(engine):
    return {
        "container": set(engine.docker("ps", "--all", "--quiet", "--no-trunc").split()),
        "volume": set(engine.docker("volume", "ls", "--quiet").split()),
        "image": set(engine.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()),
    }


def _remove(engine, before):
    for kind, names in _made(engine).items():
        if new := names - before[kind]:
            engine.docker(kind, "rm", "--force", *new)


def test_there_are_pages_to_run_with_docker():
    assert {page_name(page) for page in NEEDS_DOCKER} >= {
        "docs/howto/migrate-a-volume.md",
        "docs/howto/ship-an-image-through-s3.md",
        "docs/howto/deploy-to-a-fleet.md",
    }


@pytest.mark.parametrize("page", NEEDS_DOCKER, ids=page_name)
def test_the_docker_commands_of_a_page_run(page, engine, s3_bucket, request, tmp_path):
    script = "\n".join(blocks(page, RUN_WITH_DOCKER))
    hosts = {"tcp://web-1:2375": engine.host}
    if ANOTHER_HOST in script:
        hosts[ANOTHER_HOST] = request.getfixturevalue("another").host
    if page.name == REGISTRY_PAGE:
        request.getfixturevalue("registry_image")
    nobody, face, registry = (f"127.0.0.1:{port}" for port in free_ports(3))
    for named, real in {
        **hosts,
        "tcp://web-3:2375": f"tcp://{nobody}",
        "127.0.0.1:22375": face,
        "127.0.0.1:5000": registry,
        BUCKET: f"s3://{s3_bucket.name}",
    }.items():
        script = script.replace(named, real)

    env = {
        **os.environ,
        "PATH": f"{_commands(tmp_path, engine)}:{os.environ.get('PATH', os.defpath)}",
        "DOCKER_HOST": engine.host,
        "DOCKER_BUILDKIT": "0",  # the classic builder, which every engine has
        "AWS_ENDPOINT_URL_S3": s3_bucket.endpoint,
    }
    code, output = run_commands(script, _folder(tmp_path, s3_bucket, registry), env, WITHIN_S)

    assert code == 0, output
    assert "Traceback" not in output


def _folder(tmp_path, bucket, registry):
    """A folder with the files that the pages speak of: settings of containers, and an application to build."""
    work = tmp_path / "work"
    work.mkdir()
    settings = {**bucket.env, "HOLDFAST_STORE": bucket.url}
    (work / "holdfast.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    storage = {
        "": "s3",
        "_S3_BUCKET": bucket.name,
        "_S3_REGION": bucket.seaweedfs.region,
        "_S3_REGIONENDPOINT": bucket.endpoint,
        "_S3_ROOTDIRECTORY": "/images",
        "_S3_ACCESSKEY": bucket.access_key,
        "_S3_SECRETKEY": bucket.secret_key,
        "_S3_SECURE": "false",
    }
    (work / "registry.env").write_text(
        "".join(f"REGISTRY_STORAGE{name}={value}\n" for name, value in storage.items())
        + f"REGISTRY_HTTP_ADDR={registry}\n"
    )
    for name, text in APPLICATION.items():
        (work / name).write_text(text)
    (work / "base").write_bytes(os.urandom(1 << 20))
    return work


def _commands(tmp_path, engine):
    """A folder with the commands docker and holdfast, as the pages use them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    docker = shlex.join(engine.command[: engine.command.index("--host")])
    # This engine has no networks but the machine's own.
    scripts = {
        "docker": f'if [ "$1" = run ]; then shift; set -- run --network host "$@"; fi\nexec {docker} "$@"\n',
        "holdfast": f'exec {shlex.quote(sys.executable)} -m holdfast "$@"\n',
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}")
        (folder / name).chmod(0o755)
    return folder
