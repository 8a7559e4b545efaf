"""`brokerfl node`, `server`, `operator`, `observer`: how each party gets a login of its own, and loses it.

Owns these commands, which are the same for every role, and what they print. It must not know rights, or how Redis is
told of them.

A site makes its credentials, and an operator adds what the site asks for. No secret is in a file that one sends the
other.
"""

from pathlib import Path
from typing import Any

import click

from brokerfl.broker.accounts import Told
from brokerfl.broker.members import Office, read_members
from brokerfl.broker.rules import Role
from brokerfl.cli.configs import parse_labels
from brokerfl.cli.exits import Command, Group, say
from brokerfl.cli.grants import check_role, granted, office_of
from brokerfl.cli.options import FilePath, RedisOptions, Text, redis_options
from brokerfl.cli.tables import format_option, local_time, show, show_done, show_text, to_json
from brokerfl.common import CredentialsError, NodeNotFound
from brokerfl.common.credentials import (
    Credentials,
    check_name,
    fingerprint,
    grant_of,
    keep,
    read_credentials,
    read_request,
)
from brokerfl.common.credentials import to_json as json_of
from brokerfl.wire.member import Member, Record

_directory = click.option(
    "--dir",
    "folder",
    type=FilePath(exists=True, file_okay=False, path_type=Path),
    default=".",
    help="Where the files are. [default: the current directory]",
)

_trust = click.option(
    "--trust",
    type=Text(),
    multiple=True,
    metavar="NAME",
    help="A server whose runs the node serves; may be repeated. [default: all that there are]",
)

_sign = click.option(
    "--sign",
    type=FilePath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="For the first operator: the credentials to sign with. Redis is asked with the login of --redis-file or "
    "--credential-provider, which may do everything.",
)

_url = click.option(
    "--url",
    metavar="URL",
    help="Where the party finds Redis, without a login. [default: as this command does]",
)


def group_of(role: Role, what: str) -> click.Group:
    """Return the commands for one role.

    Args:
        role: the role.
        what: what has it, in words.
    """

    @click.group(role.value, cls=Group, help=f"Give {what} a login of its own, change it, and take it.")
    def group() -> None:
        pass

    for command in (_request(role, what), _add(role), _grant(role), _rotate(role), _revoke(role), _list(role)):
        group.add_command(command)
    return group


# At the site.


def _request(role: Role, what: str) -> click.Command:
    def request(name: str, folder: Path, label: tuple[str, ...] = ()) -> None:
        path = folder / f"{check_name(name)}.credentials"
        made = Credentials.new(role, name, parse_labels(label))
        keep(path, made)
        _ask(path, made)

    if role is Role.NODE:
        label = click.option(
            "--label",
            type=Text(),
            multiple=True,
            metavar="K=V",
            help="Label shown by `brokerfl nodes`; may be repeated.",
        )
        request = label(request)
    request = click.argument("name", type=Text())(_directory(request))
    return click.command(
        "request",
        cls=Command,
        help=f"Make the credentials of {what}, and a request to an operator.\n\n"
        f"NAME is what it is called among those of its role. This runs at the party's own site and needs no Redis: "
        f"NAME.credentials, the password and the private keys, stays there. NAME.request, without a secret, goes to an "
        f"operator, who answers with NAME.grant: put that beside the credentials.",
    )(request)


def _ask(path: Path, credentials: Credentials) -> None:
    asked = path.with_suffix(".request")
    content = keep(asked, credentials.request(), replace=True)
    show_text(
        f"{path} is secret: it stays here.\n"
        f"Send {asked} to an operator. Its fingerprint: {fingerprint(content)}\n"
        f"Put the answer at {grant_of(path)}."
    )


def _rotate(role: Role) -> click.Command:
    @click.command(cls=Command)
    @click.argument("name", type=Text())
    @_directory
    @redis_options
    @click.option("--finish", is_flag=True, help="For the operator: forget the former password of NAME.")
    def rotate(name: str, folder: Path, redis: RedisOptions, finish: bool) -> None:
        """Change the password of NAME without a gap.

        Without --finish, this runs at the party's own site and needs no Redis: NAME.credentials gets another password,
        and a new NAME.request goes to an operator, who adds it as the first one. From then on both passwords are valid,
        until the operator says --finish. The process that uses the credentials finds the new one by itself.
        """
        if finish:
            office = office_of(redis)
            member, told = office.finish(_found(office, role, name))
            _say_forgetful(told)
            show_text(f"{_called(member)} has one password, the newest.")
            return
        path = folder / f"{check_name(name)}.credentials"
        changed = read_credentials(path).rotated()
        check_role(changed, role, path)
        keep(path, changed, replace=True)
        _ask(path, changed)

    return rotate


