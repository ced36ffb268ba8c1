"""What holds a bucket's objects: an object store (``objects``), or a directory (``disk``)."""

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
    from holdfast.storage.backends.objects import open_object_bucket  # noqa: PLC0415 - start-up

    return open_object_bucket(url)
