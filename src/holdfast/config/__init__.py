"""What options, environment and the configuration file settle, read once.

The environment wins over the file. The file and the libraries that read it are only touched where a file exists or
the server starts: every command pays for what is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from holdfast.config.secret import Secret, load_secret_files
from holdfast.config.values import Address, Configuration, EngineSettings, Layout, Log, Persist, Serve, Settings
from holdfast.errors import UsageError
from holdfast.model.urls import BUCKET_NAME, BucketUrl

__all__ = [
    "DEFAULT_FILE",
    "DEFAULT_LEVEL",
    "Address",
    "Configuration",
    "EngineSettings",
    "Layout",
    "Log",
    "Persist",
    "Secret",
    "Serve",
    "Settings",
    "load_secret_files",
    "parse_compression",
    "read_configuration",
    "read_image_store",
    "read_settings",
]

_LEVELS = range(1, 20)
DEFAULT_LEVEL = 2
DEFAULT_FILE = "/etc/holdfast/config.yaml"
"""The configuration file that is read if it exists and no other is named."""


def read_settings(
    *,
    store: str | None = None,
    compression: str | None = None,
    config: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Settle what options, environment, the configuration file and defaults say, in this order.

    The store: the option, ``HOLDFAST_STORE``, the file, ``S3_BUCKET_NAME``, and last a directory of this machine:
    ``/var/lib/holdfast/store`` for root, ``$XDG_DATA_HOME/holdfast/store`` for others. The file is ``config``,
    ``HOLDFAST_CONFIG``, or ``DEFAULT_FILE`` if it exists.

    :raises UsageError: a URL or a compression that cannot be, or what is wrong with the file.
    """
    env = os.environ if environment is None else environment
    store = store or env.get("HOLDFAST_STORE")
    compression = compression or env.get("HOLDFAST_COMPRESSION")
    path = _file(config, env)
    if path is None or (store and compression) or (store and _is_anothers(path, config, env)):
        url = _store(store, env)
        return Settings(url, parse_compression(compression or "zstd"), _layout(env.get("HOLDFAST_LAYOUT"), url))
    from holdfast.config.schema import read_file  # noqa: PLC0415 - slow to load, and most have no file

    given = read_file(path)
    url = _store(store or given.store, env)
    layout = _layout(env.get("HOLDFAST_LAYOUT") or given.layout, url)
    return Settings(url, parse_compression(compression or given.compression or "zstd"), layout)


def read_image_store(text: str, environment: Mapping[str, str] | None = None) -> BucketUrl:
    """Read the store of a command about images, which it names itself.

    ``HOLDFAST_LAYOUT=dogestry`` says what ``layout=dogestry`` in the URL does; ``tarball`` there is about volumes.

    :raises UsageError: it is none, or images cannot be in its layout.
    """
    env = os.environ if environment is None else environment
    url = BucketUrl.parse(text)
    if url.option("layout") == "tarball":
        raise UsageError("images cannot be kept in layout tarball", hint="the layout is registry or dogestry")
    if url.option("layout") is None and env.get("HOLDFAST_LAYOUT") == "dogestry":
        return replace(url, options=(*url.options, ("layout", "dogestry")))
    return url


def read_configuration(path: str | None, environment: Mapping[str, str] | None = None) -> Configuration:
    """Settle all that the server is told. Secrets are read from the files that are named for them.

    A face is served if its section is in the file, or one of its variables is set; if that is none, ``persist`` is.

    ``path`` is the option's; without it ``HOLDFAST_CONFIG``, or ``DEFAULT_FILE`` if it exists.

    :raises UsageError: the file or the environment says what cannot be, or a file that is named cannot be read.
    """
    from holdfast.config.schema import faces, read, read_token  # noqa: PLC0415 - slow to load

    env = os.environ if environment is None else environment
    given = read(_file(path, env), env)
    served = faces(given, env)
    store = _store(given.store, env)
    level = parse_compression(given.compression or _old_compression(env))
    return Configuration(
        store=store,
        level=level,
        gzip=level is not None,
        layout=_layout(given.layout, store) if "persist" in served else "registry",
        log=Log(given.log.format, given.log.level),
        serve=Serve(given.serve.grace),
        persist=given.persist.settled(read_token("persist", given.persist, env)) if "persist" in served else None,
        engine=given.engine.settled(read_token("engine", given.engine, env)) if "engine" in served else None,
    )


def parse_compression(text: str) -> int | None:
    """Read ``none``, ``zstd`` or ``zstd:LEVEL``.

    :raises UsageError: it is none of them.
    """
    name, _, level = text.partition(":")
    if text == "none":
        return None
    if text == "zstd":
        return DEFAULT_LEVEL
    if name == "zstd" and level.isascii() and level.isdigit() and int(level) in _LEVELS:
        return int(level)
    raise UsageError(f"unknown compression {text!r}", hint="it is none, zstd, or zstd:LEVEL with a level of 1 to 19")


def _file(named: str | None, env: Mapping[str, str]) -> str | None:
    path = named or env.get("HOLDFAST_CONFIG")
    return path or (DEFAULT_FILE if os.path.exists(DEFAULT_FILE) else None)


def _is_anothers(path: str, named: str | None, env: Mapping[str, str]) -> bool:
    """Tell whether the file is the machine's and not for this user, whom nothing in it needs to concern."""
    return not (named or env.get("HOLDFAST_CONFIG")) and not os.access(path, os.R_OK)


def _store(named: str | None, env: Mapping[str, str]) -> BucketUrl:
    return BucketUrl.parse(named or _old_bucket(env) or _embedded(env))


def _layout(named: str | None, store: BucketUrl) -> Layout:
    in_url = store.option("layout")
    if named and in_url and named != in_url:
        raise UsageError(
            f"the layout is set to {named}, but the store's URL says layout={in_url}", hint="leave one of them out"
        )
    layout = named or in_url or "registry"
    if layout == "tarball":
        return "tarball"
    if layout != "registry":
        raise UsageError(f"volumes cannot be kept in layout {layout}", hint="the layout is registry or tarball")
    return "registry"


def _old_compression(env: Mapping[str, str]) -> str:
    """Read ``COMPRESS`` as micro-s3-persistence did: true in any case is true, all else false; its image set true."""
    return "zstd" if (env.get("COMPRESS") or "true").lower() == "true" else "none"


def _old_bucket(env: Mapping[str, str]) -> str | None:
    name = env.get("S3_BUCKET_NAME")
    if name and not BUCKET_NAME.fullmatch(name):
        raise UsageError(
            f"S3_BUCKET_NAME is not a bucket's name: {name!r}",
            hint="a URL goes into HOLDFAST_STORE, as s3://BUCKET/PREFIX",
        )
    return f"s3://{name}" if name else None


def _embedded(env: Mapping[str, str]) -> str:
    if os.geteuid() == 0:
        return "file:///var/lib/holdfast/store"
    base = env.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return f"file://{base}/holdfast/store"
