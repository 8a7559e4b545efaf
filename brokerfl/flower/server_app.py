"""flwr's ServerApp, for `brokerfl-server` to run. Owns what it begins with; must not know how messages travel."""

from typing import TYPE_CHECKING, Any

from brokerfl.common import SUPERLINK_NODE_ID, Context
from brokerfl.flower import compat
from brokerfl.flower.grid import FlowerGrid
from brokerfl.flower.records import state_of

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

        A resumed run whose app had kept nothing in ``context.state`` begins anew: what it left open is taken back.

        Raises:
            Exception: whatever the app raised.
        """
        if not context.state:
            driver.start_over()
        compat.identify(context.run_id, SUPERLINK_NODE_ID)
        flower_context = compat.Context(
            run_id=context.run_id,
            node_id=SUPERLINK_NODE_ID,
            node_config={},
            state=state_of(context.state),
            run_config=dict(context.run_config),
        )
        grid = FlowerGrid(driver, flower_context)
        over = None
        try:
            self._app(grid, flower_context)
        except compat.RunNotRunning as error:
            over = error.__cause__ or error
        if over is not None:  # raised in the block above, each of the two would be the reason of the other
            raise over
        grid.save_state()
