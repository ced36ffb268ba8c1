"""What holds a bucket's objects: an object store (``objects``, ``s3``), or a directory (``disk``)."""

from __future__ import annotations

from holdfast.model.urls import BucketUrl
from holdfast.storage.bucket import Bucket


def open_bucket(url: BucketUrl) -> Bucket:
    """Give the bucket that a URL names. Nothing is read or written yet.

    :raises UsageError: an option that the object store's client does not know.
    """
    if url.scheme == "file":
        from holdfast.storage.backends.disk import DiskBucket  # noqa: PLC0415 - start-up: obstore only where used

        return DiskBucket(url)
    if url.scheme == "s3":
        from holdfast.storage.backends.s3 import S3Bucket  # noqa: PLC0415 - start-up

        return S3Bucket(url)
    from holdfast.storage.backends.objects import open_object_bucket  # noqa: PLC0415 - start-up

    return open_object_bucket(url)
