"""Context: what an app is given along with a message. Owns its fields; must not know where state is kept."""

from collections.abc import Callable
from dataclasses import dataclass, field

from brokerfl.common.recordset import RecordSet

ConfigScalar = bool | int | float | str

#: Key-value pairs, as given by ``--node-config`` and ``--run-config``.
UserConfig = dict[str, ConfigScalar]


@dataclass
class Context:
    """What an app knows about its run and its node.

    There is one for each pair of run and node; no run sees another run's.

    Attributes:
        run_id: the run.
        node_id: the node; 1 for a ServerApp.
        node_config: given when the node was started; the same in every run.
        state: kept between the messages of a run. A node's is never sent anywhere; a ServerApp's is saved in Redis.
        run_config: given when the run was started; the same on every node.
    """

    run_id: int
    node_id: int
    node_config: UserConfig
    state: RecordSet
    run_config: UserConfig
    _is_cancelled: Callable[[], bool] = field(default=lambda: False, repr=False, compare=False)

    def cancelled(self) -> bool:
        """Return whether the result is no longer wanted: the message was cancelled, or the run is over.

        Cheap enough to call for every batch: it asks Redis at most once a second. Code that sees it may raise or
        return. In a process that the app forked, the answer is the last one from before the fork.
        """
        return self._is_cancelled()
