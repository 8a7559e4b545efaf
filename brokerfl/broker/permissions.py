"""The permissions: whether this user may do what nodes and ServerApps do.

Owns which commands these are, and how that is asked without doing anything. It must not know who asks.

The commands are queued in a MULTI that is never executed: a server refuses one that an ACL forbids when it is queued.
"""

from redis.exceptions import NoPermissionError, RedisError

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.sockets import Command

#: For the name of a key: every command that brokerfl cannot do without, as docs/deploy.md lists them.
_COMMANDS = (
    "EXISTS {}", "TYPE {}", "UNLINK {}", "PTTL {}", "PEXPIRE {} 1", "GET {}", "GETRANGE {} 0 1", "SET {} v",
    "HSET {} f v", "HSETNX {} f v", "HGET {} f", "HMGET {} f", "HGETALL {}", "HVALS {}", "HEXISTS {} f",
    "HSTRLEN {} f", "HDEL {} f",
    "SADD {} m", "SREM {} m", "SCARD {}", "SMEMBERS {}", "SMISMEMBER {} m", "SSCAN {} 0", "RPUSH {} v",
    "LRANGE {} 0 1", "LTRIM {} 0 1", "ZADD {} 1 m", "ZMSCORE {} m", "ZRANGEBYSCORE {} 0 1",
    "ZREMRANGEBYSCORE {} 0 1", "XADD {} * f v", "XDEL {} 1-1", "XLEN {}", "XRANGE {} - +", "XREAD STREAMS {} 0",
    "XREADGROUP GROUP g c STREAMS {} >", "XGROUP CREATE {} g 0", "XACK {} g 1-1", "XPENDING {} g",
    "XINFO STREAM {}", "XTRIM {} MAXLEN 1", "PING", "TIME",
)  # fmt: skip


def refused_commands(connection: Connection) -> list[str]:
    """Return the names of the commands that this user may not use under the prefix.

    Raises:
        RedisUnreachable, RedisAuthError: Redis does not answer, or refuses even a MULTI.
    """
    key = connection.keys.identity
    commands: list[Command] = [tuple(text.format(key).split(" ")) for text in _COMMANDS]
    with map_errors(connection.url):
        sockets = connection.at(key).sockets
        socket = sockets.take()
        try:
            begun, *answers = sockets.talk(socket, [("MULTI",), *commands])
        finally:
            socket.was_cut = True  # its end is no outage
            sockets.drop(socket)  # which forgets what was queued
        if isinstance(begun, RedisError):
            raise begun
    refused = [
        command[0] for command, answer in zip(commands, answers, strict=True) if isinstance(answer, NoPermissionError)
    ]
    return list(dict.fromkeys(refused))
