"""Buckets in S3 and what speaks its language: credentials, region and endpoint. The only user of boto3."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC
from typing import Any

import obstore
from obstore.exceptions import BaseError

from holdfast.errors import AccessDenied, BucketError, Unavailable, UsageError
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import Keys
from holdfast.storage.backends.objects import RETRIES, ObjectBucket, first_line

# A slow link gets ten minutes for one layer.
_TIMEOUTS = {"connect_timeout": "5s", "read_timeout": "60s", "timeout": "600s"}
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")

_REGION = re.compile(r"[A-Za-z0-9_-]+")
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9._\-:\[\]]+(?:/[!-~]*)?")
_NO_SPACES = re.compile(r"[!-~]*")


class S3Bucket(ObjectBucket):
    """An S3 bucket; region and endpoint follow the AWS SDK's chain, and without ``keys`` the credentials, too."""

    def __init__(self, url: BucketUrl, keys: Keys | None = None) -> None:
        self._access = _S3Access(url, keys)
        super().__init__(url, self._access.open())

    def make(self) -> None:
        self._access.make_bucket()


class _S3Access:
    """How one S3 bucket is reached: what the URL says first, then the SDK's own chain.

    boto3 takes a quarter of a second to load, so it is left out where the environment alone already decides everything
    that its chain would find: keys in the environment are its first stop unless a profile is named.
    """

    def __init__(self, url: BucketUrl, keys: Keys | None) -> None:
        self._url = url
        self._keys = keys
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
                retry_config=RETRIES,
                **settings,
            )
        except BaseError as error:
            # Seen where the system has no certificates at all, even if none is needed.
            raise UsageError(
                f"cannot open {self._url}: {first_line(error)}",
                hint="check the URL's options, and that the package ca-certificates is installed",
            ) from error

    def make_bucket(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - start-up: needed once a bucket

        settings = {}
        if self.region not in (None, "us-east-1"):
            settings["CreateBucketConfiguration"] = {"LocationConstraint": self.region}
        keys = self._given_keys()
        if keys is None and not self._session_credentials():
            keys = _old_environment_keys()
        client = self._client(keys, endpoint_url=self.endpoint)
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

    def _client(self, keys: dict[str, Any] | None, **settings: Any) -> Any:
        """Give boto3's client. With keys it asks for no others, nor for a session's token."""
        if keys is not None:
            settings["aws_access_key_id"] = keys["access_key_id"]
            settings["aws_secret_access_key"] = keys["secret_access_key"]
        return self._session().client("s3", region_name=self.region or "us-east-1", **settings)

    def _given_keys(self) -> dict[str, Any] | None:
        if self._keys is None:
            return None
        return {
            "access_key_id": self._keys.access,
            "secret_access_key": self._keys.secret.value,
            "token": None,
            "expires_at": None,
        }

    def _credentials(self) -> Callable[[], dict[str, Any]]:
        given = self._given_keys()
        if given is not None:
            return lambda: given
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
        if what == "region":
            return self._session().region_name  # type: ignore[no-any-return]
        found = str(self._client(self._given_keys()).meta.endpoint_url)
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
