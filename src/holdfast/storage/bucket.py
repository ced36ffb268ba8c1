"""The bucket: objects by key, whatever holds them.

:class:`Bucket` states what every backend owes; ``storage.backends`` keeps it, and is the only user of obstore and
boto3. Everything above sees the ``BucketError`` branch of ``holdfast.errors`` and never a third-party exception.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from holdfast.errors import AlreadyExists, ObjectNotFound
from holdfast.model.urls import BucketUrl

Data = bytes | memoryview
PROBE_KEY = "holdfast/conditional-writes"
_PART_BYTES = 8 * 1024 * 1024
_MOST_PARTS = 9_000  # S3 takes 10,000: room for what is larger than it was expected to be


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing: its key below the bucket's prefix, and its size in bytes."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Label:
    """What an object says of itself: its content type, and its user metadata (names in lower case)."""

    content_type: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObjectStream:
    """An object that is open for reading: its size in bytes, its ETag, its label, and its bytes in order.

    ``pieces`` gives buffers of at most 8 MiB, all of one version of the object. It raises ``Unavailable`` where the
    object cannot be read on, was replaced meanwhile, or ends before its size.
    """

    size: int
    etag: str
    label: Label
    pieces: Iterator[Data] = field(repr=False)


class Bucket(ABC):
    """Objects by key, below the prefix of one URL.

    Keys are relative to the prefix, ``/``-separated, without empty, ``.`` or ``..`` components. Every method may raise
    ``AccessDenied`` or ``Unavailable`` (after the backend's own retries), is safe to call from many threads at once,
    and returns only when the object store has acknowledged: what was put is durable.
    """

    url: BucketUrl

    @abstractmethod
    def put(self, key: str, data: bytes | Sequence[Data]) -> None:
        """Store an object whole, or not at all; an object of that key is replaced.

        ``data`` may be a list of buffers, which are sent one after another without being copied together.
        """

    def put_stream(self, key: str, data: Iterator[Data], label: Label, *, expected_bytes: int = 0) -> str:
        """Store an object whole, or not at all, from buffers that come one after another; give its ETag.

        Memory: a few parts of 8 MiB, or of a 9,000th of ``expected_bytes`` where that is more (S3 knows 10,000 parts).
        What ``data`` raises comes out as it is; what was sent until then is taken back where that can be.
        """
        source = Source(data)
        part_bytes = max(_PART_BYTES, -(-expected_bytes // _MOST_PARTS))
        try:
            return self._put_stream(key, source, label, part_bytes)
        except BaseException:
            if source.error is not None:
                raise source.error from None
            raise

    @abstractmethod
    def _put_stream(self, key: str, data: Iterator[Data], label: Label, part_bytes: int) -> str:
        """Do the work of :meth:`put_stream`, in parts of ``part_bytes``."""

    @abstractmethod
    def open_stream(self, key: str) -> ObjectStream:
        """Open an object for reading from its beginning to its end.

        :raises ObjectNotFound: there is none.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> None:
        """Store an object only if there is none of that key.

        :raises AlreadyExists: there is one, and it stays as it was.
        """

    @abstractmethod
    def get(self, key: str, *, limit: int) -> bytes:
        """Read an object of at most ``limit`` bytes whole.

        :raises ObjectNotFound: there is none.
        :raises BucketError: it is larger.
        """

    @abstractmethod
    def get_range(self, key: str, offset: int, length: int) -> Data:
        """Read ``length`` bytes from ``offset`` on; fewer where the object ends before.

        :raises ObjectNotFound: there is no such object.
        """

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Give an object's size in bytes, or None if there is none."""

    @abstractmethod
    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """List every object whose key begins with ``prefix`` + ``/`` (all of them: pagination is the backend's job)."""

    @abstractmethod
    def names(self, prefix: str) -> tuple[list[str], list[str]]:
        """List one level below ``prefix``: the names of the folders, and of the objects, each sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; none there is no error."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether the bucket itself is there."""

    @abstractmethod
    def make(self) -> None:
        """Create the bucket; one that exists (and is ours) is no error."""

    def make_if_missing(self) -> None:
        """Create the bucket where it is missing.

        :raises ObjectNotFound: it is missing and its URL says ``create=false``.
        """
        if self.exists():
            return
        if not self.url.flag("create", default=True):
            raise ObjectNotFound(
                f"there is no bucket {self.url}", hint="create it, or leave create=false out of the URL"
            )
        self.make()

    def prepare_for_writing(self) -> bool:
        """Create the bucket where it is missing, and find out whether it honours conditional writes.

        The answer costs one small request for a bucket that was prepared before. Without conditional writes, two
        writers of one key both win, the later silently over the earlier.

        :raises ObjectNotFound: the bucket is missing and its URL says ``create=false``.
        """
        if not self.url.flag("create", default=True):
            self.make_if_missing()
        try:
            return self._probe()
        except ObjectNotFound:
            self.make()
            return self._probe()

    def _probe(self) -> bool:
        for _ in range(2):
            try:
                self.create(PROBE_KEY, b"")
            except AlreadyExists:
                return True
        return False


class Readers(ThreadPoolExecutor):
    """The threads of a generator that reads ahead. Leaving them waits for none of them.

    A generator that nobody reads to its end is ended by the garbage collector, in whichever thread that runs: in one
    that is just beginning, perhaps, and holds the lock of ``threading`` that waiting for another thread needs as well.
    """

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=False, cancel_futures=True)


class Source:
    """Passes buffers on, and remembers what their maker raised: a client library may wrap or translate it."""

    def __init__(self, data: Iterator[Data]) -> None:
        self._data = data
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[Data]:
        return self

    def __next__(self) -> Data:
        try:
            return next(self._data)
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            raise
