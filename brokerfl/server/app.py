"""ServerApp: the function that runs a federation. Owns its registration; must not know how messages travel."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from brokerfl.common import Context
from brokerfl.common.main import check_ran

if TYPE_CHECKING:
    from brokerfl.server.driver import Driver

ServerAppCallable = Callable[["Driver", Context], None]


class ServerApp:
    """The server side of an app, run by ``brokerfl-server module:app``.

    Example:
        ::

            app = ServerApp()

            @app.main()
            def main(driver: Driver, context: Context) -> None:
                ...
    """

    def __init__(self) -> None:
        self._main: ServerAppCallable | None = None

    def main(self) -> Callable[[ServerAppCallable], ServerAppCallable]:
        """Return a decorator that registers the main function and returns it unchanged.

        Raises:
            ValueError: from the decorator, if there already is a main function.
        """

        def register(main: ServerAppCallable) -> ServerAppCallable:
            if self._main is not None:
                raise ValueError(
                    f"this ServerApp already has a main function, {self._main.__qualname__}; "
                    f"{main.__qualname__} is a second"
                )
            self._main = main
            return main

        return register

    def __call__(self, driver: "Driver", context: Context) -> None:
        """Run the main function.

        Raises:
            ValueError: none was registered.
            TypeError: it returned a coroutine or a generator.
        """
        if self._main is None:
            raise ValueError("this ServerApp has no main function: decorate one with @app.main()")
        check_ran(self._main(driver, context))
