"""Context: what an app is given beside the message. Owns its fields; must not know where state is kept."""

from dataclasses import dataclass

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
