"""The loop: one call of a strategy's ``start``.

Owns what is known of it while it runs. It must not know what a step is.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from brokerfl.flower.places import Places


@dataclass(eq=False)
class Loop:
    """One call of a strategy's loop.

    Attributes:
        strategy: the object whose hooks are called.
        evaluate_fn: the app's own function, or None.
        hidden: names of the strategy's attributes that are hooks.
        begun: the number of its first step.
        is_flowers: the loop is flwr's own code, which only needs the last model of the rounds before.
        configs: its config records, by name.
        is_legacy: its nodes are known to a ClientManager, and its messages may be pushed by other threads.
        stand_ins: makes what a configure hook gives in place of messages that are settled.
        unrecorded: names of values that cannot be recorded, and that the app was told of.
    """

    strategy: Any
    evaluate_fn: Any
    hidden: frozenset[str]
    begun: int = 0
    is_flowers: bool = False
    configs: dict[str, Any] = field(default_factory=dict)
    is_legacy: bool = False
    stand_ins: Callable[[str], list[Any]] = lambda hook: []
    unrecorded: set[str] = field(default_factory=set)
    thread: int = field(default_factory=threading.get_ident)

    @property
    def needs_all(self) -> bool:
        """Whether what stands for a model that nobody needs any more must not be None."""
        return self.is_legacy or not self.is_flowers

    def places(self) -> Places:
        """Return where its values are now."""
        return Places(self.strategy, self.evaluate_fn, self.hidden)


@contextmanager
def looping(strategy: Any, hooks: Iterable[str], end: Callable[[], None], leave: Callable[[], None]) -> Iterator[None]:
    """A loop runs in the block: ``end`` is called when it returns, and ``leave`` when it raises.

    Either way these hooks, which the block puts on the strategy, are taken off again.
    """
    try:
        yield
    except BaseException:
        leave()
        raise
    finally:
        for name in hooks:
            vars(strategy).pop(name, None)
    end()
