"""The command serve: the faces, in one process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from holdfast.config import Configuration, EngineSettings, Persist
    from holdfast.web.app import Face
    from holdfast.web.metrics import Metrics

# All that serves is imported where it is used, so that `holdfast --help` stays fast.
# ruff: noqa: PLC0415


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(serve)


def serve(
    *,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="The configuration file. [env: HOLDFAST_CONFIG; default: /etc/holdfast/config.yaml, if it exists]",
        ),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option("--log-format", metavar="text|json", help="How to log. [env: HOLDFAST_LOG_FORMAT]")
    ] = None,
) -> int:
    """Serve HTTP requests until SIGTERM: to save and restore this machine's volumes, to pull images into its engine."""
    from holdfast import logs
    from holdfast.config import load_secret_files, read_configuration
    from holdfast.web.app import serve as serve_faces

    load_secret_files(os.environ)
    given = {**os.environ, **({"HOLDFAST_LOG_FORMAT": log_format} if log_format is not None else {})}
    settings = read_configuration(config, given)
    logs.set_up(settings.log.format, settings.log.level)
    has_ended = serve_faces(_faces(settings), settings.serve.grace_s)
    if has_ended:
        logs.info("stopped")
    else:
        grace_s = settings.serve.grace_s
        logs.warn("stopped with work under way: what it stored is found by the next one", grace_s=grace_s)
    os._exit(0 if has_ended else 1)  # threads that save, restore, or look into the bucket would keep the process


def _faces(settings: Configuration) -> list[Face]:
    from holdfast.web.metrics import Metrics

    metrics = Metrics()
    faces = []
    if settings.persist is not None:
        faces.append(_persist_face(settings, settings.persist, metrics))
    if settings.engine is not None:
        faces.append(_engine_face(settings, settings.engine, metrics))
    return faces


def _persist_face(settings: Configuration, persist: Persist, metrics: Metrics) -> Face:
    from holdfast import logs
    from holdfast.cli.options import open_lasting
    from holdfast.storage.cache import Cache
    from holdfast.storage.store import Store
    from holdfast.volumes.keeper import Manner, Plan
    from holdfast.volumes.own import own_folders
    from holdfast.volumes.persist import Persistence
    from holdfast.volumes.roots import Roots
    from holdfast.web.app import Face
    from holdfast.web.edge import Edge
    from holdfast.web.persist import PersistFace

    store, cache = Store(open_lasting(settings.store)), Cache.of_user()
    own = own_folders(store, cache)
    roots = Roots(persist.roots, own) if persist.roots else Roots.of_container(own)
    manner = Manner(settings.layout, settings.level, settings.gzip, persist.exclude)
    persistence = Persistence(Plan(settings.store, cache.folder, roots, manner), at_once=persist.jobs)
    face = PersistFace(persistence, persist.verbs, metrics)
    edge = Edge("persist", face.answer, metrics, persist.token)
    logs.info("serving", store=str(store), layout=settings.layout, verbs=persist.verbs, roots=str(roots))
    return Face("persist", edge, persist.listen, persistence.stop, persistence.give_up)


def _engine_face(settings: Configuration, engine: EngineSettings, metrics: Metrics) -> Face:
    from holdfast import logs
    from holdfast.cli.options import open_lasting
    from holdfast.images.engine import Engine
    from holdfast.images.serving import Pulls, Stores, into_engine
    from holdfast.web.app import Face
    from holdfast.web.edge import Edge
    from holdfast.web.engine_api import NO_TOKEN, EngineFace, docker_error

    open_lasting(settings.store)  # one in memory would hold nothing
    stores = Stores(settings.store, dict(engine.registries), engine.client_endpoints)
    address = Engine.open(engine.docker).address  # what is no address ends the server now, not the first pull
    pulls = Pulls(into_engine(stores, engine.docker, engine.tempdir), engine.jobs)
    face = EngineFace(stores, pulls, metrics)
    edge = Edge("engine", face.answer, metrics, engine.token, body=docker_error, no_token=NO_TOKEN)
    registries = ", ".join(f"{host}={url}" for host, url in engine.registries)
    logs.info("serving images", store=str(settings.store), registries=registries or None, docker=address)
    return Face("engine", edge, engine.listen, pulls.stop, lambda: None)
