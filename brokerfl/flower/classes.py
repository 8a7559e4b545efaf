"""The classes of flwr and of an app: a method is wrapped in one class and in all of its subclasses.

Owns how that is done, also for classes that are defined later. It must not know what a wrapper does.
"""

import inspect
from collections.abc import Callable
from typing import Any

#: Marks what is wrapped already.
_MARK = "_brokerfl_tells"

#: Makes a wrapper of a method that a class defines.
Wrap = Callable[[Any, Callable[..., Any]], Callable[..., Any]]


def wrap_once(owner: Any, name: str, wrap: Wrap) -> None:
    """Wrap a function that a class or a module itself has, unless it is wrapped already."""
    function = vars(owner).get(name)
    if inspect.isfunction(function) and not hasattr(function, _MARK):
        wrapped = wrap(owner, function)
        setattr(wrapped, _MARK, True)
        setattr(owner, name, wrapped)


def wrap_everywhere(base: Any, name: str, wrap: Wrap) -> None:
    """Wrap a method in a class and in all of its subclasses, also in those that are defined later."""
    if _MARK in vars(base):
        return
    own = vars(base).get("__init_subclass__")

    def of_subclass(cls: Any, /, **options: Any) -> None:
        if own is not None:
            own.__func__(cls, **options)
        else:
            super(base, cls).__init_subclass__(**options)
        wrap_once(cls, name, wrap)

    setattr(base, _MARK, True)
    base.__init_subclass__ = classmethod(of_subclass)
    classes = [base]
    while classes:
        kind = classes.pop()
        wrap_once(kind, name, wrap)
        classes += kind.__subclasses__()
