"""The settings of a server: which of them endanger runs.

Owns what is wrong with them, and what to do, in words. It must not know when that is said.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from redis.exceptions import ResponseError

from brokerfl.broker.capacity import memory_in
from brokerfl.broker.embedded import PACKAGE, SCRATCH
from brokerfl.common.text import sized

#: The share of ``maxmemory`` from which on a server has too little memory.
SCARCE = 0.9


class Saving(Enum):
    """What a server writes to its disk."""

    APPENDS = "an append-only file"
    SNAPSHOTS = "snapshots (RDB)"
    UNKNOWN = "no append-only file, and perhaps no snapshots"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Objection:
    """What is wrong, and what to do about it."""

    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}: {self.advice}"


def saving_of(redis: Any, info: Mapping[str, Any]) -> Saving:
    """Return what a server writes to its disk. It is asked for its configuration only if it has no append-only file.

    Args:
        redis: a client of redis-py; None if it may not be asked.
        info: its sections "server" and "persistence".

    Raises:
        RedisError: it does not answer.
    """
    if info.get("aof_enabled", 1):
        return Saving.APPENDS
    try:
        save = redis.config_get("save")["save"] if redis is not None else None
    except (ResponseError, KeyError):  # an ACL may forbid it
        save = None
    if save is None:
        return Saving.UNKNOWN
    return Saving.SNAPSHOTS if save else Saving.NOTHING


def is_embedded(redis: Any, info: Mapping[str, Any]) -> bool:
    """Return whether brokerfl itself started this server, without a file on purpose."""
    if PACKAGE in str(info.get("executable", "")):
        return True
    if redis is None:
        return False
    try:
        return Path(redis.config_get("dir")["dir"]).name.startswith(SCRATCH)
    except (ResponseError, KeyError):
        return False


def object_to_saving(saving: Saving, place: str) -> Objection | None:
    """Return what is wrong with what a server writes to its disk."""
    advice = "set appendonly yes in its configuration, and CONFIG SET appendonly yes until its next restart"
    if saving is Saving.NOTHING:
        return Objection(f"{place} keeps nothing on disk, so a restart of it loses all runs", advice)
    if saving is Saving.UNKNOWN:
        return Objection(
            f"{place} keeps no append-only file, so a restart of it loses what came after its last snapshot, or all "
            "runs",
            advice,
        )
    return None


def object_to_policy(info: Mapping[str, Any], place: str) -> Objection | None:
    """Return what is wrong with what a full server does; ``info`` is its section "memory"."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    return Objection(f"maxmemory-policy of {place} is {policy}", "Redis may evict messages. Set it to noeviction.")


def object_to_memory(info: Mapping[str, Any], place: str) -> Objection | None:
    """Return what is wrong with how much memory a server has left; ``info`` is its section "memory"."""
    memory = memory_in(place, info)
    if not memory.most or memory.used <= memory.most * SCARCE:
        return None
    return Objection(
        f"{place} has too little memory: {sized(memory.used)} of {sized(memory.most)} are in use",
        "stop runs that nobody needs (brokerfl runs), or raise its maxmemory",
    )


def objections(redis: Any, info: Mapping[str, Any], place: str, *, may_restart: bool) -> list[Objection]:
    """Return what is wrong with the settings of a server.

    Args:
        redis: a client of redis-py; None if it may not be asked for its configuration.
        info: its sections "server", "memory" and "persistence"; empty if it may not be asked.
        place: what it is called.
        may_restart: no replica takes its place.

    Raises:
        RedisError: it does not answer.
    """
    found = [object_to_policy(info, place), object_to_memory(info, place)]
    if may_restart:
        objection = object_to_saving(saving_of(redis, info), place)
        if objection is not None and not is_embedded(redis, info):
            found.append(objection)
    return [each for each in found if each is not None]


def object_to_users(redis: Any, prefix: str, *, appends: bool) -> Objection | None:
    """Return what is wrong with the users of a server.

    Args:
        redis: a client of redis-py, of a user who may ask.
        prefix: of keys, and of users that operators add.
        appends: it has an append-only file.

    Raises:
        ResponseError: it may not be asked.
    """
    key = f"{prefix}:sample"
    samples: tuple[tuple[str, ...], ...] = (("SET", key, "v"), ("HSET", key, "f", "v"), ("XADD", key, "*", "f", "v"))
    allowed = [redis.execute_command("ACL DRYRUN", "default", *command) for command in samples]
    users = [user if isinstance(user, str) else user.decode() for user in redis.execute_command("ACL USERS")]
    added = [user for user in users if user.startswith(f"{prefix}:")]
    if appends and any(answer not in (True, b"OK", "OK") for answer in allowed):
        return Objection(
            "a restart of Redis may lose every transaction in its append-only file: many servers load it with the "
            "rights of the user default, which lacks them",
            "turn default off, but leave it its rights: ACL SETUSER default off resetpass ~* &* +@all",
        )
    if added and not redis.config_get("aclfile").get("aclfile"):
        return Objection(
            f"no ACL file: a restart of Redis forgets what was done to its {len(added)} users, also who was revoked",
            "set aclfile in its configuration",
        )
    return None
