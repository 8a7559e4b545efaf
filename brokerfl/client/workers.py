"""The workers: threads that take work from the worklist, when a node has more than one.

Owns the threads. It must not know what is done with a message.
"""

import threading
from collections.abc import Callable

from brokerfl.client.worklist import Work, Worklist


class Workers:
    """Threads that serve one message after another, until the worklist is closed.

    Args:
        count: how many.
        name: the name of the threads, followed by their numbers.
        worklist: gives them work.
        serve: serves one message, and releases its run; called with it and the worker's number, from 0.
        failed: called if ``serve`` raises; the worker ends then.
    """

    def __init__(
        self,
        count: int,
        name: str,
        worklist: Worklist,
        serve: Callable[[Work, int], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._worklist = worklist
        self._serve = serve
        self._failed = failed
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"{name} {number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until every worker has finished its message."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _run(self, number: int) -> None:
        try:
            while (work := self._worklist.wait()) is not None:
                self._serve(work, number)
        except BaseException as error:  # else its run would be served by nobody
            self._failed(error)
