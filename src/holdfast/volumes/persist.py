"""Takes requests to save and restore paths: checked at once, done in turn, each by a process of its own."""

from __future__ import annotations

from datetime import datetime

from holdfast.model.names import SourceName
from holdfast.volumes.keeper import Plan, Restore, Save
from holdfast.volumes.restore import Mode
from holdfast.volumes.schedule import Job, Schedule
from holdfast.volumes.snapshots import Listed
from holdfast.volumes.tarball import Tarball
from holdfast.volumes.workers import Workers


class Persistence:
    """The paths below some roots, in one store. Safe from any thread; what it gives are jobs under way."""

    def __init__(self, plan: Plan, *, at_once: int) -> None:
        """``at_once`` jobs run side by side, each in a process of about 60 MiB and what its work takes."""
        self.schedule = Schedule(at_once)
        self._roots = plan.roots
        self._keeper = plan.keeper()
        self._workers = Workers(plan)

    def save(self, name: SourceName) -> Job:
        """Ask for a save of a directory or file; the job gives an :class:`Outcome`.

        :raises ForbiddenError: it is not below a root.
        :raises BusyError: too many wait already.
        """
        path = self._roots.check(name.name)
        return self.schedule.save(name.name, path, lambda progress: self._workers.run(Save(name), progress))

    def restore(self, name: SourceName, mode: Mode, *, tag: str | None = None, at: datetime | None = None) -> Job:
        """Ask for a restore of what was saved under a name; the job gives an :class:`Outcome`.

        :raises ForbiddenError: it is not below a root.
        :raises BusyError: too many wait already.
        """
        path = self._roots.check(name.name)
        task = Restore(name, mode, tag, at)
        return self.schedule.restore(name.name, path, lambda progress: self._workers.run(task, progress))

    def history(self, name: SourceName) -> tuple[list[Listed], Tarball | None]:
        """Give the snapshots of a path, oldest first, and the tarball that lies under its name.

        :raises ForbiddenError: it is not below a root.
        """
        self._roots.check(name.name)
        return self._keeper.history(name)

    def stop(self, grace_s: float) -> bool:
        """Take no more requests, and give what runs some time. Whether all has ended."""
        if not self.schedule.stop(grace_s):
            return False
        self._workers.close()
        return True

    def give_up(self) -> None:
        """End at once what has not ended."""
        self._workers.kill()
