"""The programs that move images between engines and the bucket.

``holdfast``  this project: ``push`` and ``pull``.
``whole``     the same, into an engine that has nothing: what an update is compared with.
``fleet``     the same, into four engines at once.
``docker``    ``docker push`` and ``docker pull``, with a CNCF Distribution registry on the bucket. DOCKER, DOCKERD and
              DOCKER_REGISTRY name the programs.
``pipe``      ``docker save | zstd -3 -T2 | rclone rcat``, and back into ``docker load``.
``pipes``     four of these back at once, one for each engine: how long the engines themselves take.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from bench.engines import Engine, docker_program, dockerd_version
from bench.images import FIRST, SECOND
from bench.measure import Command, single
from bench.peers import Repository, first_line, holdfast_argv, holdfast_environment, holdfast_version, store_url
from bench.servers import Registry, rclone_environment, rclone_program, registry_program


class ImageTool(ABC):
    """One program (or pipe) under measurement. A Repository is always a bucket here."""

    name: ClassVar[str]
    program: ClassVar[str]
    """Tools of one program pull what any of them has pushed."""
    engines: ClassVar[int] = 1
    """How many engines it pulls into at once."""
    from_nothing: ClassVar[bool] = False
    """Pulls into an engine that has nothing also where the row is about an update."""

    def __init__(self, env: Mapping[str, str], endpoint: str) -> None:
        self._env = dict(env)
        self._endpoint = endpoint

    @abstractmethod
    def version(self) -> dict[str, str]:
        """Return the version of each program it uses.

        Raises OSError or CalledProcessError when one is missing or does not run.
        """

    def prepare(self, repository: Repository, source: Engine) -> None:  # noqa: B027 -- most need nothing
        """Make ready what stands between ``source`` and an empty bucket, outside of any measured time."""

    def drop(self, repository: Repository) -> None:  # noqa: B027 -- most have nothing to end
        """End what :meth:`prepare` began for this bucket."""

    def close(self) -> None:  # noqa: B027 -- the same
        """End all that :meth:`prepare` began."""

    @abstractmethod
    def push(self, repository: Repository, source: Engine, image: str) -> Command:
        """Return the command that brings ``image`` into the bucket."""

    @abstractmethod
    def pull(self, repository: Repository, targets: Sequence[Engine], image: str) -> Command:
        """Return the command that brings ``image`` into all of ``targets``."""


class HoldfastImages(ImageTool):
    """The project itself."""

    name = "holdfast"
    program = "holdfast"

    def version(self) -> dict[str, str]:
        return {"holdfast": holdfast_version(self._env)}

    def push(self, repository: Repository, source: Engine, image: str) -> Command:
        env = {**holdfast_environment(self._env, repository), "DOCKER_HOST": source.host}
        return single(holdfast_argv("push", self._store(repository), image, "--json"), env)

    def pull(self, repository: Repository, targets: Sequence[Engine], image: str) -> Command:
        hosts = ",".join(target.host for target in targets)
        argv = holdfast_argv("pull", self._store(repository), image, "--pullhosts", hosts, "--json")
        return single(argv, holdfast_environment(self._env, repository))

    def _store(self, repository: Repository) -> str:
        return store_url(self._endpoint, str(repository.bucket))


class Whole(HoldfastImages):
    """The whole image, where the others have most of it."""

    name = "whole"
    from_nothing = True


class Fleet(HoldfastImages):
    """Four engines at once."""

    name = "fleet"
    engines = 4


class Docker(ImageTool):
    """Docker's own way, through a registry. Each bucket gets a registry that no engine has met before."""

    name = "docker"
    program = "docker"

    def __init__(self, env: Mapping[str, str], endpoint: str) -> None:
        super().__init__(env, endpoint)
        self._registries: dict[str, Registry] = {}

    def version(self) -> dict[str, str]:
        return {
            "docker": first_line((docker_program(), "--version"), self._env),
            "dockerd": dockerd_version(self._env),
            "docker-registry": first_line((registry_program(), "--version"), self._env),
        }

    def prepare(self, repository: Repository, source: Engine) -> None:
        bucket = str(repository.bucket)
        self._registries[bucket] = Registry(repository.cache, self._env, self._endpoint, bucket)
        for image in (FIRST, SECOND):
            source.docker("tag", image, self._called(repository, image))

    def drop(self, repository: Repository) -> None:
        self._registries.pop(str(repository.bucket)).stop()

    def close(self) -> None:
        for registry in self._registries.values():
            registry.stop()

    def push(self, repository: Repository, source: Engine, image: str) -> Command:
        return self._docker(source, "push", "--quiet", self._called(repository, image))

    def pull(self, repository: Repository, targets: Sequence[Engine], image: str) -> Command:
        (target,) = targets
        return self._docker(target, "pull", "--quiet", self._called(repository, image))

    def _docker(self, engine: Engine, *arguments: str) -> Command:
        return single((docker_program(), "--host", engine.host, *arguments), self._env)

    def _called(self, repository: Repository, image: str) -> str:
        return f"{self._registries[str(repository.bucket)].host}/{image}"


class ImagePipe(ImageTool):
    """docker save, zstd and rclone in a row."""

    name = "pipe"
    program = "pipe"

    def version(self) -> dict[str, str]:
        return {
            "docker": first_line((docker_program(), "--version"), self._env),
            "zstd": first_line(("zstd", "--version"), self._env),
            "rclone": first_line((rclone_program(), "version"), self._env),
        }

    def push(self, repository: Repository, source: Engine, image: str) -> Command:
        stages = (
            (docker_program(), "--host", source.host, "save", image),
            ("zstd", "-q", "-3", "-T2", "-c"),
            (rclone_program(), "rcat", self._object(repository, image)),
        )
        return Command(stages, self._environment())

    def pull(self, repository: Repository, targets: Sequence[Engine], image: str) -> Command:
        (target,) = targets
        stages = (
            (rclone_program(), "cat", self._object(repository, image)),
            ("zstd", "-q", "-d", "-c"),
            (docker_program(), "--host", target.host, "load", "--quiet"),
        )
        return Command(stages, self._environment())

    def _object(self, repository: Repository, image: str) -> str:
        return f":s3:{repository.bucket}/{image.replace(':', '-')}.tar.zst"

    def _environment(self) -> dict[str, str]:
        return {**self._env, **rclone_environment(self._endpoint)}


class Pipes(ImagePipe):
    """A pipe for each of four engines, as a shell would start them; a failure shows in the engine it happened to."""

    name = "pipes"
    engines = 4
    _SCRIPT = """
rclone=$1 object=$2 docker=$3; shift 3
for host; do "$rclone" cat "$object" | zstd -q -d -c | "$docker" --host "$host" load --quiet & done
wait
"""

    def pull(self, repository: Repository, targets: Sequence[Engine], image: str) -> Command:
        programs = (rclone_program(), self._object(repository, image), docker_program())
        argv = ("sh", "-c", self._SCRIPT, "sh", *programs, *(target.host for target in targets))
        return single(argv, self._environment())


IMAGE_TOOLS: dict[str, type[ImageTool]] = {
    tool.name: tool for tool in (HoldfastImages, Whole, Fleet, Docker, ImagePipe, Pipes)
}
