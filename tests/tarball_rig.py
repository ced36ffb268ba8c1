"""Saving and restoring in the layout tarball without the command line."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from holdfast.model.names import SourceName
from holdfast.storage.bucket import Bucket, Label
from holdfast.volumes.backup import Source
from holdfast.volumes.restore import Options, Restored
from holdfast.volumes.tarball import Saved, Tarball, find_tarball, restore_tarball, save_tarball


def name_of(path: Path) -> SourceName:
    return SourceName.of_path(os.fsencode(path))


def save(bucket: Bucket, path: Path, **options) -> Saved:
    return save_tarball(bucket, Source.of_path(os.fsencode(path), name_of(path)), **options)


def found(bucket: Bucket, path: Path) -> Tarball:
    tarball = find_tarball(bucket, name_of(path))
    assert tarball is not None
    return tarball


def bring_back(bucket: Bucket, path: Path, target: Path, *, name: bytes | None = None, **options) -> Restored:
    return restore_tarball(found(bucket, path), Options(target=os.fsencode(target), **options), name)


def place(bucket: Bucket, path: Path, data: bytes, *, content_type="application/octet-stream", **metadata: str) -> None:
    """Store an object under a path as somebody else would."""
    bucket.put_stream(os.fspath(path).strip("/"), iter([data]), Label(content_type, metadata))


def archive(*members: tuple[str, bytes | None], **fields) -> bytes:
    """A tar of files (name, content) and directories (name, None)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid = 0o755 if content is None else 0o644, os.geteuid(), os.getegid()
            for field, value in fields.items():
                setattr(info, field, value)
            if content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            made.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


def as_whole_seconds(tree: dict[bytes, dict[str, object]]) -> dict[bytes, dict[str, object]]:
    """A fingerprint with times as this layout keeps them."""
    return {path: {**facts, "mtime_ns": facts["mtime_ns"] // 10**9} for path, facts in tree.items()}
