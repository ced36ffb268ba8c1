"""The engines that other tests rely on are what they claim to be."""

import os
import subprocess
from pathlib import Path

import pytest

from engines import CommandError
from images import build, diff_ids, random_bytes, text_bytes

MIB = 1 << 20

pytestmark = pytest.mark.needs("docker")


def _version(engine):
    return tuple(map(int, engine.docker("info", "--format", "{{.ServerVersion}}").partition("+")[0].split(".")))


def _client(home, env):
    """What a docker command answers that is led by these variables alone."""
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    env = {"PATH": os.environ["PATH"], "HOME": str(home), **env}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)


def test_two_engines_are_two_hosts(two_engines, image):
    one, other = two_engines

    build(one, image, [{"kelp": b"green"}])

    assert one.docker("image", "ls", "--quiet", image)
    assert not other.docker("image", "ls", "--quiet", image)


def test_an_image_goes_from_each_engine_to_one_of_another_host(each_engine, two_engines, image, tmp_path):
    layers = [{"a/b": random_bytes(MIB, 1)}, {"a/c": b"rock"}]
    build(each_engine, image, layers, instructions=["ENV TIDE=low", 'CMD ["/a/c"]'])

    each_engine.docker("save", "--output", tmp_path / "image.tar", image)
    two_engines[0].docker("load", "--input", tmp_path / "image.tar")

    told = two_engines[0].docker("image", "inspect", "--format", "{{.Config.Env}} {{.Config.Cmd}}", image)
    assert told.strip().endswith("TIDE=low] [/a/c]")
    assert diff_ids(two_engines[0], image) == diff_ids(each_engine, image)


def test_equal_files_are_equal_layers_on_every_engine_of_a_release(two_engines, image):
    layers = [{"a/b": b"green", "c": b""}, {"a/d/e": text_bytes(MIB)}]

    for engine in two_engines:
        build(engine, image, layers)

    one, other = (diff_ids(engine, image) for engine in two_engines)
    assert one == other
    assert len(set(one)) == 2


def test_an_image_is_built_on_another(each_engine, image):
    below = build(each_engine, image, [{"a": b"1"}, {"b": b"2"}])

    above = build(each_engine, f"{image}:next", [{"c": b"3"}], base=image, instructions=["LABEL tide=high"])

    assert above != below
    assert diff_ids(each_engine, f"{image}:next")[:-1] == diff_ids(each_engine, image)


def test_an_image_that_cannot_be_built_says_why(docker_engine, image):
    with pytest.raises(CommandError, match="unknown instruction: SINK"):
        build(docker_engine, image, [], instructions=["SINK"])


def test_removed_images_are_gone(make_engine, image):
    engine = make_engine()
    build(engine, image, [{"a": b"1"}, {"b": b"2"}])

    engine.remove_images()

    assert not engine.docker("image", "ls", "--all", "--quiet")
    engine.stop()


def test_an_engine_listens_on_a_port(make_engine, tmp_path):
    engine = make_engine(listen="tcp")

    assert engine.env == {"DOCKER_HOST": engine.tcp}
    assert _client(tmp_path, engine.env).stdout
    engine.stop()


def test_an_engine_with_tls_answers_certified_clients_only(make_engine, tmp_path):
    engine, another = make_engine(listen="tls"), make_engine(listen="tls")
    strange = str(another.certificates.client)

    assert engine.env.keys() == {"DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"}
    assert _client(tmp_path, engine.env).stdout
    assert "certificate" in _client(tmp_path, engine.env | {"DOCKER_CERT_PATH": strange}).stderr
    assert "HTTPS" in _client(tmp_path, {"DOCKER_HOST": engine.tcp}).stderr
    engine.stop()
    another.stop()


@pytest.mark.parametrize(
    ("kind", "store"), [("docker", "classic"), ("docker28", "classic"), ("docker28", "containerd")]
)
def test_a_small_disk_is_soon_full(kind, store, make_engine, two_engines, image, tmp_path):
    engine = make_engine(kind, store=store, data_mib=16)
    build(two_engines[0], image, [{"big": random_bytes(20 * MIB)}])
    two_engines[0].docker("save", "--output", tmp_path / "big.tar", image)

    build(engine, "small", [{"a": random_bytes(MIB)}])
    failed = engine.try_docker("load", "--input", tmp_path / "big.tar")

    assert "no space left on device" in failed.stderr
    assert engine.docker("image", "ls", "--format", "{{.Repository}}").split() == ["small"]
    engine.stop()


def test_a_killed_engine_is_gone_with_all_it_started(make_engine):
    engine = make_engine()
    processes = _processes(engine)
    assert {"dockerd", "containerd"} <= processes.keys()

    engine.kill()

    assert not any(Path(f"/proc/{pid}").exists() for pid in processes.values())
    assert "Cannot connect" in engine.try_docker("version").stderr
    engine.stop()


def test_a_frozen_engine_answers_once_it_is_thawed(make_engine):
    engine = make_engine()

    with engine.frozen():
        asking = subprocess.Popen([*engine.command, "info"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            asking.wait(timeout=0.5)

    assert b"Server Version" in asking.communicate(timeout=30)[0]
    engine.stop()


def test_a_stopped_engine_leaves_no_mount(make_engine, image):
    engine = make_engine()
    build(engine, image, [{"a": b"1"}])

    engine.stop()

    home = engine.host.removeprefix("unix://").removesuffix("/sock")
    assert home not in Path("/proc/self/mounts").read_text()
    assert not list(Path(home, "state").iterdir())


def test_docker_28_is_in_a_tree_that_stays_as_it_is(make_engine, program, image):
    tree = program("docker28").parents[2]
    before = sorted(tree.rglob("*"))
    engine = make_engine("docker28")

    build(engine, image, [{"a": b"1"}])
    engine.stop()

    assert sorted(tree.rglob("*")) == before


@pytest.mark.needs("docker28")
def test_docker_28_keeps_its_images_in_both_ways(engine_28, engine_28_containerd, docker_engine):
    driver_type = ["info", "--format", "{{.DriverStatus}}"]

    assert _version(docker_engine) < (28,) <= _version(engine_28)
    assert "io.containerd.snapshotter" in engine_28_containerd.docker(*driver_type)
    assert "io.containerd.snapshotter" not in engine_28.docker(*driver_type)
    assert "containerd image store" in engine_28_containerd.release


def _processes(engine):
    """Name -> id of those below the engine's first."""
    found, parents = {}, {engine.server.pid}
    while parents:
        listed = subprocess.run(
            ["ps", "-o", "pid=,comm=", "--ppid", ",".join(map(str, parents))],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        children = [line.split() for line in listed.splitlines()]
        found |= {name: int(pid) for pid, name in children}
        parents = {int(pid) for pid, _ in children}
    return found
