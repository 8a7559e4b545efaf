"""flwr's ServerApp, for `brokerfl-server` to run. Owns what it begins with; must not know how messages travel."""

from typing import TYPE_CHECKING, Any

from brokerfl.common import Context, RecordSet
from brokerfl.flower import compat
from brokerfl.flower.context import flower_context_of
from brokerfl.flower.grid import FlowerGrid

if TYPE_CHECKING:
    from brokerfl.server import Driver


class FlowerServerApp:
    """A callable as our ServerApp is.

    Args:
        app: flwr's ServerApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def __repr__(self) -> str:
        return f"<FlowerServerApp {self._app!r}>"

    def __call__(self, driver: "Driver", context: Context) -> None:
        """Run the app to its end.

        A resumed run whose app had kept nothing of its own in ``context.state`` begins anew: what it left open is taken
        back.

        Raises:
            Exception: whatever the app raised.
        """
        if not _keeps_something(context.state):
            driver.start_over()
        flower_context = flower_context_of(context)
        grid = FlowerGrid(driver, flower_context)
        over = None
        try:
            self._app(grid, flower_context)
        except compat.RunNotRunning as error:
            over = error.__cause__ or error
        if over is not None:  # raised in the block above, each of the two would be the reason of the other
            raise over
        grid.save_state()


def _keeps_something(state: RecordSet) -> bool:
    """Return whether an app keeps anything of its own there; a workflow of flwr begins anew, whatever it wrote."""
    if {name for name, _ in state.records()} != {*compat.WORKFLOW_RECORDS}:
        return bool(state)
    _, config = compat.WORKFLOW_RECORDS
    return {*state.configs_records.get(config, {})} != {*compat.WORKFLOW_KEYS}
