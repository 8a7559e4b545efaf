"""Requests, grants and records of members: what is signed is what was meant, and nothing else is taken."""

import json
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from brokerfl.common import ConfigError, CredentialsError, FrameError
from brokerfl.common.credentials import (
    Credentials,
    Grant,
    Party,
    Request,
    fingerprint,
    keep,
    read_credentials,
    read_grant,
    read_request,
)
from brokerfl.common.keypair import KeyPairs
from brokerfl.wire.frame import pack, unpack
from brokerfl.wire.member import Member, decode_member, encode_member

OPERATOR, OTHER = KeyPairs.new(), KeyPairs.new()

MEMBER = Member(
    role="node",
    name="n1",
    user="fl:node:n1",
    ed25519=OTHER.ed25519,
    x25519=OTHER.x25519,
    passwords=("0" * 64,),
    added_at=1.5,
    prefix="fl",
    node_id=2**63 + 1,
    labels={"site": "berlin"},
    realm="",
    realms=("1234", "5678"),
)


def test_a_member_is_read_as_it_was_written() -> None:
    """All of it, and who vouches for it."""
    record = decode_member(encode_member(MEMBER, OPERATOR))
    assert record.member == MEMBER
    assert (record.operator, record.is_genuine) == (OPERATOR.ed25519, True)


@pytest.mark.parametrize("at", range(1, 13))
def test_a_member_that_was_changed_is_not_genuine(at: int) -> None:
    """Whichever part somebody with the rights of Redis changes; nor with another operator's key."""
    packed, key, signature = unpack(encode_member(MEMBER, OPERATOR))
    parts = unpack(packed)
    changed: dict[type, Any] = {str: "x", list: ["9999"], float: 2.5, int: 7, dict: {"a": "b"}}
    parts[at] = changed[type(parts[at])]
    assert not decode_member(pack([pack(parts), key, signature])).is_genuine
    other = decode_member(pack([packed, bytes(32), signature]))
    assert (other.is_genuine, other.operator) == (False, "A" * 43 + "=")


@pytest.mark.parametrize(
    "data",
    [b"", b"x", pack([]), pack([1, 2, 3]), pack([pack(["brokerfl/member/1"]), b"", b""]), pack({"a": 1})],
)
def test_what_is_no_member(data: bytes) -> None:
    """Whatever somebody wrote there is a FrameError."""
    with pytest.raises(FrameError):
        decode_member(data)


def test_a_request_is_of_whom_it_names() -> None:
    """Every part of it is signed with the key that it shows; the password is only there as a hash."""
    made = Credentials.new("node", "n1", {"site": "berlin"})
    request = made.request().check()
    assert request.password == sha256(made.passwords[-1].encode()).hexdigest()
    changed = {"role": "server", "name": "n2", "password": "1" * 64, "x25519": OTHER.x25519, "labels": {}}
    assert changed.keys() == {each.name for each in fields(Request)} - {"ed25519", "signature"}
    for name, value in {**changed, "ed25519": OTHER.ed25519}.items():
        with pytest.raises(CredentialsError, match="was changed"):
            replace(request, **{name: value}).check()
    for name, wrong in {"password": "secret", "ed25519": "x", "signature": "", "name": "../n1"}.items():
        with pytest.raises(ConfigError):
            replace(request, **{name: wrong}).check()


def test_passwords_and_private_keys_are_not_shown() -> None:
    """Neither in a traceback nor in a log line."""
    made = Credentials.new("node", "n1", {})
    for secret in (*made.passwords, made.signing, made.sealing):
        assert secret not in repr(made) + repr(made.keys)


def test_a_rotated_password_keeps_those_before() -> None:
    """The newest is last, and the keys stay: they are who the party is."""
    made = Credentials.new("node", "n1", {})
    first = made.rotated()
    assert first.passwords[:-1] == made.passwords
    assert len(first.rotated().rotated().passwords) == 3
    assert first.keys == made.keys
    assert first.request().password != made.request().password


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Credentials, request and grant; the fingerprint is that of the file."""
    path = tmp_path / "n1.credentials"
    made = Credentials.new("node", "n1", {"site": "berlin"})
    keep(path, made)
    keep(tmp_path / "n1.request", made.request())
    owners, operators = (Party("alice", "e", "x", "1234"),), (Party("op", "e", "x"),)
    grant = Grant("node", "n1", "redis://host", "u", "fl", "ca", "5", {"a": "b"}, "", owners, operators)
    content = keep(tmp_path / "n1.grant", grant)
    assert read_credentials(path) == made
    assert read_request(tmp_path / "n1.request")[0] == made.request()
    assert read_grant(path) == (grant, content)
    assert grant.realms == ("1234",)
    assert fingerprint(content).replace(" ", "") == sha256((tmp_path / "n1.grant").read_bytes()).hexdigest()[:32]


@pytest.mark.parametrize(
    "change",
    [
        {"brokerfl": "grant/2"}, {"brokerfl": "request/1"}, {"url": 5}, {"owners": "alice"},
        {"owners": [{"name": "a"}]},
        {"more": "x"}, {"labels": {"a": 1}}, {"operators": [{"name": 1, "ed25519": "", "x25519": ""}]},
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    """Of another version, of another kind, or with parts of other types."""
    path = tmp_path / "n1.grant"
    keep(path, Grant("node", "n1", "redis://host", "u", "fl"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CredentialsError, match=str(path)):
        read_grant(tmp_path / "n1.credentials")
