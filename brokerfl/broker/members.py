"""The members: who was given a login, and what it takes to give, change and take one.

Owns `P:members`, and the order of these steps. It must not know the files of a party, or what is printed.

    add      user, then registry, then record: a record says that everything before it was done
    revoke   user, connections, registry, keys, bells, then record: what was interrupted is done again
"""

import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from logging import WARNING

from brokerfl.broker.accounts import Told, close_user, delete_user, set_user
from brokerfl.broker.connection import Connection
from brokerfl.broker.enrolment import enrol, expel
from brokerfl.broker.failure import map_errors
from brokerfl.broker.identity import ensure_identity
from brokerfl.broker.keys import REALM_DIGITS
from brokerfl.broker.nodes import node_id_of
from brokerfl.broker.rules import Role, acl_of
from brokerfl.common import ConfigError, CredentialsError, FrameError, log
from brokerfl.common.credentials import Credentials, Party, Request
from brokerfl.common.keypair import KeyPairs
from brokerfl.wire.member import Member, Record, decode_member, encode_member, realm_in

#: The realm of no run: a node that trusts nobody yet has rights to it, because none would mean all.
NOBODY = "9" * REALM_DIGITS


@dataclass(frozen=True)
class Office:
    """An operator at work.

    Attributes:
        connection: with an operator's rights.
        keys: its key pairs, to sign with.
    """

    connection: Connection
    keys: KeyPairs

    def records(self) -> list[Record]:
        """Return all members, in the order in which they were added."""
        return read_members(self.connection)

    def find(self, role: str, name: str) -> Record | None:
        """Return one member; None if it has no record."""
        return read_member(self.connection, role, name)

    def enter(self, credentials: Credentials) -> Member:
        """Return the record of this operator, which is entered if it is missing: nobody added the first one."""
        known = self.find(Role.OPERATOR, credentials.name)
        if known is not None:
            return known.member
        first = replace(first_operator(credentials, self.connection.keys.prefix), added_at=self.connection.read_time())
        self.note(first)
        return first

    def add(self, request: Request, trusted: Iterable[str] | None) -> tuple[Member, Told]:
        """Give a party what it asks for: a new login, or one more password for the login that it has.

        Args:
            request: what it asks for.
            trusted: the names of the servers that a new node trusts; None for all that there are.

        Raises:
            CredentialsError: another party has this name, or the request was changed.
            ConfigError: there is no such server.
            RedisUnreachable, RedisAuthError: as for `accounts.set_user`.
        """
        request.check()
        known = self.find(request.role, request.name)
        if known is not None and known.member.passwords:
            return self._with_password(known.member, request)
        connection = self.connection
        role, prefix = Role(request.role), connection.keys.prefix
        is_node = role is Role.NODE
        member = Member(
            role=request.role,
            name=request.name,
            user=user_of(prefix, request.role, request.name),
            ed25519=request.ed25519,
            x25519=request.x25519,
            passwords=(request.password,),
            added_at=connection.read_time(),
            prefix=prefix,
            node_id=node_id_of(prefix, request.name) if is_node else 0,
            labels=dict(request.labels) if is_node else {},
            realm=(known.member.realm if known else self._free_realm()) if role is Role.SERVER else "",
            realms=self._realms(trusted) if is_node else (),
        )
        told = self._give(member)
        return member, told

    def trust(self, member: Member, trusted: Iterable[str] | None) -> tuple[Member, Told]:
        """Let a node trust these servers and no others, and tell Redis of its user again; see `add`."""
        changed = replace(member, realms=self._realms(trusted)) if trusted is not None else member
        return changed, self._give(changed)

    def finish(self, member: Member) -> tuple[Member, Told]:
        """Let a member have its newest password only."""
        changed = replace(member, passwords=member.passwords[-1:])
        return changed, self._give(changed)

    def revoke(self, role: str, name: str) -> Told:
        """Take a member's login and, of a node, everything that Redis has of it. It may be done again.

        The record of a server stays, without passwords: its runs are in its realm.

        Raises:
            RedisUnreachable, RedisAuthError: as for `accounts.set_user`; the record stays as it is.
        """
        connection, keys = self.connection, self.connection.keys
        user = user_of(keys.prefix, role, name)
        told = close_user(connection, user)
        if role == Role.NODE:
            expel(connection, node_id_of(keys.prefix, name))
        delete_user(connection, user)
        if role == Role.SERVER:
            known = self.find(role, name)
            if known is not None:
                self.note(replace(known.member, passwords=()))
            return told
        with map_errors(connection.url, keys.members):
            connection.at(keys.members).redis.hdel(keys.members, _field(role, name))
        return told

    def owners(self, member: Member) -> tuple[Party, ...]:
        """Return the servers that a node trusts."""
        servers = [each.member for each in self.records() if each.member.role == Role.SERVER]
        return tuple(party_of(each) for each in servers if each.realm in member.realms)

    def operators(self) -> tuple[Party, ...]:
        """Return all operators, by whose keys the list of members is signed."""
        return tuple(party_of(each.member) for each in self.records() if each.member.role == Role.OPERATOR)

    def note(self, member: Member) -> None:
        """Write a member's record."""
        keys = self.connection.keys
        with map_errors(self.connection.url, keys.members):
            record = encode_member(member, self.keys)
            self.connection.at(keys.members).redis.hset(keys.members, _field(member.role, member.name), record)

    def _with_password(self, member: Member, request: Request) -> tuple[Member, Told]:
        if request.ed25519 != member.ed25519:
            raise CredentialsError(
                f"there is a {member.role} {member.name} with other keys: another party took this name, or it has new "
                f"credentials; `brokerfl {member.role} revoke {member.name}` takes its login first"
            )
        passwords = (*(each for each in member.passwords if each != request.password), request.password)[-2:]
        changed = replace(member, passwords=passwords)
        return changed, self._give(changed)

    def _give(self, member: Member) -> Told:
        ensure_identity(self.connection)  # nodes and ServerApps may not make it
        told = set_user(self.connection, member.user, lambda names: rules_of(member, self.connection, names=names))
        if member.role == Role.NODE:
            enrol(self.connection, member.node_id, member.name, member.labels)
        self.note(member)
        return told

    def _realms(self, trusted: Iterable[str] | None) -> tuple[str, ...]:
        members = [each.member for each in self.records() if each.member.role == Role.SERVER]
        servers = {each.name: each.realm for each in members if each.passwords}
        names = list(servers) if trusted is None else list(trusted)
        for name in names:
            if name not in servers:
                there = ", ".join(servers) or "there is none yet"
                raise ConfigError(f"--trust {name}: no server is called so ({there})")
        return tuple(servers[name] for name in names)

    def _free_realm(self) -> str:
        """Return a realm that no server has, or had: the runs of one that was revoked are in its realm."""
        taken = {NOBODY, *(each.member.realm for each in self.records())}
        first = 10 ** (REALM_DIGITS - 1)
        free = sorted({str(number) for number in range(first, 10 * first)} - taken)
        if not free:
            raise ConfigError("every realm is taken: revoke servers that are not used, or choose another --prefix")
        return secrets.choice(free)


