"""The rules: which role may send which command for which key, and why.

Owns that table. The ACL rules of users, the table in docs/security.md and the attacks in the tests are made of it. It
must not know users, passwords, or how a server is told.

A row is one selector of an ACL, so a command with several keys needs all of them in one row. ``P``, ``N``, ``R``, ``c``
and ``D`` in the name of a key are those of `keys`. A node has its own ``N`` and the runs of the realms that it trusts;
a ServerApp has every ``N`` and the runs of its realm; the others have all. ``[:r]`` is the realm, if there is one: what
a realm's ServerApps share is apart from what those of others share.

Whoever may write a stream can spoil it, with the last possible id or ``MAXLEN 0``, whatever else a rule says: an ACL
knows no options. So a role writes only streams that are its own, except doorbells and bells, which carry no
information: see `mend`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from brokerfl.broker.keys import REALM_DIGITS, RUN_DIGITS, Keys, check_realm


class Role(StrEnum):
    """What a user of Redis is to brokerfl."""

    NODE = "node"
    SERVER = "server"
    OPERATOR = "operator"
    OBSERVER = "observer"


@dataclass(frozen=True)
class Right:
    """One row: ``role`` may send each of ``commands``, for each of ``keys``, because of ``why``."""

    role: Role
    commands: tuple[str, ...]
    keys: tuple[str, ...]
    why: str


#: The commands that read a value, and those that change one; some do both. The others only ask whether a key is there.
_READ = {
    "get", "getrange", "mget", "strlen", "pttl", "hget", "hgetall", "hkeys", "hmget", "hvals", "smembers", "smismember",
    "sismember", "sscan", "scard", "lrange", "zmscore", "zrange", "zrangebyscore", "xrange", "xread", "xreadgroup",
    "xpending", "xinfo|stream", "xinfo|groups", "memory|usage",
}  # fmt: skip
_WRITE = {
    "set", "pexpire", "unlink", "hset", "hsetnx", "hdel", "sadd", "srem", "rpush", "ltrim", "zadd", "zrem",
    "zremrangebyscore", "xadd", "xack", "xdel", "xtrim", "xgroup|create", "xreadgroup",
}  # fmt: skip

#: What every role may send: connections, transactions and the clock. None of it has a key.
COMMON = ("hello", "auth", "ping", "time", "multi", "exec", "discard", "unwatch", "client|setname", "cluster|slots")

#: What a role may send besides, that has no key either.
WITHOUT_KEYS: Mapping[Role, tuple[str, ...]] = {
    Role.NODE: (),
    Role.SERVER: ("info", "wait"),
    Role.OBSERVER: ("info",),
    Role.OPERATOR: (
        "info", "acl|setuser", "acl|deluser", "acl|getuser", "acl|list", "acl|users", "acl|log", "acl|genpass",
        "acl|save", "acl|whoami", "acl|dryrun", "client|kill", "client|list", "config|get", "cluster|nodes",
    ),
}  # fmt: skip

_MEND = ("watch", "type", "pttl", "xrange", "unlink", "xgroup|create", "pexpire")

_OF_RUN = ("P:{run:R}:*", "P:bell:{run:R}")

_NODE = (
    Right(
        Role.NODE,
        ("xreadgroup", "xack", "xdel", "xpending", "xinfo|groups", "xinfo|stream", "exists", "xtrim", "xadd", *_MEND),
        ("P:{run:R}:in:N", "P:{N}:ctl", "P:{N}:ctl[:r]"),
        "reads its messages and its doorbell in one command, and removes what it has answered",
    ),
    Right(
        Role.NODE,
        ("xadd", "xdel", *_MEND),
        ("P:{run:R}:out:N", "P:{N}:data:R"),
        "publishes its replies, and replaces these streams if they take no more",
    ),
    Right(Role.NODE, ("xadd",), ("P:bell:{run:R}",), "rings, so that a run with many nodes notices a reply at once"),
    Right(Role.NODE, ("get",), ("P:blob:R:c:{D}",), "reads what a run broadcasts"),
    Right(
        Role.NODE,
        ("get", "set", "pexpire", "pttl", "watch"),
        ("P:{N}:lease",),
        "says that it is online",
    ),
    Right(
        Role.NODE,
        ("unlink",),
        ("P:{N}:lease", "P:{N}:info", "P:{N}:runs[:r]", "P:{N}:ctl", "P:{N}:ctl[:r]"),
        "says that it has left, and an unnamed node leaves nothing",
    ),
    Right(
        Role.NODE,
        ("hget", "hset", "hsetnx", "hexists", "hgetall", "hkeys", "hstrlen", "hmget", "hdel", "pexpire"),
        ("P:{N}:info", "P:{N}:runs[:r]"),
        "says what it does, and reads which runs there are",
    ),
    Right(Role.NODE, ("getrange",), ("P:id",), "notices that Redis lost everything"),
    Right(Role.NODE, ("sismember",), ("P:nodes",), "learns whether it is registered"),
    Right(Role.NODE, ("zmscore",), ("P:runs[:r]",), "learns whether a run that it knows has ended"),
)

_SERVER = (
    Right(
        Role.SERVER,
        (
            "watch",
            "exists",
            "get",
            "set",
            "getrange",
            "pttl",
            "pexpire",
            "unlink",
            "type",
            "hset",
            "hget",
            "hdel",
            "hgetall",
            "hkeys",
            "hvals",
            "hmget",
            "hexists",
            "hstrlen",
            "sadd",
            "srem",
            "smembers",
            "scard",
            "rpush",
            "ltrim",
            "lrange",
            "xadd",
            "xack",
            "xdel",
            "xlen",
            "xrange",
            "xread",
            "xtrim",
            "xgroup|create",
            "xpending",
            "memory|usage",
        ),
        _OF_RUN,
        "owns its runs: books, inboxes, outboxes, bell",
    ),
    Right(
        Role.SERVER,
        ("set", "get", "strlen", "exists", "pexpire", "unlink", "xadd"),
        ("P:blob:R:c:{D}",),
        "broadcasts models, once for all nodes",
    ),
    Right(
        Role.SERVER,
        ("xgroup|create", "xrange", "xdel", "xtrim", "xlen", "pexpire", "unlink", "memory|usage"),
        ("P:{N}:data:R",),
        "reads large replies, and deletes them",
    ),
    Right(Role.SERVER, ("xadd",), ("P:{N}:ctl[:r]",), "rings at a node that it wrote to"),
    Right(Role.SERVER, ("hset", "hdel", "pexpire"), ("P:{N}:runs[:r]",), "tells a node of its run"),
    Right(
        Role.SERVER,
        ("exists", "mget", "hstrlen", "hget", "hmget"),
        ("P:{N}:info", "P:{N}:lease"),
        "knows who is online, and what nodes are called",
    ),
    Right(Role.SERVER, ("sscan", "smismember"), ("P:nodes",), "knows which nodes there are"),
    Right(
        Role.SERVER,
        ("watch", "zadd", "zrem", "zrange", "zrangebyscore", "zremrangebyscore", "zmscore"),
        ("P:runs[:r]",),
        "enters its runs in the index",
    ),
    Right(Role.SERVER, ("getrange",), ("P:id",), "notices that Redis lost everything"),
    Right(Role.SERVER, ("hget", "hgetall"), ("P:members",), "knows the public keys of nodes, signed by an operator"),
)

_SEES = (
    (
        ("get", "hget", "hmget", "scard"),
        (
            "P:{run:R}:meta", "P:{run:R}:nodes", "P:{run:R}:owner", "P:{run:R}:lease", "P:{run:R}:status",
            "P:{run:R}:past", "P:{run:R}:curves",
        ),
        "shows what runs are at",
    ),
    (("xrange",), ("P:{run:R}:events", "P:{run:R}:log"), "shows what happened, and the log"),
    (("smembers", "hvals"), ("P:{run:R}:nodes", "P:{run:R}:blobs"), "knows which streams and chunks a run has"),
    (
        ("memory|usage", "xlen", "strlen"),
        ("P:{run:R}:*", "P:bell:{run:R}", "P:{N}:data:R", "P:blob:R:c:{D}"),
        "shows how many bytes a run holds",
    ),
    (("exists", "mget", "get", "hget", "hmget", "hstrlen"), ("P:{N}:info", "P:{N}:lease"), "shows what nodes do"),
    (("zrange", "zrangebyscore", "zmscore"), ("P:runs[:r]",), "lists runs"),
    (("sscan", "smismember", "sismember"), ("P:nodes",), "lists nodes"),
    (("getrange",), ("P:id",), "shows which data set this is"),
    (("hgetall",), ("P:members",), "knows which realms there are"),
)  # fmt: skip

_OBSERVER = tuple(Right(Role.OBSERVER, *row) for row in _SEES)

_STOPS = "drains and stops runs, and deletes what is left of them"

_OPERATOR = (
    *(Right(Role.OPERATOR, *row) for row in _SEES),
    Right(Role.OPERATOR, ("hvals", "hgetall"), ("P:{run:R}:ledger",), "cancels messages, and stops runs"),
    Right(Role.OPERATOR, ("watch", "get", "pttl", "set", "pexpire", "unlink", "hset", "sadd", "xadd"), _OF_RUN, _STOPS),
    Right(
        Role.OPERATOR,
        ("watch", "exists", "get", "unlink", "hexists", "hset", "hdel", "xadd", "pttl"),
        ("P:{N}:*",),
        "pauses nodes, and forgets them",
    ),
    Right(Role.OPERATOR, ("unlink",), ("P:blob:R:c:{D}",), "deletes what a stopped run broadcast"),
    Right(Role.OPERATOR, ("sadd", "srem", "unlink"), ("P:nodes",), "registers nodes, and forgets them"),
    Right(
        Role.OPERATOR,
        ("watch", "zadd", "zrem", "zremrangebyscore", "unlink"),
        ("P:runs[:r]",),
        "notes in the index what has ended, and tidies it",
    ),
    Right(Role.OPERATOR, ("set", "unlink"), ("P:id",), "makes the data set that nodes register in"),
    Right(Role.OPERATOR, ("hget", "hgetall", "hset", "hdel"), ("P:members",), "adds members, and revokes them"),
    Right(
        Role.OPERATOR, ("hkeys", "hset", "pexpire"), ("P:{N}:info", "P:{N}:runs[:r]"), "adds nodes, and revokes them"
    ),
)

_EVERYBODY = tuple(
    Right(role, ("pexpire",), ("P:probe:{P:id}",), "asks whether Redis takes writes, with a key that nobody can make")
    for role in Role
)

#: Everything that is allowed, besides `COMMON` and `WITHOUT_KEYS`. What is needed most often comes first.
RIGHTS: tuple[Right, ...] = (*_NODE, *_SERVER, *_OBSERVER, *_OPERATOR, *_EVERYBODY)

#: In a pattern: any id, and any realm.
_ANY, _ANY_REALM = "[0-9]*", "?" * REALM_DIGITS


def allows(role: Role | None, command: str, key: str = "") -> bool:
    """Return whether a role may send a command, for a key of the table if it has one; None may do everything."""
    if role is None or command in COMMON or command in WITHOUT_KEYS[role]:
        return True
    return any(right.role is role and command in right.commands and key in right.keys for right in RIGHTS)


def acl_of(
    role: Role,
    keys: Keys,
    *,
    node_id: int | None = None,
    realm: str = "",
    realms: tuple[str, ...] = (),
    supports_client_names: bool = True,
) -> list[str]:
    """Return the rules for ACL SETUSER, without the user's name, ``on`` and passwords.

    On a Cluster each server needs the user, replicas as well: ACLs are not replicated.

    Args:
        role: of the user.
        keys: the keys under the prefix.
        node_id: the id of a node.
        realm: the realm of a ServerApp's runs; "" for all runs.
        realms: the realms whose runs a node serves; none for all runs.
        supports_client_names: the server knows CLIENT SETINFO, as Redis 7.2 and Valkey do.

    Raises:
        ConfigError: a node without an id, or what is no realm.
        ValueError: an id or a realm for a role that has none.
    """
    if (node_id is not None) != (role is Role.NODE):
        raise ValueError("a node has an id, and nobody else")
    if (realm and role is not Role.SERVER) or (realms and role is not Role.NODE):
        raise ValueError("a ServerApp has a realm, a node realms, and nobody else")
    for each in (*realms, *([realm] if realm else ())):
        check_realm(each)
    without_keys = (*COMMON, *(["client|setinfo"] if supports_client_names else []), *WITHOUT_KEYS[role])
    trusted = realms or (realm,) if role in (Role.NODE, Role.SERVER) else ("", _ANY_REALM)
    return [
        "resetchannels",
        "-@all",
        *(f"+{command}" for command in without_keys),
        *(_selector(right, keys, node_id, trusted) for right in RIGHTS if right.role is role),
    ]


def _selector(right: Right, keys: Keys, node_id: int | None, realms: Sequence[str]) -> str:
    mode = mode_of(right.commands)
    found = dict.fromkeys(pattern for key in right.keys for pattern in patterns(key, keys, node_id, realms))
    return f"({' '.join([*(f'+{command}' for command in right.commands), *(f'{mode}~{each}' for each in found)])})"


def mode_of(commands: Iterable[str]) -> str:
    """Return what these commands do to a key, as an ACL says it: ``%R`` read, ``%W`` write, or ``%RW``."""
    asked = {*commands}
    mode = ("R" if asked & _READ or not asked & _WRITE else "") + ("W" if asked & _WRITE else "")
    return f"%{mode}"


def patterns(key: str, keys: Keys, node_id: int | None = None, realms: Iterable[str] = ("",)) -> list[str]:
    """Return the patterns of an ACL that a key of the table stands for: one for each realm."""
    node, rest = _ANY if node_id is None else str(node_id), "?" * (RUN_DIGITS - REALM_DIGITS)
    return [
        _filled(key, realm, {
            "P": keys.prefix,
            "N": node,
            "R": realm + rest if realm.isdecimal() else _ANY,
            "c": _ANY,
            "D": "*",
        })
        for realm in realms
    ]  # fmt: skip


def sample(key: str, keys: Keys, node_id: int = 0, realm: str = "") -> str:
    """Return a key that a key of the table stands for."""
    run = realm.ljust(RUN_DIGITS, "0") if realm else "0"
    return _filled(key, realm, {"P": keys.prefix, "N": str(node_id), "R": run, "c": "1", "D": "0" * 64}).replace(
        "*", "x"
    )


def _filled(key: str, realm: str, values: Mapping[str, str]) -> str:
    key = key.replace("[:r]", f":{realm}" if realm else "")
    return re.sub(r"\b[PNRcD]\b", lambda found: values[found[0]], key)
