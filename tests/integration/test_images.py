"""Images out of real engines into a real object store, and into engines again."""

import fcntl
import os
from urllib.parse import urlsplit

import pytest

from certificates import Certificates
from commandline import Holdfast
from dogestry_rig import push_old, tar_of
from gate import Gate
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from images import build, diff_ids, random_bytes
from servers import free_ports
from serving import Serving
from shipping import (
    MIB,
    Ship,
    ended,
    files,
    id_in,
    import_program,
    keeps_blobs,
    layer,
    layers_in,
    load,
)

pytestmark = [
    pytest.mark.needs("docker", "seaweedfs"),
    # A command leaves its connections to its end, which these commands, being run in this process, do not have.
    pytest.mark.filterwarnings("ignore:.*socket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=["docker_engine", "engine_28_containerd"])
def each_way(request):
    """An engine for each of the two ways to keep images."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def gate(seaweedfs):
    gate = Gate(urlsplit(seaweedfs.endpoint).port)
    yield gate
    gate.stop()


@pytest.fixture(scope="module")
def listening_engine(make_engine):
    """An engine that is reached by TCP."""
    engine = make_engine(listen="tcp")
    yield engine
    engine.stop()


def _through(bucket, gate):
    """The URL of a bucket that is reached through the gate."""
    return f"s3://{bucket.name}?endpoint=http://127.0.0.1:{gate.port}&region=us-east-1"


# From each kind of engine into each


def test_an_image_comes_from_each_kind_of_engine_into_each(each_engine, every_kind, ship, s3_bucket, image):
    name = f"team/{image}:1.0"
    import_program(each_engine, f"{image}-base")
    below = [{"srv/a": random_bytes(5 * MIB, image), "srv/b": b"kelp"}, {"srv/deep/er/c": b"rock"}]
    there = build(each_engine, name, below, base=f"{image}-base", instructions=["ENV TIDE=low", 'CMD ["/srv/b"]'])
    expected, layers = files(each_engine, name), diff_ids(each_engine, name)

    pushed = ship.push(each_engine, name)

    assert pushed["names"] == [name]
    assert pushed["image_id"] == there
    assert pushed["layers_sent"] == 3
    assert pushed["bytes_sent"] >= 5 * MIB
    assert ship.list() == [name]
    each_engine.remove_images()
    for engine in dict.fromkeys([*every_kind, each_engine]):
        pulled = ship.pull(engine, name)
        assert pulled["hosts"][0]["state"] == "pulled"
        assert pulled["digest"] == pushed["digest"]
        assert pulled["image_id"] == id_in(engine, name)
        assert files(engine, name) == expected
        assert diff_ids(engine, name) == layers
        assert engine.docker("run", "--rm", "--network", "none", name) == "kelp"
        assert engine.docker("image", "inspect", "--format", "{{.Config.Env}}", name).rstrip().endswith("TIDE=low]")
        if keeps_blobs(engine):
            assert pulled["image_id"] == pushed["digest"]
        elif not keeps_blobs(each_engine):
            assert pulled["image_id"] == there
        if keeps_blobs(engine) == keeps_blobs(each_engine):
            assert pulled["image_id"] == there


def test_an_image_is_named_in_all_the_ways_that_docker_knows(each_way, every_kind, ship, image):
    there = load(each_way, f"{image}:1.0", [layer(a=image.encode())])
    there = id_in(each_way, f"{image}:1.0")
    each_way.docker("tag", there, f"{image}:latest")
    each_way.docker("tag", there, f"opsgoodies.com:5000/docker-repo/{image}:9")

    assert ship.push(each_way, image)["names"] == [f"{image}:latest"]
    assert ship.push(each_way, f"docker.io/library/{image}:1.0")["names"] == [f"{image}:1.0"]
    by_id = ship.push(each_way, there.removeprefix("sha256:")[:12])

    names = [f"opsgoodies.com:5000/docker-repo/{image}:9", f"{image}:1.0", f"{image}:latest"]
    assert sorted(by_id["names"]) == names
    assert sorted(ship.push(each_way, there)["names"]) == names
    assert sorted(ship.list()) == names
    engine = next(one for one in reversed(every_kind) if one is not each_way)
    for name in names:
        ship.pull(engine, name)
        assert id_in(engine, name)
    engine.docker("rmi", *names)
    digest = by_id["digest"]
    for text in (f"{image}@{digest}", digest, digest.removeprefix("sha256:")[:12]):
        pulled = ship.pull(engine, text)
        assert id_in(engine, pulled["image_id"]), text
        assert id_in(engine, image) is None
        engine.docker("rmi", pulled["image_id"])


def test_the_id_of_an_image_finds_it_in_the_store(docker_engine, two_engines, ship, image):
    there = load(docker_engine, image, [layer(a=image.encode())])
    ship.push(docker_engine, image)

    assert ship.pull(two_engines[0], there)["image_id"] == there
    two_engines[0].docker("rmi", there)
    assert ship.pull(two_engines[0], there.removeprefix("sha256:")[:10])["image_id"] == there


# Only what is missing travels


def test_what_was_pushed_is_not_read_again(each_way, ship, image):
    build(each_way, image, [{"a": random_bytes(5 * MIB, image)}, {"b": image.encode()}])
    first = ship.push(each_way, image)
    each_way.docker("tag", image, f"{image}:other")

    again, other = ship.push(each_way, image), ship.push(each_way, f"{image}:other")

    assert first["read_engine"]
    for later in (again, other):
        assert (later["read_engine"], later["bytes_sent"], later["layers_sent"]) == (False, 0, 0)
        assert later["layers_known"] == 2
        assert later["digest"] == first["digest"]
    assert sorted(ship.list()) == [f"{image}:latest", f"{image}:other"]


def test_an_update_sends_its_own_layer_alone(each_way, every_kind, ship, s3_bucket, image):
    build(each_way, image, [{"a": random_bytes(6 * MIB, image)}, {"b": b"below"}])
    ship.push(each_way, image)
    others = [engine for engine in every_kind if engine is not each_way]
    for engine in others:
        ship.pull(engine, image)
    build(each_way, f"{image}:next", [{"c": random_bytes(MIB, f"{image}next")}], base=image)

    pushed = ship.push(each_way, f"{image}:next")

    top = layers_in(s3_bucket, pushed["digest"])[-1]
    assert pushed["layers_sent"] == 1
    assert pushed["layers_known"] == 2
    assert top["size"] <= pushed["bytes_sent"] < 1.2 * MIB
    for engine in others:
        pulled = ship.pull(engine, f"{image}:next")
        (host,) = pulled["hosts"]
        assert host["layers"] == 1
        assert host["bytes_sent"] < 1.2 * MIB
        assert pulled["bytes_read"] == top["size"]
        assert files(engine, f"{image}:next") == files(each_way, f"{image}:next")
        again = ship.pull(engine, f"{image}:next")
        assert again["hosts"][0]["state"] == "up to date"
        assert (again["bytes_read"], again["hosts"][0]["bytes_sent"]) == (0, 0)


def test_a_tag_that_moved_moves_in_the_engines_too(docker_engine, every_kind, ship, image):
    load(docker_engine, image, [layer(a=b"first")])
    first = ship.push(docker_engine, image)
    for engine in every_kind:
        ship.pull(engine, image)
    load(docker_engine, image, [layer(a=b"first"), layer(a=b"second")])

    second = ship.push(docker_engine, image)

    assert first["digest"] != second["digest"]
    for engine in every_kind:
        assert files(engine, image) == {"a": b"first"}
        assert ship.pull(engine, image)["hosts"][0]["state"] == "pulled"
        assert files(engine, image) == {"a": b"second"}
        back = ship.pull(engine, f"{image}@{first['digest']}")
        assert files(engine, back["image_id"]) == {"a": b"first"}
        assert files(engine, image) == {"a": b"second"}


# Many engines


def test_the_bucket_is_read_once_for_any_number_of_engines(
    docker_engine, two_engines, every_kind, s3_bucket, image, gate
):
    hosts = list(dict.fromkeys([*two_engines, *every_kind]))
    ship = Ship(s3_bucket.url)
    build(docker_engine, image, [{"a": random_bytes(9 * MIB, image)}, {"b": random_bytes(3 * MIB, f"{image}b")}])
    pushed = ship.push(docker_engine, image)
    blobs = sum(one["size"] for one in layers_in(s3_bucket, pushed["digest"]))
    before = gate.outwards

    pulled = Ship(_through(s3_bucket, gate)).pull_into([host.host for host in hosts], image)

    assert pulled["bytes_read"] == blobs
    assert blobs <= gate.outwards - before < blobs + MIB
    assert [(one["host"], one["state"], one["layers"]) for one in pulled["hosts"]] == [
        (host.host, "pulled", 2) for host in hosts
    ]
    for host in hosts:
        assert files(host, image) == files(docker_engine, image)


def test_each_engine_gets_what_it_lacks(docker_engine, two_engines, ship, s3_bucket, image):
    below = [{"a": random_bytes(5 * MIB, image)}]
    build(docker_engine, image, below)
    ship.push(docker_engine, image)
    ship.pull(two_engines[0], image)
    build(docker_engine, f"{image}:next", [{"b": random_bytes(MIB, f"{image}b")}], base=image)
    pushed = ship.push(docker_engine, f"{image}:next")

    pulled = ship.pull_into([engine.host for engine in two_engines], f"{image}:next")

    assert [host["layers"] for host in pulled["hosts"]] == [1, 2]
    assert pulled["bytes_read"] == sum(one["size"] for one in layers_in(s3_bucket, pushed["digest"]))
    for engine in two_engines:
        assert id_in(engine, f"{image}:next") == id_in(docker_engine, f"{image}:next")


def test_one_that_is_not_there_does_not_keep_it_from_the_others(docker_engine, two_engines, ship, image, tmp_path):
    load(docker_engine, image, [layer(a=image.encode())])
    ship.push(docker_engine, image)
    nobody = f"unix://{tmp_path}/nobody.sock"

    pulled = ship.pull_into([nobody, two_engines[0].host], image, code=3)

    assert [host["state"] for host in pulled["hosts"]] == ["failed", "pulled"]
    assert nobody in pulled["hosts"][0]["error"]
    assert not pulled["complete"]
    assert id_in(two_engines[0], image)


def test_two_push_one_tag_at_once(two_engines, docker_engine, ship, image):
    made = [load(engine, image, [layer(a=b"%d" % number)]) for number, engine in enumerate(two_engines)]

    running = [ship.start("push", image, "--json", **engine.env) for engine in two_engines]
    pushed = [ended(process) for process in running]

    assert [code for code, _, _ in pushed] == [0, 0]
    pulled = ship.pull(docker_engine, image)
    assert pulled["image_id"] in made
    assert files(docker_engine, image) == {"a": b"%d" % made.index(pulled["image_id"])}
    for number, (_, document, _) in enumerate(pushed):
        assert ship.pull(docker_engine, f"{image}@{document['digest']}")["image_id"] == made[number]


# What is not there


def test_what_is_not_there_is_said(docker_engine, ship, image, tmp_path, make_s3_bucket):
    assert image in ship.push(docker_engine, image, code=4)["error"]
    assert image in ship.pull(docker_engine, image, code=4)["error"]
    assert "f00dfeed" in ship.pull(docker_engine, "f00dfeed", code=4)["error"]
    load(docker_engine, image, [layer(a=image.encode())])

    nobody = f"unix://{tmp_path}/nobody.sock"
    for done in (
        ship.push(docker_engine, image, code=1, DOCKER_HOST=nobody),
        ship.pull_into([nobody], image, code=4),  # the store is looked into first
    ):
        assert (nobody if done["exit_code"] == 1 else image) in done["error"]

    missing = make_s3_bucket(create=False)
    assert missing.name in Ship(missing.url).pull(docker_engine, image, code=4)["error"]
    assert not missing.exists()
    assert missing.name in Ship(f"{missing.url}&create=false").push(docker_engine, image, code=4)["error"]
    Ship(missing.url).push(docker_engine, image)
    assert Ship(missing.url).list() == [f"{image}:latest"]


def test_an_image_without_a_name_is_not_pushed(docker_engine, ship, image):
    there = load(docker_engine, image, [layer(a=image.encode())])
    load(docker_engine, image, [layer(b=image.encode())])

    told = ship.push(docker_engine, there, code=2)

    assert "docker tag" in told["hint"]
    assert ship.list() == []


# Ways to an engine


def test_an_engine_with_tls_is_reached_whatever_other_authorities_are_named(
    make_engine, docker_engine, ship, image, tmp_path
):
    engine = make_engine(listen="tls")
    foreign = str(Certificates.make(tmp_path / "foreign").client / "ca.pem")
    load(docker_engine, image, [layer(a=image.encode())])
    ship.push(docker_engine, image)

    pulled = ship.pull(engine, image, REQUESTS_CA_BUNDLE=foreign, CURL_CA_BUNDLE=foreign)
    trust = engine.env | {"DOCKER_HOST": docker_engine.host}
    hosts = ship.pull_into([engine.tcp, docker_engine.host], image, REQUESTS_CA_BUNDLE=foreign, **trust)["hosts"]
    refused = ship.pull(engine, image, code=1, DOCKER_CERT_PATH=os.path.dirname(foreign))

    assert pulled["hosts"][0]["host"] == engine.tcp
    assert [host["state"] for host in hosts] == ["up to date", "up to date"]
    assert files(engine, image) == {"a": image.encode()}
    assert engine.tcp in refused["error"]
    assert "certificate" in refused["error"]
    engine.stop()


def test_engines_are_named_as_the_docker_command_names_them(listening_engine, docker_engine, ship, image):
    load(docker_engine, image, [layer(a=image.encode())])
    ship.push(docker_engine, image)
    port = listening_engine.tcp.rpartition(":")[2]

    first = ship.pull_into([f"127.0.0.1:{port}"], image)
    again = ship.pull_into([listening_engine.tcp, f"tcp://127.0.0.1:{port}/", listening_engine.host], image)

    assert first["hosts"][0]["host"] == listening_engine.tcp
    assert [host["host"] for host in again["hosts"]] == [listening_engine.tcp, listening_engine.host]
    assert {host["state"] for host in again["hosts"]} == {"up to date"}
    assert ship.push(listening_engine, image)["read_engine"] is False


def test_who_holds_the_lock_file_is_waited_for(docker_engine, ship, image, tmp_path):
    load(docker_engine, image, [layer(a=image.encode())])
    lock = tmp_path / "lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = ship.start("push", image, "--json", "--lockfile", str(lock), **docker_engine.env)
        assert str(lock) in waiting.stderr.readline().decode()
        assert ship.list() == []

    assert ended(waiting)[0] == 0
    assert ship.list() == [f"{image}:latest"]


def test_the_old_order_of_arguments_is_understood(docker_engine, two_engines, ship, image):
    load(docker_engine, f"{image}:1.0", [layer(a=image.encode())])
    holdfast = Holdfast(ship.store, docker_engine.env)

    pushed = holdfast.run("-use-metaservice", "push", ship.store, f"{image}:1.0")
    listed = holdfast.run("list", ship.store)
    pulled = holdfast.run("-pullhosts", two_engines[0].host, "-force-local", "pull", ship.store, f"{image}:1.0")

    assert f"{image}:1.0 is pushed to " in pushed.text
    assert listed.lines == [f"{image}:1.0"]
    assert pulled.lines[0].startswith(f"{two_engines[0].host}: pulled, 1 layers")
    assert files(two_engines[0], f"{image}:1.0") == {"a": image.encode()}


# Images out of the ordinary


TWICE = [layer(a=random_bytes(5 * MIB)), layer(b=b"2"), layer(a=random_bytes(5 * MIB)), layer(), layer(b=b"2"), layer()]


@pytest.mark.parametrize(
    ("layers", "layout"),
    [
        pytest.param([layer(**{f"{number}": b"%d" % number}) for number in range(30)], "registry", id="thirty layers"),
        pytest.param([layer()], "registry", id="an empty one"),
        pytest.param(TWICE, "registry", id="some twice"),
        pytest.param(TWICE, "dogestry", id="some twice, in the old layout"),
    ],
)
def test_any_layers_come_through(docker_engine, every_kind, s3_bucket, image, layers, layout):
    ship = Ship(f"{s3_bucket.url}&layout={layout}")
    there = load(docker_engine, image, layers)
    ship.push(docker_engine, image)

    pulled = ship.pull_into([engine.host for engine in every_kind], image)

    expected = files(docker_engine, image)
    for engine, host in zip(every_kind, pulled["hosts"], strict=True):
        assert keeps_blobs(engine) or host["image_id"] == there
        assert files(engine, image) == expected
        assert diff_ids(engine, image) == diff_ids(docker_engine, image)
        assert len(diff_ids(engine, image)) == len(layers)


def test_an_engine_that_cannot_save_an_image_without_layers_says_so(docker_engine, ship, image):
    build(docker_engine, image, [], instructions=["ENV TIDE=low"])

    told = ship.push(docker_engine, image, code=1)

    assert "empty export" in told["error"]
    assert ship.list() == []


def test_an_image_without_any_layer_comes_through(engine_28_containerd, every_kind, ship, image):
    there = build(engine_28_containerd, image, [], instructions=["ENV TIDE=low"])

    ship.push(engine_28_containerd, image)
    engine_28_containerd.docker("rmi", image)

    for engine in every_kind:
        pulled = ship.pull(engine, image)
        assert "TIDE=low" in engine.docker("image", "inspect", "--format", "{{.Config.Env}}", image)
        assert files(engine, image) == {}
        assert not keeps_blobs(engine) or pulled["image_id"] == there


# Dogestry's buckets


def test_an_old_bucket_is_pulled_into_every_kind_of_engine(every_kind, make_s3_bucket, image):
    bucket = make_s3_bucket("some/where")
    layers = [tar_of(alpha=image.encode()), tar_of(beta=random_bytes(MIB)), tar_of(alpha=b"above")]
    ids = push_old(open_bucket(BucketUrl.parse(bucket.url)), layers, f"opsgoodies.com/docker-repo/{image}/latest")
    ship, name = Ship(bucket.url), f"opsgoodies.com/docker-repo/{image}"

    assert [(one["name"], one["layout"], one["image_id"]) for one in ship.listed()] == [(name, "dogestry", ids[-1])]
    pulled = ship.pull_into([engine.host for engine in every_kind], name)

    assert [host["state"] for host in pulled["hosts"]] == ["pulled"] * len(every_kind)
    for engine in every_kind:
        assert files(engine, name) == {"alpha": b"above", "beta": random_bytes(MIB)}
        assert engine.docker("image", "inspect", "--format", "{{.Config.Cmd}}", name).strip() == "[/bin/app]"
        assert ship.pull(engine, ids[-1][:12])["hosts"][0]["state"] == "up to date"


def test_what_is_pushed_in_the_old_layout_comes_back_with_its_id(each_engine, every_kind, s3_bucket, image):
    old, new = Ship(f"{s3_bucket.url}&layout=dogestry"), Ship(s3_bucket.url)
    there = build(each_engine, image, [{"a": random_bytes(5 * MIB, image)}, {"b": b"kelp"}])
    each_engine.docker("tag", image, f"{image}:new")

    first, again = old.push(each_engine, image), old.push(each_engine, image)
    new.push(each_engine, f"{image}:new")

    assert first["layers_sent"] == 2
    assert (again["layers_sent"], again["bytes_sent"], again["digest"]) == (0, 0, first["digest"])
    assert {(one["tag"], one["layout"]) for one in new.listed()} == {("latest", "dogestry"), ("new", "registry")}
    expected = files(each_engine, image)
    each_engine.docker("rmi", image, f"{image}:new")
    for engine in dict.fromkeys([each_engine, every_kind[0], every_kind[-1]]):
        pulled = new.pull(engine, image)
        assert files(engine, image) == expected
        if not keeps_blobs(each_engine) and not keeps_blobs(engine):
            assert pulled["image_id"] == there


# Hosts that pull by themselves


@pytest.fixture
def serve(tmp_path):
    """serve(store, engine): a server beside an engine; gives its port."""
    started = []

    def start(store, engine):
        (port,) = free_ports(1)
        settings = {"HOLDFAST_ENGINE_LISTEN": f"127.0.0.1:{port}", "HOLDFAST_ENGINE_DOCKER": engine.host}
        others = {"HOLDFAST_STORE": store, "HOLDFAST_PERSIST_ROOTS": str(tmp_path)}
        started.append(Serving(tmp_path, settings | others))
        return str(port)

    yield start
    for server in started:
        server.stop()


def test_a_host_with_a_server_pulls_by_itself(listening_engine, docker_engine, serve, ship, image):
    build(docker_engine, image, [{"a": random_bytes(MIB, image)}])
    ship.push(docker_engine, image)
    port = serve(ship.store, listening_engine)

    pulled = ship.pull_into([listening_engine.tcp], image, "--server-port", port)
    again = ship.pull_into([listening_engine.tcp], image, "--server-port", port)
    forced = ship.pull_into([listening_engine.tcp], image, "--server-port", port, "--force-local")

    (host,) = pulled["hosts"]
    assert (host["state"], host["by_server"], host["bytes_sent"], pulled["bytes_read"]) == ("pulled", True, 0, 0)
    assert (again["hosts"][0]["state"], again["hosts"][0]["by_server"]) == ("up to date", True)
    assert (forced["hosts"][0]["state"], forced["hosts"][0]["by_server"]) == ("up to date", False)
    assert files(listening_engine, image) == files(docker_engine, image)


def test_where_the_server_cannot_pull_the_image_is_sent(
    listening_engine, docker_engine, two_engines, serve, ship, image, make_s3_bucket
):
    build(docker_engine, image, [{"a": random_bytes(MIB, image)}])
    ship.push(docker_engine, image)
    port = serve(make_s3_bucket().url, listening_engine)  # another store than the one that is pulled from

    pulled = ship.pull_into([listening_engine.tcp, two_engines[0].host], image, "--server-port", port)

    assert [(host["state"], host["by_server"]) for host in pulled["hosts"]] == [("pulled", False), ("pulled", False)]
    assert any(f"127.0.0.1:{port}" in warning and listening_engine.tcp in warning for warning in pulled["warnings"])
    for one in (listening_engine, two_engines[0]):
        assert files(one, image) == files(docker_engine, image)
