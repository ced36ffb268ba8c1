"""The example of deploy/compose: it agrees with the image and the settings, and all of it runs."""

import os
import re
import shutil
import subprocess

import pytest
import yaml

from engines import ROOT, wait_until
from holdfast.config import read_configuration

EXAMPLE = ROOT / "deploy" / "compose"
COMPOSE = EXAMPLE / "compose.yaml"
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z0-9_]+)(?::-([^}]*)|:\?[^}]*)?\}")
SERVICE_KEYS = {
    *("build", "command", "depends_on", "entrypoint", "environment", "hostname", "image", "init", "restart"),
    *("stop_grace_period", "volumes"),
}
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load(COMPOSE.read_text())["services"]


def _example():
    lines = (line for line in (EXAMPLE / ".env.example").read_text().splitlines() if line and line[0] != "#")
    return dict(line.split("=", 1) for line in lines)


def _filled_in(environment):
    """What compose makes of a service's environment with .env.example as .env."""
    return {name: VARIABLE.sub(lambda found: _example()[found[1]], value) for name, value in environment.items()}


def _of_the_image(name):
    """What the Dockerfile sets a variable to."""
    return re.search(rf"^(?:ENV)? +{name}=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]


def test_every_variable_stands_in_the_example_with_its_default():
    used = dict(VARIABLE.findall(COMPOSE.read_text()))
    example = _example()

    assert used.keys() == example.keys()
    assert {name: default or example[name] for name, default in used.items()} == example


def test_compose_knows_every_key_and_every_name(services):
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]

    for service in services.values():
        assert service.keys() <= SERVICE_KEYS
        assert set(service.get("depends_on", ())) <= services.keys()
        assert {mount.split(":")[0] for mount in service.get("volumes", ())} <= volumes.keys()


def test_the_settings_are_those_that_holdfast_knows(services):
    settings = read_configuration(None, _filled_in(services["holdfast"]["environment"]))

    assert str(settings.store) == "s3://volumes"
    assert settings.persist.token is not None
    assert settings.persist.verbs == "get-saves"


def test_ports_and_paths_are_those_of_the_image(services):
    environment = {"HOLDFAST_PERSIST_LISTEN": _of_the_image("HOLDFAST_PERSIST_LISTEN")}
    mounts = dict(mount.split(":") for mount in services["holdfast"]["volumes"])

    assert read_configuration(None, environment).persist.listen.port == 80  # what http:// means, without a number
    assert "http://holdfast/var/www" in services["save"]["command"][0]
    assert mounts["www"] == dict(mount.split(":") for mount in services["web"]["volumes"])["www"] == "/var/www"
    assert "restore /var/www --if-empty" in services["restore"]["command"][0]
    assert mounts["cache"] == f"{_of_the_image('XDG_CACHE_HOME')}/holdfast"
    assert f":{services['bucket']['command'].rpartition('-s3.port=')[2]}" in _example()["AWS_ENDPOINT_URL_S3"]


@pytest.fixture
def weed_image(docker_engine, base_image, program, tmp_path):
    """SeaweedFS's own image, as far as the example needs it."""
    shutil.copy(program("seaweedfs"), tmp_path / "weed")
    (tmp_path / "Dockerfile").write_text(f'FROM {base_image}\nCOPY weed /usr/bin/\nENTRYPOINT ["weed"]\n')
    docker_engine.build(tmp_path, "holdfast-test-weed")
    return "holdfast-test-weed"


@pytest.fixture
def compose(docker_engine, base_image, holdfast_image, weed_image, program, tmp_path):
    """compose(*arguments): docker-compose on the example, with images of the tests' own."""
    own = tmp_path / "own.yaml"
    web = {"command": "python3 -m http.server --directory /var/www 80"}  # for want of busybox
    own.write_text(yaml.safe_dump({"services": {"web": web, "holdfast": {"healthcheck": {"interval": "1s"}}}}))
    settings = {
        "DOCKER_HOST": docker_engine.host,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests-secret",
        "HOLDFAST_PERSIST_TOKEN": TOKEN,
        "SAVE_EVERY": "1s",
        "HOLDFAST_IMAGE": holdfast_image,
        "WEB_IMAGE": base_image,
        "CURL_IMAGE": base_image,
        "SEAWEEDFS_IMAGE": weed_image,
    }
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **settings}
    command = [program("docker-compose"), "--file", COMPOSE, "--file", own, "--project-name", "holdfast-test"]

    def run(*arguments, code=0):
        done = subprocess.run(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            timeout=200,
            check=False,
        )
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        return done

    yield run
    run("down", "--volumes", "--timeout", "0")


@pytest.mark.needs("docker", "docker-compose", "seaweedfs")
@pytest.mark.timeout(400)
def test_the_example_saves_by_itself_and_restores_into_a_new_volume(compose, docker_engine):
    def logged():
        return compose("logs", "--no-color").stdout

    up = compose("up", "--detach", "--no-build", code=None)
    assert up.returncode == 0, up.stderr + logged()
    compose("exec", "-T", "web", "sh", "-c", "echo hello > /var/www/index.html; chown 33:34 /var/www/index.html")

    def is_saved():
        return compose("exec", "-T", "holdfast", "holdfast", "ls", "/var/www", "index.html", code=None).returncode == 0

    try:
        wait_until(is_saved, "a save by the cron job")
    except AssertionError as error:
        raise AssertionError(logged()) from error
    compose("rm", "--stop", "--force", "web", "holdfast", "save", "restore")
    docker_engine.docker("volume", "rm", "holdfast-test_www")
    compose("up", "--detach", "--no-build")

    assert compose("exec", "-T", "save", "curl", "--silent", "http://web/").stdout == "hello\n"
    assert compose("exec", "-T", "web", "stat", "-c", "%u:%g", "/var/www/index.html").stdout == "33:34\n"
    assert compose("exec", "-T", "save", "curl", "--silent", "http://holdfast/var/www").stdout.count("error") == 1
    assert TOKEN not in logged()
