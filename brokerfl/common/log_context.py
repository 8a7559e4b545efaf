"""Whom a log line is about: its run, its node and its message.

Owns these ids for each thread and asyncio task, those of the whole process, and what this process knows of ids: the
names of nodes, and the realms with which those of runs begin. It must not know how a line looks.

A thread begins with the ids of the process. What copies contextvars, such as ``asyncio.to_thread``, has those of its
caller, too.
"""

from collections.abc import Iterable
from contextvars import ContextVar, Token

#: Run, node and message; None for what is not known.
LogIds = tuple[int | None, int | None, str | None]

_ids: ContextVar[LogIds | None] = ContextVar("brokerfl_log_ids", default=None)
_of_process: LogIds = (None, None, None)
_names: dict[int, str] = {}
_realms: set[str] = set()


def current_ids() -> LogIds:
    """Return the ids of a line that is logged here and now."""
    return _ids.get() or _of_process


class log_context:  # noqa: N801  (it is used like a function, as those of contextlib)
    """While the block runs, what its thread logs is about these; what is None stays as it was.

    Args:
        run: the run's id.
        node: the node's id.
        message: the message's id.
    """

    __slots__ = ("_ids", "_token")

    def __init__(self, *, run: int | None = None, node: int | None = None, message: str | None = None) -> None:
        before = _ids.get() or _of_process
        self._ids = (
            before[0] if run is None else run,
            before[1] if node is None else node,
            before[2] if message is None else message,
        )
        self._token: Token[LogIds | None] | None = None

    def __enter__(self) -> None:
        self._token = _ids.set(self._ids)

    def __exit__(self, *exception: object) -> None:
        if self._token is not None:
            _ids.reset(self._token)


def log_for(*, run: int | None = None, node: int | None = None) -> None:
    """From now on this process works for this run or node: its threads' lines say so unless they know better."""
    global _of_process
    _of_process = (run, node, None)


def name_node(node_id: int, name: str) -> None:
    """A node has this name; "" for none."""
    if name:
        _names[node_id] = name


def name_of(node_id: int) -> str:
    """Return the name of a node; "" if it has none, or if this process does not know it."""
    return _names.get(node_id, "")


def name_realms(realms: Iterable[str]) -> None:
    """The ids of many runs begin with these digits; "" for none."""
    _realms.update(filter(None, realms))


def realm_in(run: str) -> str:
    """Return the digits with which the id of a run begins as those of others do; "" for none."""
    return next((realm for realm in _realms if run.startswith(realm)), "")
