"""Buckets in an object store: S3, Google Cloud Storage, Azure, memory. The only user of obstore and boto3."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, timedelta
from itertools import chain
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from holdfast.errors import (
    AccessDenied,
    AlreadyExists,
    BucketError,
    ObjectNotFound,
    Unavailable,
    UsageError,
)
from holdfast.model.urls import BucketUrl
from holdfast.storage.bucket import PROBE_KEY, Bucket, Data, Label, ObjectInfo, ObjectStream

# About 20 s of retries with nothing listening, and a slow link gets ten minutes for one layer.
_RETRIES: Any = {
    "max_retries": 8,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}
_TIMEOUTS = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "600s"}

_CONTENT_TYPE = "Content-Type"
_PARTS_AT_ONCE = 2
_PIECE_BYTES = 4 * 1024 * 1024
_READ_ATTEMPTS = 3

_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")

_REGION = re.compile(r"[A-Za-z0-9_-]+")
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9._\-:\[\]]+(?:/[!-~]*)?")
_NO_SPACES = re.compile(r"[!-~]*")

_memory_stores: dict[str, Any] = {}
_memory_lock = threading.Lock()


def open_object_bucket(url: BucketUrl) -> Bucket:
    """Give the bucket of an ``s3``, ``gs``, ``az`` or ``memory`` URL."""
    if url.scheme == "s3":
        return _S3Bucket(url)
    if url.scheme == "memory":
        return ObjectBucket(url, _memory_store(url.bucket))
    return ObjectBucket(url, _passed_through(url))


def _memory_store(name: str) -> Any:
    with _memory_lock:
        if name not in _memory_stores:
            _memory_stores[name] = obstore.store.MemoryStore()
        return _memory_stores[name]


def _passed_through(url: BucketUrl) -> Any:
    """Open gs:// and az:// as obstore does, credentials from their own environment variables."""
    options = {name: value for name, value in url.options if name not in ("create", "layout")}
    try:
        return obstore.store.from_url(f"{url.scheme}://{url.bucket}", retry_config=_RETRIES, **options)  # type: ignore[call-overload]
    except (BaseError, ValueError, TypeError) as error:
        raise UsageError(f"cannot open {url}: {_first_line(error)}") from error


