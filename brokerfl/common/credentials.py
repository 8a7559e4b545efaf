"""The three files by which a party gets a login: its credentials, a request to an operator, and the operator's grant.

Owns what is in them, and who may read them. It must not know Redis, rights, or commands.

    NAME.credentials   secret      made at the party's site, and never leaves it: password and private keys
    NAME.request       no secret   goes to the operator: the password's sha256, and the public keys
    NAME.grant         no secret   comes back, and lies beside the credentials: where Redis is, and whom to trust

All are JSON. A request is signed with the key that it shows, so that nobody else can ask for a new password later.
"""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from brokerfl.common.errors import CredentialsError
from brokerfl.common.keypair import KeyPairs, is_signed, to_bytes, to_text
from brokerfl.common.private import read_private, read_unforged, write_private

#: Passwords that a party tries: that of now, and those that an operator may not have added yet.
_MOST_PASSWORDS = 3

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")

File = TypeVar("File", "Credentials", "Request", "Grant")


def check_name(name: str) -> str:
    """Return the name of a party, which becomes part of a user's name and of names of files.

    Raises:
        CredentialsError: it has other characters, or too many.
    """
    if not _NAME.fullmatch(name):
        raise CredentialsError(
            f"the name {name!r} cannot be used: it needs 1 to 64 letters, digits and . _ -, and no . _ - at its start"
        )
    return name


def fingerprint(content: bytes) -> str:
    """Return the first 32 digits of the sha256 of a file, for two people to compare; `sha256sum` prints them, too."""
    digits = sha256(content).hexdigest()[:32]
    return " ".join(digits[at : at + 4] for at in range(0, 32, 4))


@dataclass(frozen=True)
class Party:
    """Whose public keys are trusted.

    Attributes:
        name: what it is called.
        ed25519, x25519: its public keys in base64.
        realm: of a ServerApp's owner: the digits with which the ids of its runs begin.
    """

    name: str
    ed25519: str
    x25519: str
    realm: str = ""


@dataclass(frozen=True)
class Request:
    """What a party asks an operator for. No secret.

    Attributes:
        role, name: who asks.
        password: the sha256 of its password in hex.
        ed25519, x25519: its public keys in base64.
        labels: of a node.
        signature: with the Ed25519 key, in base64.
    """

    role: str
    name: str
    password: str
    ed25519: str
    x25519: str
    labels: Mapping[str, str] = field(default_factory=dict)
    signature: str = ""

    def signed(self, keys: KeyPairs) -> "Request":
        """Return it with a signature."""
        return replace(self, signature=to_text(keys.sign(self._covered())))

    def check(self) -> "Request":
        """Return it if it can be meant.

        Raises:
            CredentialsError: a part of it is malformed, or the signature is of another key.
        """
        check_name(self.name)
        if not _HASH.fullmatch(self.password):
            raise CredentialsError("the request has no sha256 of a password")
        for key in (self.ed25519, self.x25519):
            to_bytes(key, 32, "a public key of the request")
        if not is_signed(self.ed25519, to_bytes(self.signature, 64, "the request's signature"), self._covered()):
            raise CredentialsError(f"the request of {self.name} was changed: its signature is not that of its key")
        return self

    def _covered(self) -> bytes:
        parts = {name: value for name, value in asdict(self).items() if name != "signature"}
        return json.dumps(["brokerfl/request/1", parts], sort_keys=True).encode()


@dataclass(frozen=True)
class Grant:
    """What an operator answers. No secret, but whoever changes it decides which Redis gets the password.

    Attributes:
        role, name: to whom.
        url: of Redis, without a login.
        user: of Redis.
        prefix: of every key.
        ca: the authority to trust for TLS (PEM); "" for those of the system.
        node_id: of a node, in decimal; "" otherwise.
        labels: of a node.
        realm: of a server: the digits with which the ids of its runs begin.
        owners: of a node: the servers that it trusts.
        operators: who signs the list of members.
    """

    role: str
    name: str
    url: str
    user: str
    prefix: str
    ca: str = ""
    node_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    realm: str = ""
    owners: tuple[Party, ...] = ()
    operators: tuple[Party, ...] = ()

    @property
    def realms(self) -> tuple[str, ...]:
        """Those that a node trusts."""
        return tuple(owner.realm for owner in self.owners)


