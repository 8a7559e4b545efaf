"""Context: what an app is given beside the message. Owns its fields; must not know where state is kept."""

from collections.abc import Callable
from dataclasses import dataclass, field

from brokerfl.common.record import RecordSet

ConfigScalar = bool | int | float | str

#: Key-value pairs as given by ``--node-config`` and ``--run-config``.
UserConfig = dict[str, ConfigScalar]


@dataclass
class Context:
    """What an app knows of its run and its node.

    There is one for each pair of them, and no run sees another's.

    Attributes:
        run_id: the run.
        node_id: the node; 1 for a ServerApp.
        node_config: given by whoever started the node; the same in every run.
        state: kept from one message of the run to the next, and never sent anywhere.
        run_config: given by whoever started the run; the same on every node.
    """

    run_id: int
    node_id: int
    node_config: UserConfig
    state: RecordSet
    run_config: UserConfig
    _is_cancelled: Callable[[], bool] = field(default=lambda: False, repr=False, compare=False)

    def cancelled(self) -> bool:
        """Return whether nobody wants what is running now: its message was cancelled, or its run is over.

        Cheap enough for every batch: it asks Redis at most once a second. Code that sees it may raise or return.
        """
        return self._is_cancelled()
