"""The runs that a node serves, and those whose messages it refuses because they belong to another project.

Owns that, and what the log says of it, once for each run. It must not know messages.
"""

from collections.abc import Iterator, Mapping
from logging import WARNING

from brokerfl.common import FrameError, log
from brokerfl.common.text import shown
from brokerfl.wire.guard import NodeGuard
from brokerfl.wire.origin import Origin
from brokerfl.wire.run import Run


class Runs:
    """The runs that contacted one node and are not over, by id.

    Args:
        called: the node in words.
        origin: where its app comes from; None serves every run.
        guard: reads their frames.
    """

    def __init__(self, called: str, origin: Origin | None, guard: NodeGuard) -> None:
        self._called = called
        self._origin = origin
        self._guard = guard
        self._problems: dict[int, str] = {}
        self._frames: dict[int, bytes] = {}
        self._runs: dict[int, Run] = {}

    def __iter__(self) -> Iterator[int]:
        return iter(self._runs)

    def keep_only(self, frames: Mapping[int, bytes]) -> list[int]:
        """Know these runs: add new ones and those that changed; forget the others, and return their ids."""
        for run_id, frame in frames.items():
            if self._frames.get(run_id) == frame:
                continue
            self._frames[run_id] = frame
            try:
                self._runs[run_id] = run = self._guard.run(run_id, frame)
            except FrameError as error:
                log(WARNING, "Run %s cannot be served: %s", run_id, shown(str(error)))
                self._problems[run_id] = str(error)
                self._runs.pop(run_id, None)
            else:
                self._problems.pop(run_id, None)
                self._greet(run)
        over = [run_id for run_id in self._frames if run_id not in frames]
        for run_id in over:
            del self._frames[run_id]
            self._runs.pop(run_id, None)
            self._problems.pop(run_id, None)
        self._guard.forget(over)
        return over

    def _greet(self, run: Run) -> None:
        refusal = self.refusal(run)
        if refusal is not None:
            log(WARNING, "Run %s is refused: %s", run.run_id, shown(refusal))
        elif self._origin is not None and self._origin.is_other_code_than(run.origin):
            log(
                WARNING,
                "Run %s has other code of its project than this node: %s there, %s here",
                run.run_id,
                shown(str(run.origin)),
                shown(str(self._origin)),
            )

    def clear(self) -> None:
        """Forget all of them."""
        self._frames.clear()
        self._runs.clear()
        self._problems.clear()
        self._guard.clear()

    def get(self, run_id: int) -> Run | None:
        """Return a run; None if it is not known, or cannot be read."""
        return self._runs.get(run_id)

    def problem(self, run_id: int) -> str:
        """Return why a run cannot be read."""
        return f"this node cannot read the run's frame: {self._problems.get(run_id, 'it has none')}"

    def refusal(self, run: Run) -> str | None:
        """Return why a run's messages are not executed here; None if they are."""
        if self._origin is None or not self._origin.is_foreign_to(run.origin):
            return None
        return (
            f"{self._called} runs {_named(self._origin)}, but the run belongs to {_named(run.origin)}: start the "
            "node in the run's project, or with --any-app"
        )


def _named(origin: Origin | None) -> str:
    if origin is None or not origin.project:
        return f"{origin}, which belongs to no project"
    return f"{origin.app} of project {origin}"
