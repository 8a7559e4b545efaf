"""Protection by keys: makes the guards of a process that has an identity.

Owns that choice. It must not know where the keys come from.
"""

from brokerfl.common.identity import Identity, Trusted
from brokerfl.wire.guard import NodeGuard, Protection, RunGuard
from brokerfl.wire.node_guard import TrustingNode
from brokerfl.wire.owner_guard import OwnerGuard, Secrets, take_up
from brokerfl.wire.run import Run


class Protected(Protection):
    """Signs, and checks signatures; with ``seals`` also seals.

    Args:
        identity: who this process is.
        trusted: whom it trusts.
        seals: what a new run sends, learns and saves is sealed; a node serves only such runs.
    """

    needs_data_set = True

    def __init__(self, identity: Identity, trusted: Trusted, *, seals: bool = False) -> None:
        self._identity, self._trusted, self._seals = identity, trusted, seals

    def for_new(self, data_set: bytes, run_id: int) -> RunGuard:
        """Return the guard of a new run."""
        secrets = Secrets.new() if self._seals else None
        return OwnerGuard(self._identity, self._trusted, data_set, run_id, secrets)

    def for_old(self, data_set: bytes, run: Run) -> tuple[RunGuard, Run]:
        """Return the guard of a run that is resumed, and the run in clear. It is sealed if it was."""
        return take_up(self._identity, self._trusted, data_set, run)

    def for_node(self, node_id: int) -> NodeGuard:
        """Return the guard of a node."""
        return TrustingNode(node_id, self._identity, self._trusted, seals=self._seals)