@dataclass(frozen=True)
class Credentials:
    """What a party keeps for itself.

    Attributes:
        role, name: whose they are.
        passwords: the newest last. All but the last are tried as well: an operator may not have added that yet.
        signing, sealing: the private keys of Ed25519 and X25519 in base64.
        labels: of a node.
    """

    role: str
    name: str
    passwords: tuple[str, ...] = field(repr=False)
    signing: str = field(repr=False)
    sealing: str = field(repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def new(cls, role: str, name: str, labels: Mapping[str, str]) -> "Credentials":
        """Make a password of 256 bits and both key pairs.

        Raises:
            CredentialsError: the name cannot be used.
            MissingExtra: cryptography is not installed.
        """
        keys = KeyPairs.new()
        return cls(role, check_name(name), (secrets.token_hex(32),), keys.signing, keys.sealing, dict(labels))

    @property
    def keys(self) -> KeyPairs:
        """Both key pairs."""
        return KeyPairs.of(self.signing, self.sealing)

    def rotated(self) -> "Credentials":
        """Return them with one more password."""
        return replace(self, passwords=(*self.passwords, secrets.token_hex(32))[-_MOST_PASSWORDS:])

    def request(self) -> Request:
        """Return what to ask an operator for."""
        keys = self.keys
        password = sha256(self.passwords[-1].encode()).hexdigest()
        asked = Request(self.role, self.name, password, keys.ed25519, keys.x25519, dict(self.labels))
        return asked.signed(keys)


_KINDS: dict[type, str] = {Credentials: "credentials", Request: "request", Grant: "grant"}


def to_json(file: Credentials | Request | Grant) -> bytes:
    """Return a file's content."""
    return json.dumps({"brokerfl": f"{_KINDS[type(file)]}/1", **asdict(file)}, indent=2).encode() + b"\n"


def read_credentials(path: Path) -> Credentials:
    """Return what is in a credentials file.

    Raises:
        CredentialsError: others have rights to it or own it, it is a link, it cannot be read, or it is none.
    """
    try:
        return _parse(Credentials, path, read_private(path))
    except OSError as error:
        raise CredentialsError(f"the credentials file {_said(path, error)}") from None


def read_grant(path: Path) -> tuple[Grant, bytes]:
    """Return the grant that lies beside a credentials file, and the file's content.

    Raises:
        CredentialsError: there is none, others can write it or own it, it is a link, it cannot be read, or it is none.
    """
    beside = grant_of(path)
    try:
        content = read_unforged(beside)
    except FileNotFoundError:
        raise CredentialsError(
            f"there is no {beside}: send {path.with_suffix('.request').name} to an operator, and put the answer there"
        ) from None
    except OSError as error:
        raise CredentialsError(f"the grant {_said(beside, error)}") from None
    return _parse(Grant, beside, content), content


def read_request(path: Path) -> tuple[Request, bytes]:
    """Return what is in a request, and the file's content.

    Raises:
        CredentialsError: it cannot be read, or it is none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"the request {_said(path, error)}") from None
    return _parse(Request, path, content), content


def grant_of(path: Path) -> Path:
    """Return where the grant belongs to a credentials file."""
    return path.with_suffix(".grant")


def keep(path: Path, file: Credentials | Request | Grant, *, replace: bool = False) -> bytes:
    """Write a file, of which only credentials are a secret; return its content.

    Raises:
        CredentialsError: it cannot be written, or is there and not to be replaced.
    """
    content = to_json(file)
    try:
        write_private(path, content, replace=replace, mode=0o600 if isinstance(file, Credentials) else 0o644)
    except FileExistsError:
        raise CredentialsError(
            f"{path} is there already: nothing was changed; move it away, or take another name"
        ) from None
    except OSError as error:
        raise CredentialsError(f"{_said(path, error, 'written')}") from None
    return content


def _said(path: Path, error: OSError, done: str = "read") -> str:
    text = error.strerror or ""
    return text if text.startswith(str(path)) else f"{path} cannot be {done}: {text}"


def _parse(kind: type[File], path: Path, content: bytes) -> File:
    """Return what a file says, of which every part has the type that is meant."""
    what = _KINDS[kind]
    try:
        found: dict[str, Any] = json.loads(content)
        if found.pop("brokerfl") != f"{what}/1":
            raise CredentialsError(f"{path} is no {what} of this version of brokerfl")
        for name in ("owners", "operators"):
            if name in found:
                found[name] = tuple(_typed(Party(**each)) for each in found[name])
        if "passwords" in found:
            found["passwords"] = tuple(found["passwords"])
        return _typed(kind(**found))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CredentialsError(f"{path} is no {what} file of brokerfl, or it is damaged") from None


Typed = TypeVar("Typed", "Credentials", "Request", "Grant", Party)


def _typed(made: Typed) -> Typed:
    """Return it if texts are texts."""
    for value in vars(made).values():
        if not all(isinstance(text, str | Party) for text in _parts(value)):
            raise TypeError("not a text")
    return made


def _parts(value: Any) -> list[Any]:
    match value:
        case dict():
            return [*value, *value.values()]
        case tuple():
            return [*value]
        case _:
            return [value]
