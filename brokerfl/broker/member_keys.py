"""The public keys of nodes, as operators signed them: how a ServerApp knows whose a reply is.

Owns how old they may be. It must not know what is done with them.
"""

import threading
import time
from collections.abc import Collection, Iterator, Mapping

from brokerfl.broker.connection import Connection
from brokerfl.broker.members import read_members
from brokerfl.broker.rules import Role
from brokerfl.common.identity import KEY_BYTES, PublicKeys
from brokerfl.common.keypair import to_bytes

#: Seconds after which the list is read again, and for which a node that is not on it is not looked for again.
_LASTS, _PATIENCE = 60.0, 1.0


class NodeKeys(Mapping[int, PublicKeys]):
    """The keys of all nodes that an operator added and did not revoke. Safe to share between threads.

    Looking one up may raise RedisUnreachable, or RedisAuthError if this process may not read the list.

    Args:
        connection: to Redis.
        operators: the public Ed25519 keys, in base64, of whom the list is believed.
    """

    def __init__(self, connection: Connection, operators: Collection[str]) -> None:
        self._connection = connection
        self._operators = frozenset(operators)
        self._lock = threading.Lock()
        self._known: dict[int, PublicKeys] = {}
        self._read_at = -_LASTS

    def __getitem__(self, node_id: int) -> PublicKeys:
        with self._lock:
            age = time.monotonic() - self._read_at
            if age > _LASTS or (node_id not in self._known and age > _PATIENCE):
                self._known, self._read_at = self._read(), time.monotonic()
            return self._known[node_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def _read(self) -> dict[int, PublicKeys]:
        prefix = self._connection.keys.prefix
        return {
            record.member.node_id: PublicKeys(
                *(to_bytes(key, KEY_BYTES, "a node's key") for key in (record.member.ed25519, record.member.x25519))
            )
            for record in read_members(self._connection)
            if record.is_genuine
            and record.operator in self._operators
            and record.member.role == Role.NODE
            and record.member.prefix == prefix
        }
