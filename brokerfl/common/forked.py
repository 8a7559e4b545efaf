"""Objects that belong to the process that made them, and to none that it forks.

Owns what becomes of them in a forked process. It must not know what they are.

A child has copies of locks that a thread of its parent held at the fork, and of sockets that its parent uses. So no
method of such an object may run there.
"""

import os
from typing import Any, NoReturn
from weakref import WeakSet


class Elsewhere:
    """What is left of such an object in a child."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("a Driver can be used only in the process that made it, not in one that was forked from it")


_made: WeakSet[Any] = WeakSet()


def belong_here(*objects: object) -> None:
    """These objects belong to this process."""
    _made.update(objects)


def _leave_behind() -> None:
    for each in list(_made):
        each.__class__ = Elsewhere
    _made.clear()


os.register_at_fork(after_in_child=_leave_behind)
