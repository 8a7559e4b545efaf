"""The identity of a data set: a random text, by which a Redis that lost everything is told from one that did not.

Owns `P:id`. It must not know what is concluded from another identity.

It is written once. What others may write could make every node believe that its Redis was replaced.
"""

import secrets

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import foreign, map_errors
from brokerfl.broker.rules import allows
from brokerfl.common import RedisRefuses

#: Most bytes of the identity of a data set, which names a file of the node's journal. brokerfl writes 32. One more is
#: read, however large it is.
LONGEST_IDENTITY = 64


def read_identity(connection: Connection) -> bytes:
    """Return the identity of the data set; b"" if it has none."""
    key = connection.keys.identity
    with map_errors(connection.url, key):
        return bytes(connection.at(key).redis.getrange(key, 0, LONGEST_IDENTITY))


def ensure_identity(connection: Connection) -> bytes:
    """Return the identity of the data set; give it one if it has none.

    Raises:
        RedisRefuses: it has none, and this user may not give it one.
        ConfigError: brokerfl has not written it.
    """
    key, identity = connection.keys.identity, read_identity(connection)
    if not identity:
        if not allows(connection.role, "set", "P:id"):
            raise RedisRefuses(
                f"there is nothing at {connection.url} under the prefix {connection.keys.prefix!r} yet: the operator "
                "has to register its nodes"
            )
        with map_errors(connection.url, key):
            connection.at(key).redis.set(key, secrets.token_hex(16), nx=True)
        identity = read_identity(connection)
    if not 0 < len(identity) <= LONGEST_IDENTITY:
        raise foreign(connection.url, key)
    return identity
