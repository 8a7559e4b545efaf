"""Ways to do something in another thread, for tests of what a thread works on."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any

#: Calls a function with arguments in another thread, and returns what it returns.
Do = Callable[..., Any]

WAYS = ["submit", "run_in_executor", "to_thread", "ThreadPool", "threads"]


def in_new_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a thread of its own, which often gets the number of the one before."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(function(*args))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    return outcome.result(0)


@contextmanager
def doing(way: str) -> Iterator[Do]:
    """One of `WAYS`: each call is a job of its own; all are in one thread, but by ``threads`` each is in its own."""
    loop = asyncio.new_event_loop()

    async def wait_for(future: "asyncio.Future[Any]") -> Any:
        return await future

    try:
        with ThreadPoolExecutor(1) as executor, ThreadPool(1) as pool:
            loop.set_default_executor(executor)
            ways: dict[str, Do] = {
                "submit": lambda function, *args: executor.submit(function, *args).result(20),
                "run_in_executor": lambda *args: loop.run_until_complete(
                    wait_for(loop.run_in_executor(executor, *args))
                ),
                "to_thread": lambda *args: loop.run_until_complete(asyncio.to_thread(*args)),
                "ThreadPool": lambda function, *args: pool.apply(function, args),
                "threads": in_new_thread,
            }
            yield ways[way]
    finally:
        loop.close()
