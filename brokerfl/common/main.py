"""Main functions: what they may return. Owns that one check; must not know who runs them."""

import inspect


def check_ran(result: object, name: str = "main") -> None:
    """Check what an app's function returned, its main function if no ``name`` is given.

    Raises:
        TypeError: a coroutine or a generator: nothing of the function has run.
    """
    is_async = inspect.isawaitable(result) or inspect.isasyncgen(result)
    if not is_async and not inspect.isgenerator(result):
        return
    if inspect.iscoroutine(result):
        result.close()  # else Python also warns that it was never awaited
    how = f"write `def {name}` and call `asyncio.run(…)` in it" if is_async else "write it without `yield`"
    raise TypeError(f"the {name} function returned a {type(result).__name__}, which runs nothing by itself: {how}")
