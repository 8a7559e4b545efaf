"""Jobs: what a thread is working on, so that two jobs of one thread are told apart.

Owns what a job is: a task in a thread of an executor, everything else together in any other thread. It must not know
what a job does.

A task is one that was given to a ThreadPoolExecutor (so asyncio's ``run_in_executor`` and ``to_thread``), or to
multiprocessing's ThreadPool. Python does not say which task runs, so its frame is looked for.
"""

import sys
from collections.abc import Callable, Hashable, Mapping
from threading import current_thread, get_ident, main_thread
from typing import Any
from weakref import ref

#: The function that runs one task, by module and name, and what tells its task from any other, in its variables.
_TASKS: dict[tuple[str, str], Callable[[Mapping[str, Any]], Hashable]] = {
    ("concurrent.futures.thread", "_WorkItem.run"): lambda variables: ref(variables["self"]),
    ("multiprocessing.pool", "worker"): lambda variables: (variables["job"], variables["i"]),  # unique in a process
}


_main = main_thread().ident  # what a thread forks off looks at frames, too, and finds the same job each time


def current_job() -> Hashable:
    """Return the job of this thread. It equals what else this job gets, and nothing that another job ever gets.

    It keeps nothing alive. The main thread runs no tasks, and looks at no frame: this is asked for each reply.
    """
    if get_ident() == _main:
        return _main
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        name = _TASKS.get((frame.f_globals.get("__name__", ""), frame.f_code.co_qualname))
        if name is not None:
            variables = frame.f_locals
            job = name(variables)
            if isinstance(variables, dict):  # a copy, which the frame keeps; from Python 3.13 on it is a view
                variables.clear()
            return job
    return ref(current_thread())  # not its number, which the next thread may get
