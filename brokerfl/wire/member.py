"""The members of a federation as Redis holds them: who was given a login, and with which keys, signed by an operator.

Owns that layout, and what a signature covers. It must not know keys of Redis, rights or files.

A record is an array: the packed member, the operator's public key, and the signature over the packed member. So whoever
trusts the operator's key need not trust Redis.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brokerfl.common import FrameError
from brokerfl.common.keypair import KeyPairs, is_signed, to_bytes, to_text
from brokerfl.wire.frame import pack, unpack

#: What a packed member begins with.
_KIND = "brokerfl/member/1"

#: Most bytes of a record.
MAX_MEMBER_BYTES = 64 * 1024


@dataclass(frozen=True)
class Member:
    """One party that has a login of its own.

    Attributes:
        role: ``node``, ``server``, ``operator`` or ``observer``.
        name: what it is called; unique among those of its role.
        user: of Redis.
        ed25519, x25519: its public keys, in base64.
        passwords: the sha256 of its passwords in hex, the newest last.
        added_at: Unix time in seconds.
        prefix: of the keys to which it has rights.
        node_id: of a node; 0 otherwise.
        labels: of a node.
        realm: of a server: the digits with which the ids of its runs begin.
        realms: of a node: those that it trusts.
    """

    role: str
    name: str
    user: str
    ed25519: str
    x25519: str
    passwords: tuple[str, ...]
    added_at: float
    prefix: str
    node_id: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    realm: str = ""
    realms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """A member, and who vouches for it.

    Attributes:
        member: the member.
        operator: the public Ed25519 key of the operator that added it, in base64.
        is_genuine: whether the signature is that of the operator over this member.
    """

    member: Member
    operator: str
    is_genuine: bool


def encode_member(member: Member, operator: KeyPairs) -> bytes:
    """Return the record of a member, signed by an operator.

    Raises:
        MissingExtra: cryptography is not installed.
    """
    packed = pack(
        [
            *(_KIND, member.role, member.name, member.user, member.ed25519, member.x25519, list(member.passwords)),
            *(member.added_at, member.prefix, member.node_id, dict(member.labels), member.realm, list(member.realms)),
        ]
    )
    return pack([packed, to_bytes(operator.ed25519, 32, "the operator's key"), operator.sign(packed)], MAX_MEMBER_BYTES)


def decode_member(data: bytes) -> Record:
    """Return what a record says.

    Raises:
        FrameError: it is malformed. A wrong signature is none.
        MissingExtra: cryptography is not installed.
    """
    member, packed, operator, signature = _parts(data)
    return Record(member, operator, is_signed(operator, signature, packed))


def realm_in(data: bytes) -> str:
    """Return the realm of a member; the signature is not looked at, for it needs cryptography.

    Raises:
        FrameError: the record is malformed.
    """
    return _parts(data)[0].realm


def _parts(data: bytes) -> tuple[Member, bytes, str, bytes]:
    """Return the member, what was signed, the operator's key, and the signature."""
    try:
        packed, operator, signature = _listed(unpack(data, MAX_MEMBER_BYTES), 3)
        kind, role, name, user, ed25519, x25519, passwords, at, prefix, node_id, labels, realm, realms = _listed(
            unpack(packed, MAX_MEMBER_BYTES), 13
        )
        texts = (kind, role, name, user, ed25519, x25519, prefix, realm, *passwords, *realms, *labels, *labels.values())
        if kind != _KIND or not all(isinstance(text, str) for text in texts):
            raise FrameError("a member has another layout")
        if not isinstance(node_id, int) or not 0 <= node_id < 2**64:
            raise FrameError("a member has no node id")
        member = Member(
            *(role, name, user, ed25519, x25519, tuple(passwords), float(at), prefix, node_id, dict(labels), realm),
            realms=tuple(realms),
        )
        return member, packed, to_text(operator), bytes(signature)
    except (TypeError, ValueError, AttributeError) as error:
        raise FrameError(f"a member is malformed: {error}") from None


def _listed(value: Any, size: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != size:
        raise FrameError(f"a member's record has no {size} parts")
    return value
