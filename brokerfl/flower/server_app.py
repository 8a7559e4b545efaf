"""flwr's ServerApp, for `brokerfl-server` to run. Owns how it starts or resumes; must not know how messages travel."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from brokerfl.common import Context, RecordSet
from brokerfl.common.main import check_ran
from brokerfl.flower import compat
from brokerfl.flower.context import flower_context_of
from brokerfl.flower.grid import FlowerGrid
from brokerfl.flower.hooks import install
from brokerfl.flower.legacy import run_with

if TYPE_CHECKING:
    from brokerfl.server import Driver


class FlowerServerApp:
    """A callable, as brokerfl's ServerApp is.

    Args:
        app: flwr's ServerApp.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        install()

    def __repr__(self) -> str:
        return f"<FlowerServerApp {self._app!r}>"

    def __call__(self, driver: "Driver", context: Context) -> None:
        """Run the app to its end.

        The app of a resumed run with a record of its steps begins with an empty ``context.state``, as it did first, and
        gets back what was saved where it goes on. Without one, an app that kept nothing in ``context.state`` starts
        over: its open messages are cancelled.

        Raises:
            Exception: raised by the app.
            TypeError: its main function returned a coroutine or a generator.
        """
        is_recorded = driver.record.head is not None
        if not is_recorded and not self.keeps_something(context.state):
            driver.start_over()
        flower_context = flower_context_of(replace(context, state=RecordSet()) if is_recorded else context)
        grid = FlowerGrid(driver, flower_context)
        grid.brokerfl_steps.say_where()
        over = None
        try:
            with run_with(grid):
                compat.run_server_app(self._app, grid, flower_context, check_ran)
        except compat.RunNotRunning as error:
            over = error.__cause__ or error
        if over is not None:  # raised inside the except block, each of the two would be the other's cause or context
            raise over
        if driver.record.is_kept and grid.brokerfl_steps.is_pending:
            grid.brokerfl_steps.commit()
        else:
            grid.save_state()

    @staticmethod
    def keeps_something(state: RecordSet) -> bool:
        """Return whether an app keeps anything in its state; flwr's workflows start over, no matter what they wrote."""
        if {name for name, _ in state.records()} != {*compat.WORKFLOW_RECORDS}:
            return bool(state)
        _, config = compat.WORKFLOW_RECORDS
        return {*state.configs_records.get(config, {})} != {*compat.WORKFLOW_KEYS}
