"""Writes the files of a restore: frame by frame, in many threads, each chunk checked before it reaches the disk."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from holdfast.archive.chunks import chunk_name
from holdfast.archive.extract import Tree, is_fatal, target_error, temporary_name
from holdfast.errors import DamageError, HoldfastError
from holdfast.model.snapshot import HOLE_LAYER, RECORD, RECORD_SIZE, Entry, PathError, shown
from holdfast.progress import Progress
from holdfast.volumes.contents import Chunk, Contents, chunks_of

_READERS = 4
_WRITERS = max(2, os.cpu_count() or 2)
_TASKS_WAITING = 8
_BATCH_BYTES = 64 * 1024 * 1024
_BATCH_PIECES = 16 * 1024
_MOST_REPORTED = 10_000


@dataclass(slots=True)
class Failures:
    """What went wrong with single paths of a restore. Safe from any thread.

    ``failed`` are paths that could not be written; ``damage`` those whose stored bytes are not whole, by the reason.
    """

    target: bytes
    failed: list[PathError] = field(default_factory=list)
    damage: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __bool__(self) -> bool:
        return bool(self.failed or self.damage)

    def note(self, path: bytes, error: OSError) -> None:
        """Note a path that could not be written.

        :raises TargetError: no other path could be either.
        """
        if is_fatal(error):
            raise target_error(os.path.join(self.target, path), error) from error
        with self._lock:
            if len(self.failed) < _MOST_REPORTED:
                self.failed.append(PathError(shown(path), error.strerror or type(error).__name__))

    def note_damage(self, reason: str, path: bytes) -> None:
        """Note a path that cannot be restored, for what is stored of it is damaged."""
        with self._lock:
            paths = self.damage[reason]
            if len(paths) < _MOST_REPORTED:
                paths.append(path)


class _File:
    """A file that is being written, by whichever threads have its chunks."""

    __slots__ = (
        "beside",
        "descriptor",
        "entry",
        "failed",
        "folder",
        "holes",
        "in_new_folder",
        "is_one_chunk",
        "lock",
        "name",
        "pending",
    )

    def __init__(self, entry: Entry, *, in_new_folder: bool, beside: bytes | None) -> None:
        self.entry = entry
        self.folder, _, self.name = entry.path.rpartition(b"/")
        self.in_new_folder = in_new_folder
        self.beside = beside
        self.pending = 1  # the planner's own, until it has planned all of the file
        self.is_one_chunk = False
        self.holes = 0
        self.descriptor: int | None = None
        self.failed = False
        self.lock = threading.Lock()


_Piece = tuple[_File, int, Chunk]


class FileWriter:
    """Takes the files that are wanted, in the order of the index, and writes them.

    Chunks are put together by frame, a batch of :data:`_BATCH_BYTES` at a time, so that each frame is fetched about
    once; whoever has a frame writes all that is in it. At most :data:`_TASKS_WAITING` frames wait or are open.
    """

    def __init__(self, contents: Contents, tree: Tree, failures: Failures, progress: Progress) -> None:
        self._contents = contents
        self._tree = tree
        self._failures = failures
        self._progress = progress
        self._pool = ThreadPoolExecutor(_READERS, "restore")
        self._slots = threading.Semaphore(_TASKS_WAITING)
        self._writing = threading.Semaphore(_WRITERS)
        self._tasks: list[Future[None]] = []
        self._open_files: set[_File] = set()  # begun and not finished; each call on it is atomic
        self._batch: dict[tuple[int, int], list[_Piece]] = {}
        self._batch_bytes = 0
        self._batch_pieces = 0

    def add(self, group: list[Entry], *, in_new_folder: bool) -> None:
        """Take a file: its entry and those in which it goes on.

        ``in_new_folder`` says that its directory was made by this restore: it is written straight into place.

        :raises HoldfastError: what went wrong meanwhile with the files before, if it concerns all.
        """
        file = _File(group[0], in_new_folder=in_new_folder, beside=None if in_new_folder else temporary_name())
        file.is_one_chunk = _is_one_chunk(group)
        try:
            offset = 0
            for chunk in chunks_of(group):
                if chunk.layer == HOLE_LAYER:
                    offset += chunk.offset
                    file.holes += chunk.offset
                    continue
                self._add_piece(file, offset, chunk)
                offset += chunk.length
        except DamageError as error:
            self._damaged(str(error), [file])
        self._piece_done(file)

    def finish(self) -> None:
        """Write all that was taken, and wait for it."""
        self._flush(everything=True)
        for task in self._tasks:
            task.result()
        if self._open_files:
            raise HoldfastError(f"{len(self._open_files)} files were not finished: run it again")

    def abandon(self) -> None:
        """Stop, and leave no half-written file behind."""
        self.stop()
        for file in list(self._open_files):
            self._discard(file)

    def stop(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _add_piece(self, file: _File, offset: int, chunk: Chunk) -> None:
        key = (chunk.layer, self._contents.locate(chunk))
        pieces = self._batch.get(key)
        if pieces is None:
            pieces = self._batch[key] = []
        pieces.append((file, offset, chunk))
        file.pending += 1
        self._batch_bytes += chunk.length
        self._batch_pieces += 1
        if self._batch_bytes >= _BATCH_BYTES or self._batch_pieces >= _BATCH_PIECES:
            self._flush(latest=key)

    def _flush(self, *, latest: tuple[int, int] | None = None, everything: bool = False) -> None:
        """Hand the frames of the batch to the writers; the latest is likely to hold what comes next, so it waits."""
        keep = None if everything else latest
        for key, pieces in self._batch.items():
            if key != keep or len(self._batch) == 1:
                self._slots.acquire()
                self._check_tasks()
                self._tasks.append(self._pool.submit(self._write_frame, key, pieces))
        kept = self._batch.get(keep) if keep is not None and len(self._batch) > 1 else None
        self._batch = {keep: kept} if keep is not None and kept is not None else {}
        self._batch_pieces = len(kept or ())
        self._batch_bytes = sum(chunk.length for _, _, chunk in kept or ())

    def _check_tasks(self) -> None:
        done = [task for task in self._tasks if task.done()]
        for task in done:
            task.result()
            self._tasks.remove(task)

    def _write_frame(self, key: tuple[int, int], pieces: list[_Piece]) -> None:
        try:
            try:
                start, data = self._contents.read(*key)
            except DamageError as error:
                self._damaged(str(error), [file for file, _, _ in pieces])
                for file, _, _ in pieces:
                    self._piece_done(file)
                return
            with self._writing:
                self._write_pieces(key, pieces, start, data)
        finally:
            self._slots.release()

    def _write_pieces(self, key: tuple[int, int], pieces: list[_Piece], start: int, data: memoryview) -> None:
        for file, offset, chunk in pieces:
            piece = data[chunk.offset - start : chunk.offset - start + chunk.length]
            if chunk_name(piece) != chunk.name:
                self._damaged(f"blob {self._contents.blob(key[0])} is altered", [file])
            elif file.is_one_chunk:
                self._write_whole(file, piece)
                continue
            elif not file.failed:
                self._write(file, offset, piece)
            self._progress.advance(size=chunk.length)
            self._piece_done(file)

    def _write_whole(self, file: _File, data: memoryview) -> None:
        """Write a file that is this one chunk: nobody else has anything to do with it."""
        self._progress.advance(size=len(data), files=1)
        folder = self._tree.folder(file.folder)
        name = file.beside or file.name
        made = False
        try:
            descriptor = self._tree.create(name, folder, file.entry)
            made = True
            try:
                _write_all(descriptor, data, 0)
                self._tree.finish_file(descriptor, file.entry, in_new_folder=file.in_new_folder)
            finally:
                os.close(descriptor)
            if file.beside is not None:
                os.rename(file.beside, file.name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            if made:
                with suppress(OSError):
                    os.unlink(name, dir_fd=folder)
            self._file_failed(file, error)

    def _write(self, file: _File, offset: int, data: memoryview) -> None:
        try:
            with file.lock:
                if file.descriptor is None:
                    self._open(file)
                descriptor = file.descriptor
            assert descriptor is not None  # noqa: S101 - just opened
            _write_all(descriptor, data, offset)
        except OSError as error:
            self._file_failed(file, error)

    def _open(self, file: _File) -> None:
        folder = self._tree.folder(file.folder)
        self._open_files.add(file)
        try:
            file.descriptor = self._tree.create(file.beside or file.name, folder, file.entry)
        except OSError:
            self._open_files.discard(file)
            raise

    def _piece_done(self, file: _File) -> None:
        with file.lock:
            file.pending -= 1
            if file.pending:
                return
        try:
            self._finish(file)
        except OSError as error:
            self._discard(file)
            self._file_failed(file, error)

    def _finish(self, file: _File) -> None:
        if file.failed:
            self._discard(file)
            return
        if file.descriptor is None:
            self._open(file)
        descriptor = file.descriptor
        assert descriptor is not None  # noqa: S101 - just opened
        entry = file.entry
        os.ftruncate(descriptor, entry.size)  # a hole may end it
        self._tree.finish_file(descriptor, entry, in_new_folder=file.in_new_folder)
        file.descriptor = None
        os.close(descriptor)
        if file.beside is not None:
            folder = self._tree.folder(file.folder)
            os.rename(file.beside, file.name, src_dir_fd=folder, dst_dir_fd=folder)
        self._open_files.discard(file)
        self._progress.advance(size=file.holes, files=1)

    def _discard(self, file: _File) -> None:
        """Remove what was written of a file that failed."""
        if file not in self._open_files:
            return
        descriptor, file.descriptor = file.descriptor, None
        with suppress(OSError):
            if descriptor is not None:
                os.close(descriptor)
        with suppress(OSError):
            os.unlink(file.beside or file.name, dir_fd=self._tree.folder(file.folder))
        self._open_files.discard(file)

    def _file_failed(self, file: _File, error: OSError) -> None:
        already = file.failed
        file.failed = True
        if not already:
            self._failures.note(file.entry.path, error)

    def _damaged(self, reason: str, files: list[_File]) -> None:
        for file in files:
            if not file.failed:
                file.failed = True
                self._failures.note_damage(reason, file.entry.path)


def _is_one_chunk(group: list[Entry]) -> bool:
    """Whether a file is one chunk and nothing else, as most are: then one thread writes all of it."""
    entry = group[0]
    if len(group) != 1 or len(entry.chunks) != RECORD_SIZE:
        return False
    _, layer, _, length = RECORD.unpack(entry.chunks)
    return bool(layer != HOLE_LAYER and length == entry.size)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
