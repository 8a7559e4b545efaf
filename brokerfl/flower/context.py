"""flwr's Context of ours, and its state back. Owns what an app finds there; must not know what runs the app."""

from typing import Any

from brokerfl.common import Context, RecordSet
from brokerfl.flower import compat
from brokerfl.flower.records import record_dict_of, record_set_of


class FlowerState(RecordSet):
    """A state that remembers the flwr object it was made of, so that it is not made anew for each message.

    Args:
        records: flwr's RecordDict, or RecordSet.
    """

    def __init__(self, records: Any) -> None:
        super().__init__()
        self.add(record_set_of(records).records())
        self.flower = records


def flower_context_of(context: Context) -> Any:
    """Return a Context for an app of flwr, and tell flwr that the process is its run's and node's.

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
