"""The permissions: whether this user may do what its role does.

Owns how that is asked without doing anything. It must not know who asks, or which commands a role sends: see `rules`.

The commands are queued in a MULTI that is never executed: a server refuses one that an ACL forbids when it is queued.
"""

from collections.abc import Iterable, Iterator

from redis.exceptions import NoPermissionError, RedisError

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors
from brokerfl.broker.keys import Keys
from brokerfl.broker.rules import RIGHTS, Role, sample
from brokerfl.broker.sockets import Command

#: How each command is written for a key. Nothing of it is executed.
SAMPLES = {
    command.partition(" {}")[0].lower().replace(" ", "|"): command
    for command in (
        "EXISTS {}", "TYPE {}", "UNLINK {}", "PTTL {}", "PEXPIRE {} 1", "GET {}", "GETRANGE {} 0 1", "MGET {}",
        "SET {} v", "STRLEN {}", "HSET {} f v", "HSETNX {} f v", "HGET {} f", "HMGET {} f", "HGETALL {}", "HVALS {}",
        "HKEYS {}", "HEXISTS {} f", "HSTRLEN {} f", "HDEL {} f", "SADD {} m", "SREM {} m", "SCARD {}", "SMEMBERS {}",
        "SMISMEMBER {} m", "SISMEMBER {} m", "SSCAN {} 0", "RPUSH {} v", "LRANGE {} 0 1", "LTRIM {} 0 1",
        "ZADD {} 1 m", "ZMSCORE {} m", "ZRANGE {} 0 1", "ZRANGEBYSCORE {} 0 1", "ZREM {} m",
        "ZREMRANGEBYSCORE {} 0 1", "XADD {} * f v", "XDEL {} 1-1", "XLEN {}", "XRANGE {} - +", "XGROUP CREATE {} g 0",
        "XACK {} g 1-1", "XPENDING {} g", "XINFO STREAM {}", "XINFO GROUPS {}", "XTRIM {} MAXLEN 1",
        "MEMORY USAGE {}",
    )
} | {"xread": "XREAD STREAMS {} 0", "xreadgroup": "XREADGROUP GROUP g c STREAMS {} >", "watch": "WATCH {}"}  # fmt: skip

#: What brokerfl can do without, or a server does not queue.
_NOT_ASKED = {"memory|usage", "watch"}


def refused_commands(connection: Connection) -> list[str]:
    """Return the names of the commands that this user may not use: of its role or, if that is unknown, of all.

    What is a node's own is not asked for if a node asks.

    Raises:
        RedisUnreachable, RedisAuthError: Redis does not answer, or refuses even a MULTI.
    """
    asked = [*_asked(connection.keys, connection.role)]
    with map_errors(connection.url):
        sockets = connection.sockets
        socket = sockets.take()
        try:
            begun, *answers = sockets.talk(socket, [("MULTI",), *(command for _, command in asked)])
        finally:
            socket.was_cut = True  # its end is no outage
            sockets.drop(socket)  # which forgets what was queued
        if isinstance(begun, RedisError):
            raise begun
    answered = zip(asked, answers, strict=True)
    return list(dict.fromkeys(name for (name, _), answer in answered if isinstance(answer, NoPermissionError)))


def _asked(keys: Keys, role: Role | None) -> Iterator[tuple[str, Command]]:
    """Yield the names of commands, and how they are written."""
    if role is None:
        commands = {each for right in RIGHTS if right.role in (Role.NODE, Role.SERVER) for each in right.commands}
        yield from _written(commands, keys.identity)
        return
    realm = keys.realms[-1] if role in (Role.NODE, Role.SERVER) else ""  # these have rights to no others
    for right in RIGHTS:
        if right.role is role:
            for key in right.keys:
                if role is not Role.NODE or "N" not in key:
                    yield from _written(right.commands, sample(key, keys, realm=realm))


def _written(commands: Iterable[str], key: str) -> Iterator[tuple[str, Command]]:
    for name in SAMPLES:
        if name in commands and name not in _NOT_ASKED:
            yield name.replace("|", " ").upper(), tuple(SAMPLES[name].format(key).split(" "))
