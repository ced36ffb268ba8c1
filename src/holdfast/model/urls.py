"""The URL that names a bucket."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from holdfast.errors import UsageError

SCHEMES = ("s3", "file", "gs", "az", "memory")
_S3_OPTIONS = ("region", "endpoint", "profile", "path_style", "create", "anonymous", "layout")
_COMMON_OPTIONS = ("create", "layout")
_SHOWN_OPTIONS = frozenset(_S3_OPTIONS)
LAYOUTS = ("registry", "tarball", "dogestry")
BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """``scheme://bucket/prefix?options``, taken apart.

    ``bucket`` is the container's name (for ``file`` empty), ``prefix`` has no slash at either end (for ``file`` it is
    the absolute directory). ``str()`` and ``repr()`` show no option that could hold a secret.
    """

    scheme: str
    bucket: str
    prefix: str
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, text: str) -> BucketUrl:
        """Read a bucket's URL.

        :raises UsageError: unknown scheme or option, a missing bucket, a relative ``file://`` path, credentials in it.
        """
        try:
            text.encode()
            parts = urlsplit(text)
        except ValueError as error:  # brackets that hold no address, or half of a character
            raise UsageError(f"not a store: {_without_secrets(text)!r}") from error
        if parts.scheme not in SCHEMES:
            hint = f"a store is a URL that begins with {', '.join(f'{s}://' for s in SCHEMES if s != 'memory')}"
            if text.startswith(("/", "./", "../")):
                hint = f"a directory is written as file://{os.path.abspath(text)}"
            raise UsageError(f"not a store: {_without_secrets(text)!r}", hint=hint)
        # A secret may have a slash in it: what is before the first one then ends without an @.
        if "@" in parts.netloc or (":" in parts.netloc and parts.scheme != "file"):
            raise UsageError(
                "a store's URL must not hold credentials",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile with ?profile=",
            )
        options = tuple(parse_qsl(parts.query, keep_blank_values=True))
        url = cls(parts.scheme, parts.netloc, unquote(parts.path).strip("/"), options)
        url._check(unquote(parts.path))
        return url

    def _check(self, path: str) -> None:
        if self.scheme == "file":
            if self.bucket or not path.startswith("/"):
                raise UsageError("a file store needs an absolute path", hint="write it as file:///absolute/path")
        elif not self.bucket:
            raise UsageError(
                f"{self.scheme}:// needs a bucket's name", hint=f"write it as {self.scheme}://BUCKET/PREFIX"
            )
        if self.scheme == "s3" and not BUCKET_NAME.fullmatch(self.bucket):
            raise UsageError(
                f"not a bucket's name: {self.bucket!r}", hint="it has letters, digits, hyphens, dots and underscores"
            )
        if any(part in (".", "..") for part in self.prefix.split("/")) or "\0" in self.prefix:
            raise UsageError("a store's URL must not hold '.', '..' or NUL")
        self._check_options()

    def _check_options(self) -> None:
        known = _S3_OPTIONS if self.scheme == "s3" else _COMMON_OPTIONS
        for name, _ in self.options:
            if name not in known and self.scheme not in ("gs", "az"):
                near = difflib.get_close_matches(name, known, n=1)
                raise UsageError(
                    f"unknown option {name!r} in the URL of a store",
                    hint=f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}",
                )
        if self.option("layout", "registry") not in LAYOUTS:
            raise UsageError(f"unknown layout {self.option('layout')!r}", hint=f"known are {', '.join(LAYOUTS)}")
        endpoint = self.option("endpoint")
        if endpoint is not None and ("@" in endpoint or not endpoint.startswith(("http://", "https://"))):
            raise UsageError("endpoint must be an http:// or https:// URL without credentials")
        for name in ("path_style", "create", "anonymous"):
            self.flag(name, default=False)

    def option(self, name: str, default: str | None = None) -> str | None:
        """Give the last value of an option."""
        return dict(self.options).get(name, default)

    def flag(self, name: str, *, default: bool) -> bool:
        """Give an option that is true or false.

        :raises UsageError: it is neither.
        """
        text = self.option(name)
        if text is None:
            return default
        if text.lower() not in _BOOLEANS:
            raise UsageError(f"{name} must be true or false, not {text!r}")
        return _BOOLEANS[text.lower()]

    @property
    def directory(self) -> str:
        """The directory of a ``file`` URL."""
        return "/" + self.prefix

    def __str__(self) -> str:
        if self.scheme == "file":
            return "file://" + quote(self.directory)
        shown = "&".join(f"{k}={quote(v, safe=':/')}" for k, v in self.options if k in _SHOWN_OPTIONS)
        base = f"{self.scheme}://{self.bucket}" + (f"/{quote(self.prefix)}" if self.prefix else "")
        return f"{base}?{shown}" if shown else base


def _without_secrets(text: str) -> str:
    head = text.partition("?")[0]
    return head.rpartition("@")[2][:200]
