"""What the environment settles, read once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.errors import UsageError
from holdfast.model.urls import BucketUrl

_LEVELS = range(1, 20)
DEFAULT_LEVEL = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one process. ``level`` is zstd's, None for no compression."""

    store: BucketUrl
    level: int | None


def read_settings(
    *, store: str | None = None, compression: str | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Settle what options, environment and defaults say, in this order.

    The store: the option, ``HOLDFAST_STORE``, ``S3_BUCKET_NAME``, and last a directory of this machine:
    ``/var/lib/holdfast/store`` for root, ``$XDG_DATA_HOME/holdfast/store`` for others.

    :raises UsageError: a URL or a compression that cannot be.
    """
    env = os.environ if environment is None else environment
    url = store or env.get("HOLDFAST_STORE") or _old_bucket(env) or _embedded(env)
    return Settings(BucketUrl.parse(url), parse_compression(compression or env.get("HOLDFAST_COMPRESSION") or "zstd"))


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


def _old_bucket(env: Mapping[str, str]) -> str | None:
    name = env.get("S3_BUCKET_NAME")
    return f"s3://{name}" if name else None


def _embedded(env: Mapping[str, str]) -> str:
    if os.geteuid() == 0:
        return "file:///var/lib/holdfast/store"
    base = env.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return f"file://{base}/holdfast/store"
