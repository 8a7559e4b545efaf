"""Contexts and their states, converted to flwr's. Owns what an app finds in them; must not know what runs the app."""

from typing import Any

from brokerfl.common import Context, RecordSet
from brokerfl.flower import compat
from brokerfl.flower.records import record_dict_of, record_set_of


class FlowerState(RecordSet):
    """A state that keeps the flwr object it was made from, so that it is not converted again for each message.

    Args:
        records: flwr's RecordDict, or RecordSet.
    """

    def __init__(self, records: Any) -> None:
        super().__init__()
        self.add(record_set_of(records).records())
        self.flower = records


def flower_context_of(context: Context) -> Any:
    """Return a Context for a Flower app, and tell flwr which run and node the process belongs to.

    Raises:
        TypeError, ValueError: see `records.record_dict_of`.
    """
    compat.identify(context.run_id, context.node_id)
    state = context.state
    return compat.Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=dict(context.node_config),
        state=state.flower if isinstance(state, FlowerState) else record_dict_of(state),
        run_config=dict(context.run_config),
    )
