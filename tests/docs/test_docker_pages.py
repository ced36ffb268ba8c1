"""What the pages tell a user to run with Docker, runs: on the engine of the tests, with a bucket of theirs."""

import os
import shlex
import subprocess

import pytest

from pages import NEEDS_DOCKER, RUN_WITH_DOCKER, blocks, page_name

pytestmark = [pytest.mark.needs("docker", "seaweedfs"), pytest.mark.timeout(300)]

WITHIN_S = 200


@pytest.fixture
def docker_command(docker_engine, holdfast_image, base_image, tmp_path):
    """A folder with the command docker, as the pages use it; what it made is gone after the test."""
    for image, name in ((holdfast_image, "holdfast"), (base_image, "debian")):
        docker_engine.docker("tag", image, name)
    folder = tmp_path / "bin"
    folder.mkdir()
    docker = shlex.join(docker_engine.command)
    # This engine has no networks but the machine's own.
    (folder / "docker").write_text(
        f'#!/bin/sh\nif [ "$1" = run ]; then shift; set -- run --network host "$@"; fi\nexec {docker} "$@"\n'
    )
    (folder / "docker").chmod(0o755)
    before = _made(docker_engine)
    yield folder
    for kind, names in _made(docker_engine).items():
        if new := names - before[kind]:
            docker_engine.docker(kind, "rm", "--force", *new)


def _made(engine):
    return {
        "container": set(engine.docker("ps", "--all", "--quiet", "--no-trunc").split()),
        "volume": set(engine.docker("volume", "ls", "--quiet").split()),
    }


def test_there_are_pages_to_run_with_docker():
    assert {page_name(page) for page in NEEDS_DOCKER} >= {"docs/howto/migrate-a-volume.md"}


@pytest.mark.parametrize("page", NEEDS_DOCKER, ids=page_name)
def test_the_docker_commands_of_a_page_run(page, docker_command, s3_bucket, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    settings = {**s3_bucket.env, "HOLDFAST_STORE": s3_bucket.url}
    (work / "holdfast.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    ran = subprocess.run(
        ["sh", "-eu", "-c", "\n".join(blocks(page, RUN_WITH_DOCKER))],
        cwd=work,
        env={**os.environ, "PATH": f"{docker_command}:{os.environ.get('PATH', os.defpath)}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout
    assert "Traceback" not in ran.stdout