class ObjectBucket(Bucket):
    """A bucket behind an obstore store."""

    def __init__(self, url: BucketUrl, store: Any) -> None:
        self.url = url
        self._store = store
        self._base = f"{url.prefix}/" if url.prefix else ""

    def put(self, key: str, data: bytes | Sequence[Data]) -> None:
        with self._translated(key):
            obstore.put(self._store, self._base + key, data, use_multipart=False)

    def _put_stream(self, key: str, data: Iterator[Data], label: Label, part_bytes: int) -> str:
        begin: list[Data] = []
        size = 0
        for piece in data:
            begin.append(bytes(piece))  # its maker may use the buffer again
            size += len(piece)
            if size >= part_bytes:
                break
        with self._translated(key):
            done = obstore.put(
                self._store,
                self._base + key,
                chain(begin, data),
                attributes={_CONTENT_TYPE: label.content_type, **label.metadata},
                use_multipart=size >= part_bytes,  # what fits into one part needs none
                chunk_size=part_bytes,
                max_concurrency=_PARTS_AT_ONCE,
            )
        return done["e_tag"] or ""

    def open_stream(self, key: str) -> ObjectStream:
        with self._translated(key):
            found = obstore.get(self._store, self._base + key, options={"head": True})
        attributes = {str(name): value for name, value in found.attributes.items()}
        label = Label(
            attributes.get(_CONTENT_TYPE, ""),
            {name.lower(): value for name, value in attributes.items() if name != _CONTENT_TYPE},
        )
        size, etag = found.meta["size"], found.meta["e_tag"] or ""
        return ObjectStream(size, etag, label, self._pieces(key, size, etag))

    def _pieces(self, key: str, size: int, etag: str) -> Iterator[Data]:
        """Read an object range by range, the next one while its reader is busy with this one.

        One long answer would be cut off by a server that tires of a slow reader.
        """
        with ThreadPoolExecutor(1, "read") as pool:
            coming = [pool.submit(self._piece, key, 0, min(size, _PIECE_BYTES), etag)] if size else []
            for start in range(0, size, _PIECE_BYTES):
                piece = coming.pop().result()
                after = start + _PIECE_BYTES
                if after < size:
                    coming.append(pool.submit(self._piece, key, after, min(size - after, _PIECE_BYTES), etag))
                yield piece

    def _piece(self, key: str, start: int, length: int, etag: str) -> Data:
        """Read one range of one version of an object, again where it does not come whole."""
        options: Any = {"range": (start, start + length)} | ({"if_match": etag} if etag else {})
        reason: Exception | None = None
        for _ in range(_READ_ATTEMPTS):
            try:
                with self._translated(key):
                    found = obstore.get(self._store, self._base + key, options=options)
            except (AlreadyExists, ObjectNotFound) as error:
                raise Unavailable(
                    f"{self._named(key)} was replaced while it was read", hint="nothing was lost, run it again"
                ) from error
            try:
                with self._translated(key):
                    piece = memoryview(found.bytes())
            except Unavailable as error:  # only this: obstore tries a request again by itself, not always its body
                reason = error
                continue
            if len(piece) == length:
                return piece
        raise Unavailable(f"{self._named(key)} does not come whole", hint="nothing was lost, run it again") from reason

    def create(self, key: str, data: bytes) -> None:
        with self._translated(key):
            obstore.put(self._store, self._base + key, data, mode="create")

    def get(self, key: str, *, limit: int) -> bytes:
        with self._translated(key):
            result = obstore.get(self._store, self._base + key)
            if result.meta["size"] > limit:
                raise BucketError(f"{self._named(key)} is larger than {limit} bytes")
            return bytes(result.bytes())

    def get_range(self, key: str, offset: int, length: int) -> Data:
        if length == 0:
            return b""
        try:
            with self._translated(key):
                return memoryview(obstore.get_range(self._store, self._base + key, start=offset, length=length))
        except Unavailable:
            size = self.size(key)  # a range behind the end is refused like any other failure: look whether it is one
            if size is not None and offset >= size:
                return b""
            raise

    def size(self, key: str) -> int | None:
        try:
            with self._translated(key):
                return int(obstore.head(self._store, self._base + key)["size"])
        except ObjectNotFound:
            return None

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._translated(prefix, listing=True):
            for page in obstore.list(self._store, prefix=(self._base + prefix).rstrip("/") or None):
                for item in page:
                    yield ObjectInfo(item["path"][len(self._base) :], item["size"])

    def names(self, prefix: str) -> tuple[list[str], list[str]]:
        with self._translated(prefix, listing=True):
            found = obstore.list_with_delimiter(self._store, prefix=(self._base + prefix).rstrip("/") or None)
        folders = sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])
        return folders, sorted(item["path"].rpartition("/")[2] for item in found["objects"])

    def delete(self, key: str) -> None:
        try:
            with self._translated(key):
                obstore.delete(self._store, self._base + key)
        except ObjectNotFound:
            return

    def exists(self) -> bool:
        try:
            with self._translated("", listing=True):
                next(iter(obstore.list(self._store, prefix=self._base + "holdfast", chunk_size=1)), None)
        except ObjectNotFound:
            return False
        return True

    def make(self) -> None:
        raise ObjectNotFound(f"there is no bucket {self.url}", hint="create it with the provider's own tools")

    def _named(self, key: str) -> str:
        return f"{key!r} in {self.url}" if key else str(self.url)

    @contextmanager
    def _translated(self, key: str, *, listing: bool = False) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise ObjectNotFound(f"there is no {self._named(key)}") from error
        except (AlreadyExistsError, PreconditionError) as error:
            raise AlreadyExists(f"{self._named(key)} exists already") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._denied() from error
        except BaseError as error:
            raise self._unlisted(error) if listing else self._unavailable(key, error) from error
        except ValueError as error:
            raise BucketError(f"no object can be named {self._named(key)}") from error

    def _denied(self) -> AccessDenied:
        if self.url.flag("anonymous", default=False):
            return AccessDenied(f"{self.url} is not open to everybody", hint="leave anonymous=true out of the URL")
        return AccessDenied(
            f"the object store refused access to {self.url}",
            hint="check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, profile or role), "
            "and what they may do in this bucket",
        )

    def _unavailable(self, key: str, error: Exception) -> Unavailable:
        return Unavailable(
            f"the object store did not serve {self._named(key)}: {_first_line(error)}",
            hint="check the endpoint, the region and the network; nothing was lost, run it again",
        )

    def _unlisted(self, error: Exception) -> BucketError:
        """Find out why a listing failed: obstore reports every such failure alike, a HEAD it tells apart."""
        try:
            obstore.head(self._store, self._base + PROBE_KEY)
        except (NotFoundError, FileNotFoundError):
            return ObjectNotFound(f"there is no bucket {self.url}", hint="check its name, the endpoint and the region")
        except (PermissionDeniedError, UnauthenticatedError):
            return self._denied()
        except BaseError as second:
            return self._unavailable("", second)
        return self._unavailable("", error)


