"""What holds a bucket's objects: an object store (``objects``, ``s3``), or a directory (``disk``)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from holdfast.config import Secret
from holdfast.errors import UsageError
from holdfast.model.urls import BucketUrl
from holdfast.storage.bucket import Bucket

_KEY = re.compile(r"[!-~]{1,1024}")


@dataclass(frozen=True, slots=True)
class Keys:
    """The two keys of an S3 account.

    :raises UsageError: one of them is empty, or holds what no key has.
    """

    access: str = field(repr=False)
    secret: Secret

    def __post_init__(self) -> None:
        # What cannot stand in a header makes obstore panic.
        if not _KEY.fullmatch(self.access) or not _KEY.fullmatch(self.secret.value):
            raise UsageError("these are no keys: each is 1 to 1,024 ASCII letters, digits and marks, without spaces")


def open_bucket(url: BucketUrl, keys: Keys | None = None) -> Bucket:
    """Give the bucket that a URL names. Nothing is read or written yet.

    With ``keys``, which are for S3 alone, these and no others are used: neither the environment nor the AWS SDK's chain
    is asked for credentials. Region and endpoint are still found as ever.

    :raises UsageError: an option that the object store's client does not know; keys for what is no S3 bucket.
    """
    if keys is not None and (url.scheme != "s3" or url.option("profile") is not None):
        raise UsageError(f"{url} is not reached with keys of S3", hint="leave them out")
    if url.scheme == "file":
        from holdfast.storage.backends.disk import DiskBucket  # noqa: PLC0415 - start-up: obstore only where used

        return DiskBucket(url)
    if url.scheme == "s3":
        from holdfast.storage.backends.s3 import S3Bucket  # noqa: PLC0415 - start-up

        return S3Bucket(url, keys)
    from holdfast.storage.backends.objects import open_object_bucket  # noqa: PLC0415 - start-up

    return open_object_bucket(url)
