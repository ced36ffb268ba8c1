"""Images on their way when something goes: the bucket, an engine, a disk, the bytes, or Holdfast itself."""

import random
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from engines import wait_until
from gate import Gate
from holdfast.storage.backends.objects import RETRIES
from images import random_bytes
from shipping import MIB, Ship, blob_key, ended, files, id_in, layer, layers_in, load

pytestmark = [
    pytest.mark.needs("docker", "seaweedfs"),
    # A command leaves its connections to its end, which these commands, being run in this process, do not have.
    pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def make_gate():
    """make_gate(address): a gate in front of what listens at this URL."""
    made = []

    def make(address):
        made.append(Gate(urlsplit(address).port))
        return made[-1]

    yield make
    for gate in made:
        gate.stop()


@pytest.fixture
def bucket_gate(make_gate, seaweedfs):
    return make_gate(seaweedfs.endpoint)


@pytest.fixture
def gated(s3_bucket, bucket_gate):
    """The same bucket, by way of the gate."""
    return Ship(f"s3://{s3_bucket.name}?endpoint=http://127.0.0.1:{bucket_gate.port}&region=us-east-1")


@pytest.fixture(scope="module")
def listening_engine(make_engine):
    """An engine that can be reached through a gate."""
    engine = make_engine(listen="tcp")
    yield engine
    engine.stop()


@pytest.fixture
def background():
    """background(call, …): its future."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def _layers(image, size=8 * MIB):
    """Two layers that do not compress, and that no other test has."""
    return [layer(a=random_bytes(size, image)), layer(b=random_bytes(MIB, f"{image}b"))]


def _listening(gate):
    return f"tcp://127.0.0.1:{gate.port}"


# The bucket


@pytest.fixture
def few_retries(monkeypatch):
    """Give a bucket up sooner than a user would."""
    monkeypatch.setitem(RETRIES, "max_retries", 1)


@pytest.mark.parametrize("how_many", [1, 2])
def test_a_bucket_that_dies_in_a_pull_leaves_the_old_tag(
    docker_engine, two_engines, ship, gated, bucket_gate, image, few_retries, background, how_many
):
    hosts = [engine.host for engine in two_engines[:how_many]]
    load(docker_engine, image, [layer(a=b"first")])
    ship.push(docker_engine, image)
    ship.pull_into(hosts, image)
    second = load(docker_engine, image, [layer(a=b"first"), *_layers(image)])
    ship.push(docker_engine, image)

    bucket_gate.close_after(5 * MIB)
    pulling = background(gated.pull_into, hosts, image, code=1)
    bucket_gate.wait_until_held()
    bucket_gate.cut()
    told = pulling.result()

    for error in [host["error"] for host in told["hosts"]] if how_many > 1 else [told["error"]]:
        assert gated.store.partition("?")[0] in error
    for engine in two_engines[:how_many]:
        assert files(engine, image) == {"a": b"first"}
        assert id_in(engine, second) is None
    ship.pull_into(hosts, image)
    for engine in two_engines[:how_many]:
        assert id_in(engine, image) == second


def test_a_bucket_that_dies_in_a_push_tags_nothing(
    docker_engine, two_engines, ship, gated, bucket_gate, image, few_retries, background
):
    there = load(docker_engine, image, _layers(image))

    bucket_gate.close_after(5 * MIB, "in")
    pushing = background(gated.push, docker_engine, image, code=1)
    bucket_gate.wait_until_held()
    bucket_gate.cut()

    assert gated.store.partition("?")[0] in pushing.result()["error"]
    assert ship.list() == []
    ship.push(docker_engine, image)
    assert ship.pull(two_engines[0], image)["image_id"] == there


def test_an_altered_layer_is_refused_and_named(docker_engine, every_kind, s3_bucket, ship, image):
    load(docker_engine, image, _layers(image, 5 * MIB))
    pushed = ship.push(docker_engine, image)
    blob = layers_in(s3_bucket, pushed["digest"])[0]
    key = blob_key(s3_bucket, blob["digest"])
    true = s3_bucket.client.get_object(Bucket=s3_bucket.name, Key=key)["Body"].read()
    altered = bytearray(true)
    altered[len(true) // 2] ^= 1
    s3_bucket.client.put_object(Bucket=s3_bucket.name, Key=key, Body=bytes(altered))

    alone = [ship.pull(engine, image, code=5) for engine in every_kind]
    together = ship.pull_into([engine.host for engine in every_kind], image, code=5)

    for told in (*alone, *together["hosts"]):
        assert blob["digest"] in told["error"]
    for engine in every_kind:
        assert id_in(engine, image) is None
    s3_bucket.client.put_object(Bucket=s3_bucket.name, Key=key, Body=true)
    assert ship.pull_into([engine.host for engine in every_kind], image)["complete"]
    for engine in every_kind:
        assert files(engine, image) == files(docker_engine, image)


def test_a_layer_that_is_gone_or_cut_short_is_named(docker_engine, two_engines, s3_bucket, ship, image):
    load(docker_engine, image, _layers(image, MIB))
    first, second = layers_in(s3_bucket, ship.push(docker_engine, image)["digest"])
    s3_bucket.client.delete_object(Bucket=s3_bucket.name, Key=blob_key(s3_bucket, first["digest"]))

    assert first["digest"] in ship.pull(two_engines[0], image, code=5)["error"]

    assert ship.push(docker_engine, image)["layers_sent"] == 1  # what is gone is sent again
    s3_bucket.client.put_object(Bucket=s3_bucket.name, Key=blob_key(s3_bucket, second["digest"]), Body=b"short")
    assert second["digest"] in ship.pull(two_engines[0], image, code=5)["error"]
    assert id_in(two_engines[0], image) is None
    assert ship.push(docker_engine, image)["layers_sent"] == 1
    assert ship.pull(two_engines[0], image)["complete"]


# Engines


def test_an_engine_that_is_killed_in_its_load_does_not_hurt_the_others(
    make_engine, make_gate, docker_engine, two_engines, ship, image
):
    engine = make_engine(listen="tcp")
    gate = make_gate(engine.tcp)
    there = load(docker_engine, image, _layers(image))
    ship.push(docker_engine, image)

    pulling = ship.start("pull", image, "--json", "--pullhosts", f"{_listening(gate)},{two_engines[0].host}")
    gate.close_after(4 * MIB, "in")
    gate.wait_until_held()
    engine.kill()
    gate.cut()
    code, told, _ = ended(pulling)

    assert code == 3
    assert [host["state"] for host in told["hosts"]] == ["failed", "pulled"]
    assert _listening(gate) in told["hosts"][0]["error"]
    assert id_in(two_engines[0], image) == there


def test_an_engine_that_freezes_holds_up_no_other(
    listening_engine, make_gate, docker_engine, two_engines, ship, image, background
):
    gate = make_gate(listening_engine.tcp)
    there = load(docker_engine, image, _layers(image))
    ship.push(docker_engine, image)
    hosts = [_listening(gate), two_engines[0].host]
    gate.close_after(4 * MIB, "in")

    pulling = background(ship.pull_into, hosts, image, code=3)
    gate.wait_until_held()
    wait_until(lambda: id_in(two_engines[0], image) == there, "the other has it")  # while nothing passes to the first
    assert not pulling.done()
    gate.cut()
    told = pulling.result()

    assert [host["state"] for host in told["hosts"]] == ["failed", "pulled"]
    assert told["hosts"][1]["seconds"] < told["hosts"][0]["seconds"]
    assert id_in(listening_engine, image) is None
    assert ship.pull(listening_engine, image)["image_id"] == there


def test_an_engine_that_does_not_answer_at_all_holds_up_no_other(
    listening_engine, docker_engine, two_engines, ship, image, background, monkeypatch
):
    monkeypatch.setattr("holdfast.images.fleet._PATIENCE_S", 1)
    there = load(docker_engine, image, [layer(a=image.encode())])
    ship.push(docker_engine, image)

    with listening_engine.frozen():
        pulling = background(ship.pull_into, [listening_engine.tcp, two_engines[0].host], image)
        wait_until(lambda: id_in(two_engines[0], image) == there, "the other has it")
        assert not pulling.done()

    assert [host["state"] for host in pulling.result()["hosts"]] == ["pulled", "pulled"]
    assert id_in(listening_engine, image) == there


@pytest.mark.parametrize(("kind", "store"), [("docker", "classic"), ("docker28", "containerd")])
def test_an_engine_with_a_full_disk_says_so_and_the_others_have_it(
    make_engine, docker_engine, two_engines, ship, image, kind, store
):
    engine = make_engine(kind, store=store, data_mib=16)
    load(engine, image, [layer(a=b"old")])
    there = load(docker_engine, image, _layers(image, 20 * MIB))
    ship.push(docker_engine, image)

    told = ship.pull_into([engine.host, two_engines[0].host], image, code=3)

    assert [host["state"] for host in told["hosts"]] == ["failed", "pulled"]
    assert "no space left on device" in told["hosts"][0]["error"]
    assert id_in(two_engines[0], image) == there
    assert files(engine, image) == {"a": b"old"}
    engine.stop()


def test_a_save_that_breaks_off_tags_nothing(listening_engine, make_gate, two_engines, ship, image):
    gate = make_gate(listening_engine.tcp)
    there = load(listening_engine, image, _layers(image))
    gate.cut_after(4 * MIB)

    told = ship.push(listening_engine, image, code=1, DOCKER_HOST=_listening(gate))

    assert _listening(gate) in told["error"]
    assert ship.list() == []
    ship.push(listening_engine, image)
    assert ship.pull(two_engines[0], image)["image_id"] == there


def test_two_pull_into_one_engine_at_once(docker_engine, two_engines, ship, image):
    there = load(docker_engine, image, _layers(image))
    ship.push(docker_engine, image)

    pulling = [ship.start("pull", image, "--json", **two_engines[0].env) for _ in range(2)]

    assert [ended(process)[0] for process in pulling] == [0, 0]
    assert id_in(two_engines[0], image) == there
    assert files(two_engines[0], image) == files(docker_engine, image)


# Holdfast itself


def test_pushes_killed_at_any_moment(docker_engine, two_engines, ship, gated, bucket_gate, image, tmp_path):
    there = load(docker_engine, image, _layers(image))
    moments = random.Random(7)

    for most in (2_000, 30_000, 9 * MIB):
        bucket_gate.close_after(moments.randrange(most), "in")
        pushing = gated.start("push", image, "--tempdir", str(tmp_path), **docker_engine.env)
        bucket_gate.wait_until_held()
        pushing.kill()
        bucket_gate.open()
        assert pushing.wait() == -signal.SIGKILL
        pushing.communicate()
        assert ship.list() in ([], [f"{image}:latest"])
        if ship.list():
            assert ship.pull(two_engines[0], image)["image_id"] == there
        assert list(tmp_path.iterdir()) == []

    ship.push(docker_engine, image, "--tempdir", str(tmp_path))
    assert ship.pull(two_engines[0], image)["image_id"] == there
    assert files(two_engines[0], image) == files(docker_engine, image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how_many", [1, 3])
def test_pulls_killed_at_any_moment(docker_engine, every_kind, ship, gated, bucket_gate, image, tmp_path, how_many):
    hosts = every_kind[-how_many:]
    load(docker_engine, image, [layer(a=b"old")])
    ship.push(docker_engine, image)
    ship.pull_into([host.host for host in hosts], image)
    load(docker_engine, image, _layers(image))
    ship.push(docker_engine, image)
    expected = files(docker_engine, image)
    moments = random.Random(8)
    names = ",".join(host.host for host in hosts)

    for least in (0, MIB, 8 * MIB):
        bucket_gate.close_after(moments.randrange(least, least + MIB // 2))
        pulling = gated.start("pull", image, "--pullhosts", names, "--tempdir", str(tmp_path))
        bucket_gate.wait_until_held()
        pulling.kill()
        bucket_gate.open()
        assert pulling.wait() == -signal.SIGKILL
        pulling.communicate()
        for host in hosts:
            assert files(host, image) in ({"a": b"old"}, expected)
        assert list(tmp_path.iterdir()) == []

    assert ship.pull_into([host.host for host in hosts], image)["complete"]
    for host in hosts:
        assert files(host, image) == expected


# The place where layers rest


@pytest.fixture
def small_disk(tmp_path):
    """A directory with room for 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_place_without_room_is_named(docker_engine, two_engines, ship, image, small_disk):
    there = load(docker_engine, image, _layers(image))
    hosts = [engine.host for engine in two_engines]

    pushed = ship.push(docker_engine, image, "--tempdir", str(small_disk), code=1)
    assert ship.list() == []
    ship.push(docker_engine, image)
    pulled = ship.pull_into(hosts, image, "--tempdir", str(small_disk), code=1)

    assert str(small_disk) in pushed["error"]
    for told in (pushed, pulled):
        assert "--tempdir" in told["hint"]
    for host in pulled["hosts"]:
        assert str(small_disk) in host["error"]
    assert [id_in(engine, image) for engine in two_engines] == [None, None]
    assert list(small_disk.iterdir()) == []
    assert ship.pull(two_engines[0], image, "--tempdir", str(small_disk))["image_id"] == there  # one needs no room