class _S3Bucket(ObjectBucket):
    """An S3 bucket; credentials, region and endpoint follow the AWS SDK's chain."""

    def __init__(self, url: BucketUrl) -> None:
        self._access = _S3Access(url)
        super().__init__(url, self._access.open())

    def make(self) -> None:
        self._access.make_bucket()


class _S3Access:
    """How one S3 bucket is reached: what the URL says first, then the SDK's own chain.

    boto3 takes a quarter of a second to load, so it is left out where the environment alone already decides everything
    that its chain would find: keys in the environment are its first stop unless a profile is named.
    """

    def __init__(self, url: BucketUrl) -> None:
        self._url = url
        self._session_made: Any = None
        self.anonymous = url.flag("anonymous", default=False)
        self.region = url.option("region") or os.environ.get("AWS_DEFAULT_REGION") or self._from_session("region")
        self.endpoint = (
            url.option("endpoint")
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
            or self._from_session("endpoint")
        )
        # What is no header or host makes obstore panic.
        if self.region and not _REGION.fullmatch(self.region):
            raise UsageError(f"not a region: {self.region!r}", hint="check region= in the URL, or AWS_DEFAULT_REGION")
        if self.endpoint and not _ENDPOINT.fullmatch(self.endpoint):
            raise UsageError(
                f"not an endpoint: {self.endpoint!r}",
                hint="write it as http://HOST:PORT or https://HOST in the URL's endpoint=, or in AWS_ENDPOINT_URL_S3",
            )

    def open(self) -> Any:
        settings: dict[str, Any] = {
            "region": self.region or "us-east-1",
            # A blob is named by its SHA-256 and checked against it whenever it is read; hashing every body a second
            # time for the signature costs a tenth of a backup (docs/adr/0004).
            "unsigned_payload": True,
            # obstore has variables of its own for these.
            "conditional_put": "etag",
            "skip_signature": self.anonymous,
        }
        client: Any = dict(_TIMEOUTS)
        if self.endpoint:
            settings["endpoint"] = self.endpoint
            client["allow_http"] = self.endpoint.startswith("http://")
        if not self.anonymous:
            settings["credential_provider"] = self._credentials()
        # With a dot in its name a bucket has no certificate: AWS's is for one label before its host's name.
        path_style = self._url.flag("path_style", default=bool(self.endpoint) or "." in self._url.bucket)
        settings["virtual_hosted_style_request"] = not path_style
        if self.endpoint and not path_style:  # obstore wants the bucket in the host's name then
            scheme, _, host = self.endpoint.partition("://")
            settings["endpoint"] = f"{scheme}://{self._url.bucket}.{host}"
        if self.endpoint:  # to obstore, the variable AWS_ENDPOINT_URL_S3 comes before `endpoint`
            settings["aws_endpoint_url_s3"] = settings["endpoint"]
        try:
            return obstore.store.S3Store(
                self._url.bucket,
                client_options=client,
                retry_config=_RETRIES,
                **settings,
            )
        except BaseError as error:
            # Seen where the system has no certificates at all, even if none is needed.
            raise UsageError(
                f"cannot open {self._url}: {_first_line(error)}",
                hint="check the URL's options, and that the package ca-certificates is installed",
            ) from error

    def make_bucket(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - start-up: needed once a bucket

        settings = {}
        if self.region not in (None, "us-east-1"):
            settings["CreateBucketConfiguration"] = {"LocationConstraint": self.region}
        old = None if self._session_credentials() else _old_environment_keys()
        keys = (
            {"aws_access_key_id": old["access_key_id"], "aws_secret_access_key": old["secret_access_key"]}
            if old
            else {}
        )
        client = self._session().client(
            "s3", region_name=self.region or "us-east-1", endpoint_url=self.endpoint, **keys
        )
        try:
            client.create_bucket(Bucket=self._url.bucket, **settings)
        except client.exceptions.BucketAlreadyOwnedByYou:
            return
        except client.exceptions.BucketAlreadyExists as error:
            raise AccessDenied(
                f"the bucket of {self._url} belongs to somebody else", hint="choose another name"
            ) from error
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "unknown")
            raise BucketError(f"cannot create the bucket of {self._url}: {code}") from error
        except BotoCoreError as error:
            raise Unavailable(f"cannot create the bucket of {self._url}: {type(error).__name__}") from error

    def _credentials(self) -> Callable[[], dict[str, Any]]:
        environment = _environment_keys()
        if environment is not None and self._url.option("profile") is None:
            return lambda: environment
        found = self._session_credentials()
        if found is None:
            old = _old_environment_keys()
            if old is None:
                raise AccessDenied(
                    f"no credentials for {self._url}",
                    hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile with ?profile=, "
                    "or add ?anonymous=true for a public bucket",
                )
            return lambda: old
        return lambda: _frozen(found)

    def _session_credentials(self) -> Any:
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415 - start-up

        try:
            return self._session().get_credentials()
        except BotoCoreError as error:
            raise AccessDenied(
                f"no credentials for {self._url}: {error}",
                hint="set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither",
            ) from error

    def _session(self) -> Any:
        if self._session_made is None:
            import boto3  # noqa: PLC0415 - start-up: a quarter of a second, and rarely needed
            from botocore.exceptions import BotoCoreError  # noqa: PLC0415

            try:
                self._session_made = boto3.session.Session(profile_name=self._url.option("profile"))
            except BotoCoreError as error:
                raise UsageError(f"cannot use the AWS configuration: {error}") from error
        return self._session_made

    def _from_session(self, what: str) -> str | None:
        """Ask the SDK's chain, where there is a configuration that could answer."""
        profile = self._url.option("profile")
        path = os.environ.get("AWS_CONFIG_FILE") or os.path.expanduser("~/.aws/config")
        if profile is None and not os.path.exists(path):
            return None
        session = self._session()
        if what == "region":
            return session.region_name  # type: ignore[no-any-return]
        found = str(session.client("s3", region_name=self.region or "us-east-1").meta.endpoint_url)
        return None if found.endswith(_AWS_DOMAINS) else found