def _add(role: Role) -> click.Command:
    def add(
        request: Path, redis: RedisOptions, url: str | None, trust: tuple[str, ...] = (), sign: Path | None = None
    ) -> None:
        asked, content = read_request(request)
        if asked.role != role:
            raise CredentialsError(f"{request} is of a {asked.role}: brokerfl {asked.role} add {request.name}")
        office = office_of(redis, sign)
        member, told = office.add(asked, list(trust) or None)
        grant = keep(grant_of(request), granted(office, member, redis, url), replace=True)
        _say_forgetful(told)
        show_text(
            f"{_called(member)} {'has a second password' if len(member.passwords) > 1 else 'is added'}"
            f" on {_counted(told.servers, 'server')}{_realms(office, member)}.\n"
            f"The fingerprint of the request, which its site knows: {fingerprint(content)}\n"
            f"Send {grant_of(request)} back. Its fingerprint: {fingerprint(grant)}"
        )

    add = _url(redis_options(add))
    if role is Role.NODE:
        add = _trust(add)
    if role is Role.OPERATOR:
        add = _sign(add)
    add = click.argument("request", type=FilePath(exists=True, dir_okay=False, path_type=Path))(add)
    return click.command(
        "add",
        cls=Command,
        help=f"Give a {role} the login that it asks for in the file REQUEST.\n\n"
        "The answer, without a secret, is written beside it: send that back. A second request of the same party adds a "
        "second password.",
    )(add)


def _grant(role: Role) -> click.Command:
    def grant(name: str, redis: RedisOptions, url: str | None, trust: tuple[str, ...] = ()) -> None:
        office = office_of(redis)
        member, told = office.trust(_found(office, role, name), list(trust) or None)
        _say_forgetful(told)
        show_text(json_of(granted(office, member, redis, url)).decode().rstrip("\n"))

    grant = _url(redis_options(grant))
    if role is Role.NODE:
        grant = click.option(
            *("--trust",),
            type=Text(),
            multiple=True,
            metavar="NAME",
            help="A server whose runs the node serves from now on, and no other; may be repeated. [default: as before]",
        )(grant)
    grant = click.argument("name", type=Text())(grant)
    return click.command(
        "grant",
        cls=Command,
        help=f"Print the grant of the {role} NAME again, and tell all servers of its user again.\n\n"
        "A server that is new, or has forgotten its users, hears of this one.",
    )(grant)


def _revoke(role: Role) -> click.Command:
    @click.command(cls=Command)
    @click.argument("name", type=Text())
    @redis_options
    @format_option
    def revoke(name: str, redis: RedisOptions, form: str) -> None:
        """Take the login of NAME: its connections end at once, and a restart of Redis does not bring it back.

        A node is forgotten, and runs that wait for it get Error 5. If a server does not answer, do it again.
        """
        office = office_of(redis)
        known = office.find(role, check_name(name))
        told = office.revoke(role, name)
        _say_forgetful(told)
        text = f"The {role} {name} is revoked on {_counted(told.servers, 'server')}."
        if role is Role.SERVER and known is not None:
            text += f" Its runs stay until they are stopped: their ids begin with {known.member.realm}."
        if known is None:
            text += " It was no member."
        show_done({"role": role.value, "name": name, "state": "revoked"}, text, form)

    return revoke


def _list(role: Role) -> click.Command:
    @click.command("list", cls=Command, help=f"List the {role}s that have a login of their own.")
    @redis_options
    @format_option
    def list_(redis: RedisOptions, form: str) -> None:
        records = read_members(redis.connect())
        servers = {each.member.realm: each.member.name for each in records if each.member.role == Role.SERVER}
        rows = [_row(record, role, servers, form) for record in records if record.member.role == role]
        if form == "json":
            show_text(to_json(rows))
        else:
            show(rows, form, f"no {role} has a login of its own; brokerfl {role} add REQUEST gives one")

    return list_


def _row(record: Record, role: Role, servers: dict[str, str], form: str) -> dict[str, Any]:
    member = record.member
    trusted = [servers.get(realm, realm) for realm in member.realms]
    of_role: dict[Role, dict[str, Any]] = {
        Role.NODE: {
            "node": str(member.node_id),
            "trusts": trusted if form == "json" else ",".join(trusted),
            "labels": dict(member.labels),
        },
        Role.SERVER: {"realm": member.realm},
    }
    return {
        "name": member.name,
        "added": local_time(member.added_at),
        "passwords": len(member.passwords),
        "signed": record.is_genuine,
        "user": member.user,
        **of_role.get(role, {}),
        **({"ed25519": member.ed25519, "x25519": member.x25519, "by": record.operator} if form == "json" else {}),
    }


def _found(office: Office, role: Role, name: str) -> Member:
    record = office.find(role, name)
    if record is None or not record.member.passwords:
        raise NodeNotFound(f"there is no {role} {name}: brokerfl {role} list shows those that there are")
    return record.member


def _called(member: Member) -> str:
    return f"The {member.role} {member.name}" + (f" ({member.node_id})" if member.node_id else "")


def _realms(office: Office, member: Member) -> str:
    if member.realm:
        return f", with runs whose ids begin with {member.realm}"
    if member.role != Role.NODE:
        return ""
    names = [owner.name for owner in office.owners(member)]
    return f"; it trusts {', '.join(names)}" if names else "; it trusts no server yet"


def _counted(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def _say_forgetful(told: Told) -> None:
    if told.forgetful:
        say(
            f"Warning: {', '.join(told.forgetful)} has no ACL file and forgets this when it is restarted: set aclfile "
            "in its configuration"
        )


node = group_of(Role.NODE, "a node")
server = group_of(Role.SERVER, "whoever runs ServerApps")
operator = group_of(Role.OPERATOR, "an operator")
observer = group_of(Role.OBSERVER, "whoever only looks")
