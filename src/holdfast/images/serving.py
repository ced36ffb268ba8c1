"""Takes requests for images, by whomever: which store they come from, with whose keys, and when it is their turn."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace

from holdfast.config import Secret
from holdfast.errors import BusyError, ForbiddenError, NotFoundError, UsageError, WrongPlatform
from holdfast.images.engine import Engine
from holdfast.images.pull import Pulled, PullOptions, pull
from holdfast.model.images import DEFAULT_HOST, ImageName
from holdfast.model.urls import BucketUrl
from holdfast.progress import Progress
from holdfast.storage.backends import Keys, open_bucket
from holdfast.storage.store import Store

_MOST_WAITING = 256
_LONGEST_URL = 2048
_MAIL = re.compile(r"[^@/\s]+@[^@/\s]+")


@dataclass(frozen=True, slots=True)
class ClientStore:
    """The store that a client names, and its keys, as they came."""

    url: str
    access: str = field(repr=False)
    secret: Secret


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image comes from. Without ``keys`` it is the server's own affair how that store is opened."""

    url: BucketUrl
    keys: Keys | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: an image, as it is to be called in the engine, and for which platform, if that is said."""

    name: ImageName
    origin: Origin
    platform: str | None = None


Pull = Callable[[Wanted, Progress], Pulled]


class Stores:
    """The stores that images may come from.

    ``own`` and those of ``registries`` (by the host in an image's name) are the server's, opened with its credentials.
    What a client names is confined: an S3 bucket, the client's own keys, no address but AWS's or the server's own
    choice, unless it is one of ``client_endpoints``.
    """

    def __init__(
        self, own: BucketUrl, registries: Mapping[str, BucketUrl], client_endpoints: Sequence[str] = ()
    ) -> None:
        self._own = own
        self._registries = dict(registries)
        self._endpoints = frozenset(endpoint.rstrip("/") for endpoint in client_endpoints)
        self._opened = {url: Store(open_bucket(url)) for url in (own, *self._registries.values())}

    def origin(self, name: ImageName, client: ClientStore | None) -> Origin:
        """Choose the store of an image: its registry's, else the client's, else the server's own.

        :raises UsageError: the client names a store that it may not name.
        :raises ForbiddenError: it names one without its keys.
        """
        registry = self._registries.get(name.host or DEFAULT_HOST)
        if registry is not None:
            return Origin(registry)
        if client is None or _MAIL.fullmatch(client.url):  # once this field held what its name says
            return Origin(self._own)
        url = self._confined(client.url)
        if self._is_own(url):
            return Origin(self._own)
        if not client.access or not client.secret.value:
            raise ForbiddenError(
                f"{url} is opened with the keys of whoever asks, and they did not come",
                hint="give both an access key and a secret key, as `holdfast login` does",
            )
        return Origin(replace(url, options=(*url.options, ("create", "false"))), Keys(client.access, client.secret))

    def open(self, origin: Origin) -> Store:
        """Open the store of an image."""
        if origin.keys is None:
            return self._opened[origin.url]
        return Store(open_bucket(origin.url, origin.keys))

    def _confined(self, text: str) -> BucketUrl:
        if len(text) > _LONGEST_URL:
            raise UsageError("the store's URL is too long")
        url = BucketUrl.parse(text)
        if url.scheme != "s3" and not (url.scheme in ("gs", "az") and self._is_own(url)):
            raise UsageError(f"a client may not name a {url.scheme}:// store", hint="it is written s3://BUCKET/PREFIX")
        for option, value in url.options:
            is_allowed = option == "region" or (option == "endpoint" and value.rstrip("/") in self._endpoints)
            if not is_allowed and not self._is_own(url):
                hint = "the server's engine.client_endpoints says which" if option == "endpoint" else None
                raise UsageError(f"a client may not set {option}= for a store", hint=hint)
        return url

    def _is_own(self, url: BucketUrl) -> bool:
        """Whether it is just the server's own store. What that has among its options cannot lead anywhere else."""
        own = self._own
        return (url.scheme, url.bucket, url.prefix) == (own.scheme, own.bucket, own.prefix) and set(url.options) <= set(
            own.options
        )


@dataclass(eq=False, slots=True)
class PullJob:
    """One pull, asked for by one or by many. ``done`` holds what came of it.

    ``must_wait`` is whether others were to end first when it was asked for.
    """

    wanted: Wanted
    must_wait: bool
    progress: Progress = field(default_factory=Progress, repr=False)
    done: Future[Pulled] = field(default_factory=Future, repr=False)
    asked: float = field(default_factory=time.monotonic)
    is_started: bool = False

    @property
    def waits(self) -> bool:
        """Whether it still waits for others."""
        return self.must_wait and not self.is_started


class Pulls:
    """Runs pulls in threads, a few at a time, in the order in which they were asked for. Safe from any thread.

    What is asked for while the same waits is that one; and while it is under way, if it is named by its digest: a tag
    may have been moved since it was looked up. Memory: what a pull takes for each that runs, a name for each that
    waits.
    """

    def __init__(self, pull: Pull, at_once: int) -> None:
        self._pull = pull
        self._at_once = at_once
        self._pool = ThreadPoolExecutor(at_once, "pull")
        self._waiting: dict[Wanted, PullJob] = {}
        self._running: dict[PullJob, None] = {}
        self._lock = threading.Lock()
        self._is_stopped = False
        self._watchers: list[Callable[[PullJob], None]] = []

    def watch(self, ended: Callable[[PullJob], None]) -> None:
        """Have ``ended`` called with every job that ended, before those who wait for it go on."""
        self._watchers.append(ended)

    @property
    def running(self) -> int:
        """How many pulls are under way."""
        with self._lock:
            return len(self._running)

    @property
    def waiting(self) -> int:
        """How many pulls wait for their turn."""
        with self._lock:
            return len(self._waiting)

    def ask(self, wanted: Wanted) -> PullJob:
        """Ask for an image.

        :raises BusyError: too many wait already, or the server is stopping.
        """
        with self._lock:
            if self._is_stopped:
                raise _stopping()
            known = self._known(wanted)
            if known is not None:
                return known
            if len(self._waiting) >= _MOST_WAITING:
                raise BusyError(f"{_MOST_WAITING} pulls wait already", hint="try again later")
            job = PullJob(wanted, must_wait=len(self._waiting) + len(self._running) >= self._at_once)
            for watcher in self._watchers:
                job.done.add_done_callback(lambda _, ended=watcher: ended(job))  # type: ignore[misc]
            self._waiting[wanted] = job
            self._pool.submit(self._run, job)
            return job

    def stop(self, grace_s: float) -> bool:
        """Take no more requests, drop those that wait, and give those that run some time. Whether all have ended."""
        with self._lock:
            self._is_stopped = True
            dropped, self._waiting = list(self._waiting.values()), {}
            running = [job.done for job in self._running]
        for job in dropped:
            job.done.set_exception(_stopping())
        have_ended = not wait(running, grace_s).not_done
        if have_ended:
            self._pool.shutdown()  # by then all watchers have been told
        return have_ended

    def _known(self, wanted: Wanted) -> PullJob | None:
        if wanted in self._waiting or wanted.name.digest is None:
            return self._waiting.get(wanted)
        return next((job for job in self._running if job.wanted == wanted), None)

    def _run(self, job: PullJob) -> None:
        with self._lock:
            if self._waiting.pop(job.wanted, None) is None:  # dropped
                return
            job.is_started = True
            self._running[job] = None
        try:
            result, failure = self._pull(job.wanted, job.progress), None
        except BaseException as error:  # noqa: BLE001 - it goes to whoever asked
            result, failure = None, error
        with self._lock:
            del self._running[job]
        # Last: whoever is told may ask again at once, and must not find this one under way.
        if result is None:
            job.done.set_exception(failure)
        else:
            job.done.set_result(result)


def into_engine(stores: Stores, docker: str | None, tempdir: str | None) -> Pull:
    """Give what pulls an image that was asked for into one engine, wherever that is.

    The name in the store is the one that was asked for, or else that one without its registry's host.
    """
    # Never by way of another server on the engine's host: that may be this very one.
    options = PullOptions(tempdir=tempdir, force_local=True)

    def pull_wanted(wanted: Wanted, progress: Progress) -> Pulled:
        with closing(Engine.open(docker)) as engine:
            _check_platform(engine, wanted.platform)
            store = stores.open(wanted.origin)
            *others, last = dict.fromkeys((wanted.name, wanted.name.without_host()))
            for name in others:
                try:
                    return pull(store, str(name), [engine], options, progress, called=wanted.name)
                except WrongPlatform:
                    raise  # it is there: whatever lies under another name is another image
                except NotFoundError:
                    continue
            return pull(store, str(last), [engine], options, progress, called=wanted.name)

    return pull_wanted


def _check_platform(engine: Engine, wanted: str | None) -> None:
    if wanted is None:
        return
    own = engine.traits.platform
    if wanted.lower().split("/")[:2] != [own.os, own.architecture]:
        raise UsageError(
            f"this engine's images are for {own}, not for {wanted[:100]}", hint="ask for no platform, or for that one"
        )


def _stopping() -> BusyError:
    return BusyError("the server is stopping", hint="try again once it is back")