def _environment_keys() -> dict[str, Any] | None:
    return _keys("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def _old_environment_keys() -> dict[str, Any] | None:
    return _keys("AWS_ACCESS_KEY", "AWS_SECRET_KEY")


def _keys(access: str, secret: str) -> dict[str, Any] | None:
    if not os.environ.get(access) or not os.environ.get(secret):
        return None
    for name in (access, secret, "AWS_SESSION_TOKEN"):
        if not _NO_SPACES.fullmatch(os.environ.get(name, "")):
            raise UsageError(
                f"{name} holds a space, a line end or another character that no key has",
                hint="a file with Windows line ends, or quotes around a value, do that",
            )
    return {
        "access_key_id": os.environ[access],
        "secret_access_key": os.environ[secret],
        "token": os.environ.get("AWS_SESSION_TOKEN") or None,
        "expires_at": None,
    }


def _frozen(credentials: Any) -> dict[str, Any]:
    """Give botocore's credentials, refreshed by its own chain where they expire."""
    frozen = credentials.get_frozen_credentials()
    expires = getattr(credentials, "_expiry_time", None)
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": expires.astimezone(UTC) if expires else None,
    }


def _first_line(error: Exception) -> str:
    """Shorten a third party's message to the part behind its URL, timings and XML body."""
    line = str(error).partition("\n")[0]
    return line.rpartition(" - ")[2].partition(": <")[0].strip()[:300]
