"""The accounts: users of Redis, on every server that has one.

Owns how a server is told of users, and what is said of one that could not be told. It must not know what users may do,
or whose they are.

ACLs are not replicated: each primary and each replica has its own, and keeps it in its own ACL file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from brokerfl.broker.connection import Connection
from brokerfl.broker.failure import map_errors, meaning
from brokerfl.broker.sockets import Command
from brokerfl.broker.topology import Cluster, Sentinels, shown
from brokerfl.broker.url import Address, Kind
from brokerfl.common import RedisAuthError, RedisUnreachable

#: How an error begins of a server that knows a subcommand not.
_UNKNOWN = "Unknown command or category"


@dataclass
class Told:
    """What became of users.

    Attributes:
        servers: how many have heard of it.
        forgetful: those without an ACL file, which forget it with a restart.
    """

    servers: int = 0
    forgetful: list[str] = field(default_factory=list)


def set_user(connection: Connection, user: str, rules: Callable[[bool], Sequence[str]]) -> Told:
    """Give a user these rules and no others, on every server.

    Args:
        connection: of somebody who may.
        user: its name.
        rules: returns what ACL SETUSER takes; False is passed for a server that does not know CLIENT SETINFO.

    Raises:
        RedisUnreachable: a server did not answer; the others have the user.
        RedisAuthError: this user may not do that.
    """

    def tell(talk: "Talk") -> list[Any]:
        answers = talk([("ACL", "SETUSER", user, "reset", *rules(True)), _SAVE])
        if isinstance(answers[0], RedisError) and _UNKNOWN in str(answers[0]):
            answers = talk([("ACL", "SETUSER", user, "reset", *rules(False)), _SAVE])
        return answers

    return _everywhere(connection, tell)


def close_user(connection: Connection, user: str) -> Told:
    """Take every right from a user, note that, and end its connections, on every server: it cannot come back.

    Raises:
        RedisUnreachable, RedisAuthError: as for `set_user`.
    """
    closed = ("ACL", "SETUSER", user, "reset")  # which is off, without passwords and rights
    return _everywhere(connection, lambda talk: talk([closed, _SAVE, ("CLIENT", "KILL", "USER", user)]))


def delete_user(connection: Connection, user: str) -> Told:
    """Delete a user, on every server.

    Raises:
        RedisUnreachable, RedisAuthError: as for `set_user`.
    """
    return _everywhere(connection, lambda talk: talk([("ACL", "DELUSER", user), _SAVE]))


#: Sends commands to one server, and returns their answers and errors.
Talk = Callable[[Sequence[Command]], list[Any]]

_SAVE: Command = ("ACL", "SAVE")


def _everywhere(connection: Connection, tell: Callable[[Talk], list[Any]]) -> Told:
    told, silent = Told(), list[str]()
    clients = connection.clients
    assert clients is not None, "it was made by `connect`"
    for place in _servers(connection):

        def talk(commands: Sequence[Command], at: Address = place) -> list[Any]:
            return clients.tell(at, commands)

        try:
            answers = tell(talk)
        except RedisError as error:
            mapped = meaning(error, shown(place))
            if not isinstance(mapped, RedisUnreachable):
                raise mapped from error
            silent.append(f"{shown(place)} ({error})")
            continue
        _check(place, answers, told)
        told.servers += 1
    if silent:
        raise RedisUnreachable(
            f"not all servers were told: {', '.join(silent)}. Do it again when they answer, or see to it that they "
            f"never come back; {told.servers} others know it"
        )
    return told


def _check(place: Address, answers: Sequence[Any], told: Told) -> None:
    for answer in answers:
        if isinstance(answer, NoPermissionError | AuthenticationError):
            raise RedisAuthError(f"{shown(place)} refuses it: {answer}: only an operator may do that")
        if isinstance(answer, RedisError) and "ACL file" in str(answer):
            told.forgetful.append(shown(place))
        elif isinstance(answer, RedisError) and "No such client" not in str(answer):
            raise meaning(answer, shown(place))


def _servers(connection: Connection) -> list[Address]:
    """Return the addresses of all primaries and replicas."""
    clients = connection.clients
    assert clients is not None, "it was made by `connect`"
    url = clients.url
    with map_errors(url.shown):
        if url.kind is Kind.CLUSTER:
            return sorted(Cluster(url, clients.ask).servers())
        if url.kind is Kind.SENTINEL:
            sentinels = Sentinels(url, clients.ask)
            return sorted(sentinels.find().primaries | sentinels.replicas())
    return [*url.hosts[:1]]
