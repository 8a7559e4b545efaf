"""Jobs: what a thread works on."""

import gc
import sys
import threading
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import ref

import pytest

from brokerfl.common.job import current_job
from tests.jobs import WAYS, doing


class Large:
    """Something that a task is given or returns."""


@pytest.mark.parametrize("way", WAYS)
def test_no_two_jobs_are_the_same(way: str) -> None:
    """Although they are done by one thread, or by threads with the same number."""
    with doing(way) as do:
        jobs = [current_job(), *(do(current_job) for _ in range(20))]
    assert [jobs.index(each) for each in jobs] == list(range(21))


@pytest.mark.parametrize("way", WAYS)
def test_a_job_stays_the_same_until_it_ends(way: str) -> None:
    """However deep its calls are, and in its generators."""

    def all_of_it() -> list[Hashable]:
        def generator() -> Iterator[Hashable]:
            yield current_job()
            yield (lambda: current_job())()

        return [current_job() == each for each in [current_job(), *generator()]]

    with doing(way) as do:
        assert do(all_of_it) == [True] * 3
    assert all(all_of_it())


def test_what_a_task_calls_at_its_end_belongs_to_it() -> None:
    """The callbacks of its future run in its thread, before the next task."""
    go, jobs = threading.Event(), []

    def task() -> Hashable:
        assert go.wait(20)
        jobs.append(current_job())
        return current_job()

    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(task)
        future.add_done_callback(lambda future: jobs.append(future.result() == current_job() == jobs[0]))
        go.set()
    assert jobs[1:] == [True]


@pytest.mark.parametrize(
    ("way", "fails"), [*((way, False) for way in WAYS[:-1]), ("submit", True)], ids=[*WAYS[:-1], "submit, raises"]
)
def test_it_keeps_nothing_alive(way: str, fails: bool) -> None:
    """Neither what a task was given nor what it returned, not even until the next garbage collection.

    If a task raises, asyncio and ThreadPool leave that to the collection anyway.
    """
    left: list[ref[Any]] = []
    jobs = []

    def task(given: Large) -> Large:
        jobs.append(current_job())
        made = Large()
        left.extend([ref(given), ref(made)])
        if fails:
            raise ValueError("on purpose")
        return made

    def once() -> None:
        try:
            do(task, Large())
        except ValueError:
            assert fails

    with doing(way) as do:
        gc.disable()
        try:
            once()
            do(int)  # a worker lets go of a task when the next one comes
            do(int)
            assert [each() for each in left] == [None, None]
        finally:
            gc.enable()
    assert len(jobs) == 1


def test_the_main_thread_looks_at_no_frame() -> None:
    """There it costs one call, which asks for the thread's number: it is asked for each reply."""
    calls: list[str] = []
    sys.setprofile(lambda frame, event, arg: calls.append(getattr(arg, "__name__", frame.f_code.co_name)))
    try:
        current_job()
    finally:
        sys.setprofile(None)
    assert "current_job" in calls
    assert set(calls) <= {"current_job", "get_ident", "setprofile", "NoneType"}
    assert "_getframe" not in calls