def user_of(prefix: str, role: str, name: str) -> str:
    """Return the name of a member's user."""
    return f"{prefix}:{role}:{name}"


def rules_of(member: Member, connection: Connection, *, names: bool = True) -> list[str]:
    """Return the rules of a member's user for ACL SETUSER, with its passwords; for ``names`` see `acl_of`."""
    role = Role(member.role)
    passwords = [f"#{each}" for each in member.passwords]
    if role is Role.NODE:
        realms = member.realms or (NOBODY,)
        allowed = acl_of(role, connection.keys, node_id=member.node_id, realms=realms, supports_client_names=names)
    else:
        allowed = acl_of(role, connection.keys, realm=member.realm, supports_client_names=names)
    return ["on", *passwords, *allowed]


def first_operator(credentials: Credentials, prefix: str) -> Member:
    """Return the member that these credentials of an operator make."""
    asked = credentials.request()
    return Member(
        role=Role.OPERATOR,
        name=asked.name,
        user=user_of(prefix, Role.OPERATOR, asked.name),
        ed25519=asked.ed25519,
        x25519=asked.x25519,
        passwords=(asked.password,),
        added_at=0.0,
        prefix=prefix,
    )


def party_of(member: Member) -> Party:
    """Return the public keys of a member."""
    return Party(member.name, member.ed25519, member.x25519, member.realm)


def read_members(connection: Connection) -> list[Record]:
    """Return all members, in the order in which they were added. What is malformed is left out, with a warning.

    Raises:
        MissingExtra: cryptography is not installed.
    """
    key = connection.keys.members
    with map_errors(connection.url, key):
        found = connection.at(key).redis.hgetall(key)
    records = [record for field, data in found.items() if (record := _decoded(key, field, data)) is not None]
    return sorted(records, key=lambda record: record.member.added_at)


def read_realms(connection: Connection) -> tuple[str, ...]:
    """Return the realms that there are, also of servers that were revoked."""
    key = connection.keys.members
    with map_errors(connection.url, key):
        found = connection.at(key).redis.hgetall(key)
    realms = set[str]()
    for data in found.values():
        with suppress(FrameError):
            realms.add(realm_in(data))
    return tuple(sorted(realms - {""}))


def read_member(connection: Connection, role: str, name: str) -> Record | None:
    """Return one member; None if it has no record, or a malformed one."""
    key, field = connection.keys.members, _field(role, name)
    with map_errors(connection.url, key):
        data = connection.at(key).redis.hget(key, field)
    return None if data is None else _decoded(key, field.encode(), data)


def _field(role: str, name: str) -> str:
    return f"{role}/{name}"


def _decoded(key: str, field: bytes, data: bytes) -> Record | None:
    try:
        record = decode_member(data)
        if _field(record.member.role, record.member.name).encode() == field:
            return record
        raise FrameError("it is the record of another member")
    except FrameError as error:
        log(WARNING, "%s in %s is not used: %s", field.decode(errors="backslashreplace"), key, error)
        return None
