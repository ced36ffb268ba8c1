"""Fixtures for all tests: a private home, and real servers where a test asks for them."""

from __future__ import annotations

import itertools
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from engines import ROOT, Containers, Engine, Options
from images import import_base_image
from servers import PROGRAMS, Registry, S3Bucket, SeaweedFS, StartError, find_program
from shipping import Ship

REQUIRE_VARIABLE = "HOLDFAST_TEST_REQUIRE"
ENGINES = ("docker", "docker28")  # those of the programs that are engines
ENGINES_STARTED = pytest.StashKey[list[str]]()
ENGINES_WANTING = pytest.StashKey[dict[str, str]]()
_bucket_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        metavar="PROGRAM[,PROGRAM]",
        default=os.environ.get(REQUIRE_VARIABLE, ""),
        help=f"fail, where a test would be skipped, for want of these: {', '.join(PROGRAMS)} (or ${REQUIRE_VARIABLE})",
    )


def _required(config: pytest.Config) -> frozenset[str]:
    return frozenset(filter(None, (name.strip() for name in config.getoption("--require").split(","))))


def pytest_configure(config: pytest.Config) -> None:
    if unknown := _required(config) - PROGRAMS.keys():
        raise pytest.UsageError(f"--require: unknown {', '.join(sorted(unknown))}; known are {', '.join(PROGRAMS)}")
    config.stash[ENGINES_STARTED] = []
    config.stash[ENGINES_WANTING] = {}


def pytest_sessionstart() -> None:
    # A shell that runs the tests in its background has them, and every program they start, ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> str:
    there = [name for name in PROGRAMS if find_program(name)]
    missing = [name for name in PROGRAMS if name not in there]
    required = ", ".join(sorted(_required(config))) or "none"
    return f"programs: {', '.join(there)}; missing: {', '.join(missing) or 'none'}; required: {required}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for release in sorted(set(config.stash[ENGINES_STARTED])):
        terminalreporter.write_line(f"engines: tested with {release}")
    for reason in config.stash[ENGINES_WANTING].values():
        terminalreporter.write_line(f"engines: not tested with another: {reason.splitlines()[0]}")


@pytest.fixture(scope="session")
def program(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """program("skopeo"): its executable; where it is missing, the test is skipped, or fails if it is required."""

    def find(name: str) -> Path:
        if found := find_program(name):
            return found
        _do_without(pytestconfig, name, f"{name} is not installed ({PROGRAMS[name]} is not there)")

    return find


def _do_without(config: pytest.Config, name: str, reason: str) -> NoReturn:
    if name in ENGINES:
        config.stash[ENGINES_WANTING][name] = reason
    if name in _required(config):
        pytest.fail(f"{reason}, and --require names it", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    for marker in request.node.iter_markers("needs"):
        for name in marker.args:
            request.getfixturevalue("program")(name)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home with caches and settings of its own: no test sees or touches the user's."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(("AWS_", "HOLDFAST_")) and name != REQUIRE_VARIABLE]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    return home


@pytest.fixture(scope="session")
def start_seaweedfs(
    program: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], SeaweedFS]]:
    """start_seaweedfs(): one more SeaweedFS, independent of all others, until the run ends."""
    started: list[SeaweedFS] = []

    def start() -> SeaweedFS:
        started.append(SeaweedFS.start(program("seaweedfs"), tmp_path_factory.mktemp("seaweedfs")))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def seaweedfs(start_seaweedfs: Callable[[], SeaweedFS]) -> SeaweedFS:
    """The SeaweedFS of this run."""
    return start_seaweedfs()


@pytest.fixture
def make_s3_bucket(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., S3Bucket]]:
    """make_s3_bucket(prefix="", create=True, seaweedfs=None): a bucket of this test's own.

    Its credentials are in os.environ. With create=False only the name is given; whatever the test makes of it
    is removed all the same.
    """
    made: list[S3Bucket] = []

    def make(prefix: str = "", *, create: bool = True, seaweedfs: SeaweedFS | None = None) -> S3Bucket:
        server = seaweedfs or request.getfixturevalue("seaweedfs")
        bucket = S3Bucket(server, f"holdfast-{next(_bucket_numbers)}", prefix)
        made.append(bucket)
        if create:
            bucket.create()
        for name, value in bucket.env.items():
            monkeypatch.setenv(name, value)
        return bucket

    yield make
    for bucket in made:
        bucket.delete()


