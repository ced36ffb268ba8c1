"""Processes that save and restore, so that the one that answers requests is never kept from it.

Python runs one thread at a time. A save keeps it busy, and with several at once a request would wait for its turn at
every step. Besides, a save that the kernel kills for want of memory does not take the server with it. A worker ends
with its connection, so none is left behind by a server that was killed.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection

from holdfast.errors import BusyError, HoldfastError, ProcessLost
from holdfast.progress import Progress
from holdfast.volumes.keeper import Keeper, Outcome, Plan, Restore, Save

_TELL_EVERY_S = 0.2
_NICE = 5  # the server comes first, and so do the programs whose data it is


class Workers:
    """As many workers as there are jobs at once. Safe from any thread."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._idle = [_Worker(plan)]
        self._busy: set[_Worker] = set()
        self._are_killed = False

    def run(self, task: Save | Restore, progress: Progress) -> Outcome:
        """Have a worker do a task, and wait for it.

        :raises HoldfastError: what it raised; :class:`ProcessLost` where it was killed, :class:`BusyError` if by us.
        """
        worker = self._taken()
        try:
            return worker.run(task, progress)
        except ProcessLost as error:
            if self._are_killed:
                raise BusyError("the server stopped before this was done") from error
            raise
        finally:
            with self._lock:
                self._busy.discard(worker)
                if worker.is_alive:
                    self._idle.append(worker)

    def close(self) -> None:
        """End the workers that have nothing to do."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def kill(self) -> None:
        """End those that work, too, at once."""
        with self._lock:
            self._are_killed = True
            for worker in self._busy:
                worker.kill()

    def _taken(self) -> _Worker:
        """Take one that has nothing to do; some may have been killed since they last had."""
        with self._lock:
            while self._idle and not self._idle[-1].is_alive:
                self._idle.pop().close()
            worker = self._idle.pop() if self._idle else _Worker(self._plan)
            self._busy.add(worker)
        return worker


class _Worker:
    """One process, seen from the server."""

    def __init__(self, plan: Plan) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # -P: a folder that the server happens to be started in is no place to load code from.
            command = [sys.executable, "-P", "-m", __name__, str(theirs.fileno())]
            self._process = subprocess.Popen(  # noqa: S603 - no word of it comes from outside
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"MALLOC_ARENA_MAX": "2", **os.environ},  # each job has new threads: glibc would give each its own
            )
        self._connection = Connection(ours.detach())
        self._connection.send(plan)

    def run(self, task: Save | Restore, progress: Progress) -> Outcome:
        try:
            self._connection.send(task)
            while True:
                counters, warnings, result = self._connection.recv()
                progress.take(counters, warnings)
                if result is not None:
                    break
        except (EOFError, OSError) as error:
            self.close()
            raise ProcessLost(
                f"the process that worked on {task.name} ended with {self._process.returncode}",
                hint="was it out of memory? nothing was lost, try again",
            ) from error
        if isinstance(result, Outcome):
            return result
        if isinstance(result, HoldfastError):
            raise result
        self.close()
        raise RuntimeError(result)  # the worker's traceback

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._connection.close()
        self._process.wait()


def _work(connection: Connection) -> None:
    """Do one task after another, until nobody is there to ask."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the server decides when to stop
    with suppress(OSError):
        os.nice(_NICE)
    gc.set_threshold(200_000, 20, 100)  # as on the command line: many objects, few of them in circles
    with suppress(EOFError, OSError):
        plan: Plan = connection.recv()
        keeper = plan.keeper()
        gc.freeze()
        while True:
            _do(connection, keeper, connection.recv())
            gc.collect()  # now, while nobody waits: jobs are made of objects that know each other


def _do(connection: Connection, keeper: Keeper, task: Save | Restore) -> None:
    progress = Progress()
    has_ended = threading.Event()
    teller = threading.Thread(target=_tell, args=(connection, progress, has_ended), daemon=True)
    teller.start()
    result: Outcome | HoldfastError | str
    try:
        result = task.run(keeper, progress)
    except HoldfastError as error:
        result = error
    except Exception:  # noqa: BLE001 - it goes to the server, which logs it
        result = traceback.format_exc()
    has_ended.set()
    teller.join()
    connection.send((*progress.given(), result))


def _tell(connection: Connection, progress: Progress, has_ended: threading.Event) -> None:
    while not has_ended.wait(_TELL_EVERY_S):
        try:
            connection.send((*progress.given(), None))
        except OSError:  # the server is gone
            os._exit(1)


if __name__ == "__main__":
    _work(Connection(int(sys.argv[1])))
    os._exit(0)  # threads that wait for a dead network would keep the process
