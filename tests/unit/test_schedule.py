"""Saves and restores in turn: what joins, what waits, what runs side by side."""

import threading

import pytest

from holdfast.errors import BusyError
from holdfast.volumes import schedule
from holdfast.volumes.schedule import Schedule

WAIT_S = 30


class Work:
    """A job that ends when it is told to, and notes the order in which jobs began."""

    def __init__(self, log, name, *, fails=False):
        self.log = log
        self.name = name
        self.began = threading.Event()
        self.go = threading.Event()
        self.fails = fails

    def __call__(self, progress):
        self.log.append(self.name)
        self.began.set()
        assert self.go.wait(WAIT_S)
        if self.fails:
            raise ValueError(self.name)
        return self.name


@pytest.fixture
def log():
    return []


def _ask(jobs, kind, work, path, name=None):
    return getattr(jobs, kind)(name or path, path, work)


def test_a_second_save_joins_the_one_under_way(log):
    jobs = Schedule(4)
    first, second = Work(log, "first"), Work(log, "second")
    one = _ask(jobs, "save", first, b"/a")
    assert first.began.wait(WAIT_S)
    two = _ask(jobs, "save", second, b"/a")
    first.go.set()

    assert one is two
    assert one.done.result(WAIT_S) == "first"
    assert log == ["first"]
    third = Work(log, "third")
    third.go.set()
    assert _ask(jobs, "save", third, b"/a").done.result(WAIT_S) == "third"


def test_a_save_under_another_name_is_another(log):
    jobs = Schedule(4)
    first, second = Work(log, "first"), Work(log, "second")
    one, two = _ask(jobs, "save", first, b"/a"), _ask(jobs, "save", second, b"/a", b"/link")
    first.go.set()
    second.go.set()

    assert (one.done.result(WAIT_S), two.done.result(WAIT_S)) == ("first", "second")


def test_a_save_after_a_restore_does_not_join_the_save_before_it(log):
    jobs = Schedule(4)
    works = [Work(log, name) for name in ("save", "restore", "save again")]
    first = _ask(jobs, "save", works[0], b"/a")
    assert works[0].began.wait(WAIT_S)
    restore = _ask(jobs, "restore", works[1], b"/a")
    again = _ask(jobs, "save", works[2], b"/a")
    assert first is not again
    assert (jobs.running, jobs.waiting) == (1, 2)
    for work in works:
        work.go.set()

    assert again.done.result(WAIT_S) == "save again"
    assert restore.done.result(WAIT_S) == "restore"
    assert log == ["save", "restore", "save again"]


@pytest.mark.parametrize(
    ("kinds", "paths", "together"),
    [
        (("save", "restore"), (b"/a", b"/a"), False),
        (("restore", "save"), (b"/a", b"/a/b"), False),
        (("restore", "save"), (b"/a/b", b"/a"), False),
        (("restore", "restore"), (b"/a", b"/a"), False),
        (("restore", "restore"), (b"/", b"/a"), False),
        (("save", "save"), (b"/a", b"/a/b"), True),
        (("restore", "restore"), (b"/a", b"/ab"), True),
        (("restore", "save"), (b"/a/b", b"/a/c"), True),
    ],
)
def test_who_waits_for_whom(log, kinds, paths, together):
    jobs = Schedule(4)
    works = [Work(log, "first"), Work(log, "second")]
    made = [_ask(jobs, *given) for given in zip(kinds, works, paths, strict=True)]
    assert works[0].began.wait(WAIT_S)
    if together:
        assert works[1].began.wait(WAIT_S)
    else:
        assert jobs.running == 1
        assert not made[1].is_started
    for work in works:
        work.go.set()

    assert [job.done.result(WAIT_S) for job in made] == ["first", "second"]
    assert log == ["first", "second"]


def test_no_more_at_once_than_allowed(log):
    jobs = Schedule(2)
    works = [Work(log, str(number)) for number in range(5)]
    made = [_ask(jobs, "save", work, b"/%d" % number) for number, work in enumerate(works)]
    assert works[0].began.wait(WAIT_S)
    assert works[1].began.wait(WAIT_S)
    assert (jobs.running, jobs.waiting) == (2, 3)
    for work in works:
        work.go.set()

    assert [job.done.result(WAIT_S) for job in made] == list("01234")
    assert log == list("01234")


def test_what_fails_fails_for_all_who_asked_and_stops_nobody_else(log):
    jobs = Schedule(1)
    bad, good = Work(log, "bad", fails=True), Work(log, "good")
    one, two = _ask(jobs, "save", bad, b"/a"), _ask(jobs, "save", good, b"/b")
    also_one = _ask(jobs, "save", Work(log, "joined"), b"/a")
    bad.go.set()
    good.go.set()

    for job in (one, also_one):
        with pytest.raises(ValueError, match="bad"):
            job.done.result(WAIT_S)
    assert two.done.result(WAIT_S) == "good"


def test_watchers_are_told_first(log):
    jobs = Schedule(1)
    told = []
    jobs.watch(lambda job: told.append((job.name, job.done.result())))
    work = Work(log, "work")
    work.go.set()
    job = _ask(jobs, "save", work, b"/a")
    job.done.result(WAIT_S)
    done = threading.Event()
    job.done.add_done_callback(lambda _: done.set())
    assert done.wait(WAIT_S)

    assert told == [(b"/a", "work")]


def test_stopping_drops_who_waits_and_gives_time_to_who_runs(log):
    jobs = Schedule(1)
    running, waiting = Work(log, "running"), Work(log, "waiting")
    one, two = _ask(jobs, "save", running, b"/a"), _ask(jobs, "save", waiting, b"/b")
    assert running.began.wait(WAIT_S)

    assert not jobs.stop(0)
    with pytest.raises(BusyError, match="stopping"):
        two.done.result(WAIT_S)
    with pytest.raises(BusyError, match="stopping"):
        _ask(jobs, "restore", waiting, b"/c")
    running.go.set()
    assert jobs.stop(WAIT_S)
    assert one.done.result(WAIT_S) == "running"
    assert log == ["running"]


def test_too_many_are_told_so(log, monkeypatch):
    monkeypatch.setattr(schedule, "_MOST_WAITING", 2)
    jobs = Schedule(1)
    works = [Work(log, str(number)) for number in range(3)]
    for number, work in enumerate(works):
        _ask(jobs, "restore", work, b"/%d" % number)
    with pytest.raises(BusyError, match="wait already"):
        _ask(jobs, "restore", Work(log, "late"), b"/late")
    for work in works:
        work.go.set()
    assert jobs.stop(0) in (True, False)
