"""Who a process is among parties that do not trust each other, and whom it trusts.

Owns the keys, as bytes. It must not know where they are kept, or what is done with them.

Each party has two pairs of keys: Ed25519 signs, and X25519 agrees on keys for what is sealed. All have 32 bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from brokerfl.common.errors import ConfigError

#: Bytes of every key.
KEY_BYTES = 32


class PublicKeys(NamedTuple):
    """The public keys of a party.

    Attributes:
        signing: Ed25519.
        exchange: X25519.
    """

    signing: bytes
    exchange: bytes


class Owner(NamedTuple):
    """Who owns a run.

    Attributes:
        name: what whoever trusts it calls it.
        signing: its public Ed25519 key.
        realm: the digits with which the ids of its runs begin; "" for any.
    """

    name: str
    signing: bytes
    realm: str = ""

    def may_own(self, run_id: int) -> bool:
        """Whether a run with this id may be its own."""
        return str(run_id).startswith(self.realm)


@dataclass(frozen=True)
class Identity:
    """A party that signs and opens: a node, or the owner of runs.

    Attributes:
        name: what it is called.
        signing: its private Ed25519 key.
        exchange: its private X25519 key.

    Raises:
        ConfigError: a key does not have 32 bytes.
    """

    name: str
    signing: bytes = field(repr=False)
    exchange: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check(f"the private keys of {self.name!r}", self.signing, self.exchange)


@dataclass(frozen=True)
class Trusted:
    """Whose keys a party knows.

    Attributes:
        operator: the operator's public Ed25519 key, by which the others were found; b"" if they were given.
        owners: those who may own runs, each of them with a realm that no other one has, by name.
        nodes: the public keys of nodes, by node id. What it says may change while it is used.

    Raises:
        ConfigError: a key does not have 32 bytes.
    """

    operator: bytes = b""
    owners: Mapping[str, Owner] = field(default_factory=dict)
    nodes: Mapping[int, PublicKeys] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, owner in self.owners.items():
            _check(f"the public key of the owner {name!r}", owner.signing)

    def owner(self, key: bytes) -> Owner | None:
        """Return the owner who has this public Ed25519 key; None if there is none."""
        return next((owner for owner in self.owners.values() if owner.signing == key), None)


def _check(what: str, *keys: bytes) -> None:
    if any(len(key) != KEY_BYTES for key in keys):
        raise ConfigError(f"{what} must have {KEY_BYTES} bytes each: make them anew, or copy the file again")