@pytest.fixture
def s3_bucket(make_s3_bucket: Callable[..., S3Bucket]) -> S3Bucket:
    """An empty bucket of this test's own."""
    return make_s3_bucket()


@pytest.fixture
def docker_registry(
    program: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Registry]]:
    """docker_registry(store=None): a registry on this bucket or directory (a new one if none is given)."""
    started: list[Registry] = []

    def start(store: S3Bucket | Path | None = None) -> Registry:
        directory = tmp_path_factory.mktemp("registry")
        started.append(Registry.start(program("docker-registry"), directory, store or directory / "data"))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def make_engine(
    program: Callable[[str], Path], pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Engine]]:
    """make_engine(kind="docker", **options): one more engine, a host of its own, until it is stopped or the run ends.

    The kind is the name of a program; the options are those of engines.Options.
    """
    started: list[Engine] = []

    def make(kind: str = "docker", **options: Any) -> Engine:
        dockerd = program(kind)
        tree = dockerd.parents[2] if kind == "docker28" else None
        try:
            engine = Engine.start(dockerd, tmp_path_factory.mktemp("engine"), Options(**options), tree)
        except StartError as error:
            _do_without(pytestconfig, kind, f"{kind} does not run here: {error}")
        started.append(engine)
        pytestconfig.stash[ENGINES_STARTED].append(engine.release)
        return engine

    yield make
    for engine in started:
        engine.stop()


@pytest.fixture(scope="session")
def docker_engine(make_engine: Callable[..., Engine]) -> Engine:
    """The Docker Engine of this run. Containers are given `--network host`, or `none`, or a network of their own."""
    return make_engine()


@pytest.fixture(scope="session")
def two_engines(make_engine: Callable[..., Engine]) -> tuple[Engine, Engine]:
    """Two hosts besides that of docker_engine. Whatever images a test leaves in them, the next one finds."""
    return make_engine(), make_engine()


@pytest.fixture(scope="session")
def engine_28(make_engine: Callable[..., Engine]) -> Engine:
    """A Docker 28 that keeps its images as every Docker before did."""
    return make_engine("docker28")


@pytest.fixture(scope="session")
def engine_28_containerd(make_engine: Callable[..., Engine]) -> Engine:
    """A Docker 28 that keeps its images in containerd, as it is by default from Docker 29 on."""
    return make_engine("docker28", store="containerd")


@pytest.fixture(params=["docker_engine", "engine_28", "engine_28_containerd"])
def each_engine(request: pytest.FixtureRequest) -> Engine:
    """Every kind of engine in turn: the test runs once with each."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def every_kind(request: pytest.FixtureRequest, two_engines: tuple[Engine, Engine]) -> list[Engine]:
    """An engine of every kind that there is here, none of them docker_engine."""
    newer = ["engine_28", "engine_28_containerd"] if find_program("docker28") else []
    return [two_engines[0], *map(request.getfixturevalue, newer)]


@pytest.fixture
def image() -> str:
    """An image's name that no other test gives."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def ship(s3_bucket: S3Bucket) -> Ship:
    """The commands about images, with a bucket of this test's own."""
    return Ship(s3_bucket.url)


@pytest.fixture(scope="session")
def base_image(docker_engine: Engine, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with a shell, coreutils, curl, and python3 with pip, which finds all that this project needs."""
    try:
        return import_base_image(docker_engine, tmp_path_factory.mktemp("base"))
    except StartError as error:
        _do_without(pytestconfig, "docker", str(error))


@pytest.fixture(scope="session")
def holdfast_image(docker_engine: Engine, base_image: str) -> str:
    """The image that the Dockerfile describes."""
    docker_engine.build(ROOT, "holdfast-test", "--build-arg", f"BASE={base_image}")
    return "holdfast-test"


@pytest.fixture
def containers(docker_engine: Engine) -> Iterator[Containers]:
    """Containers of this test, which go when it ends, with their anonymous volumes."""
    containers = Containers(docker_engine)
    yield containers
    containers.remove()
