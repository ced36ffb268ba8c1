"""Buckets as Dogestry wrote them: an object for each member of what the engine of its day saved."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

from holdfast.storage.bucket import Bucket

EMPTY = bytes(1024)


def tar_of(**files: bytes) -> bytes:
    """A layer with these files, as engines write one."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mtime = 1_400_000_000.25  # a fraction takes a pax header
            tar.addfile(member, io.BytesIO(data))
        end = tar.offset
    return packed.getvalue()[:end] + bytes(1024)


def old_id(word: object) -> str:
    """An id, which was any random number in those days."""
    return hashlib.sha256(str(word).encode()).hexdigest()


def old_json(image_id: str, parent: str | None = None, **more: object) -> bytes:
    """A v1 image as engines before 1.10 described it."""
    said = {
        "id": image_id,
        "created": "2014-10-01T20:46:07.263351912Z",
        "container": "abc",
        "container_config": {"Hostname": "abc", "Cmd": ["/bin/sh", "-c", "#(nop) CMD [/bin/app]"]},
        "docker_version": "1.2.0",
        "config": {"Cmd": ["/bin/app"], "Env": ["A=<&>"]},
        "architecture": "amd64",
        "os": "linux",
        "Size": 12,
    }
    return json.dumps(said | ({"parent": parent} if parent else {}) | more).encode()


def put_old(bucket: Bucket, key: str, data: bytes, *, with_sum: bool = False) -> None:
    bucket.put(key, data)
    if with_sum:
        bucket.put(f"{key}.sum", hashlib.sha1(data).hexdigest().encode())


def push_old(
    bucket: Bucket, layers: list[bytes], tag: str | None = None, *, word: str = "", with_sum: bool = False
) -> list[str]:
    """Put a chain of images, bottom first, and a tag (NAME/TAG) on the top one; their ids."""
    ids = [old_id(f"{word}{number}") for number in range(len(layers))]
    for number, layer in enumerate(layers):
        base = f"images/{ids[number]}"
        put_old(bucket, f"{base}/json", old_json(ids[number], ids[number - 1] if number else None), with_sum=with_sum)
        put_old(bucket, f"{base}/VERSION", b"1.0", with_sum=with_sum)
        put_old(bucket, f"{base}/layer.tar", layer, with_sum=with_sum)
    if tag:
        put_old(bucket, f"repositories/{tag}", ids[-1].encode(), with_sum=with_sum)
    return ids
