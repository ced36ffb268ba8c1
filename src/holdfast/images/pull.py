"""Pull: an image out of a store into engines, as many as are named. Only what an engine lacks travels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.images.catalog import find_image
from holdfast.images.engine import Engine
from holdfast.images.fleet import SERVER_PORT, Fleet, HostResult, PullOptions, State
from holdfast.images.spool import Spool
from holdfast.model.images import ImageName
from holdfast.progress import Progress
from holdfast.storage.store import Store

__all__ = ["SERVER_PORT", "HostResult", "PullOptions", "Pulled", "State", "pull"]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull did. ``digest`` is the manifest's or index's; ``bytes_read`` is what was read of layers."""

    image: str
    digest: str
    hosts: tuple[HostResult, ...]
    bytes_read: int
    seconds: float

    @property
    def image_id(self) -> str | None:
        """Give the id that the first engine has it by."""
        return next((host.image_id for host in self.hosts if host.image_id), None)

    @property
    def complete(self) -> bool:
        """Whether all hosts have it."""
        return all(host.state != "failed" for host in self.hosts)

    def told(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {
            "image": self.image,
            "digest": self.digest,
            "image_id": self.image_id,
            "complete": self.complete,
            "bytes_read": self.bytes_read,
            "seconds": round(self.seconds, 3),
            "hosts": [host.told() for host in self.hosts],
        }


def pull(
    store: Store,
    image: str,
    engines: Sequence[Engine],
    options: PullOptions,
    progress: Progress,
    *,
    called: ImageName | None = None,
) -> Pulled:
    """Pull an image, named by ``NAME[:TAG]``, ``NAME@DIGEST`` or its id, into engines.

    They call it as it is called in the store, or ``called``; by a digest or an id it gets no name. What fails for one
    engine is in its result, and does not touch the others. With a single engine it is raised.

    Memory: a few pieces of 4 MiB for each engine; layers that several want rest in files.

    :raises NotFoundError: the store has no such image.
    """
    began = time.monotonic()
    spool = Spool(options.tempdir)
    found = find_image(store, image, spool, progress)
    job = Fleet(store, found, called or found.name, spool, progress)
    results = job.run(engines, options)
    if len(results) == 1 and results[0].error is not None:
        raise results[0].error
    return Pulled(found.what, str(found.digest), tuple(results), job.bytes_read, time.monotonic() - began)
