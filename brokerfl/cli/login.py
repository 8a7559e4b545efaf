"""The login of a command: what a credentials file and its grant say, and that passwords do not lie about.

Owns how both files become options, and that an app finds no password in its environment. It must not know commands.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from brokerfl.broker.credentials import SeveralPasswords
from brokerfl.broker.members import NOBODY
from brokerfl.broker.rules import Role
from brokerfl.broker.url import masked
from brokerfl.common import CredentialsError
from brokerfl.common.credentials import Credentials, Grant, read_credentials, read_grant

#: The variables whose value may have a password.
_WITH_PASSWORDS = ("BROKERFL_REDIS_URL", "BROKERFL_PROXY")


@dataclass(frozen=True)
class Login:
    """Who logs in.

    Attributes:
        path: the credentials file.
        credentials: what it says.
        grant: what the grant beside it says.
    """

    path: Path
    credentials: Credentials
    grant: Grant

    def provider(self) -> SeveralPasswords:
        """Return what is asked for user name and password at each connect."""
        path = self.path
        return SeveralPasswords(self.grant.user, lambda: read_credentials(path).passwords)

    @property
    def sees_all(self) -> bool:
        """Whether it has to do with the runs of all realms."""
        return self.credentials.role in (Role.OPERATOR, Role.OBSERVER)

    def realms(self, typed: tuple[str, ...]) -> tuple[str, ...]:
        """Return those whose runs it has to do with; none for all.

        Args:
            typed: what --realm says.

        Raises:
            CredentialsError: that is something else.
        """
        known = (self.grant.realm,) if self.credentials.role == Role.SERVER else self.grant.realms or (NOBODY,)
        if self.sees_all:
            return ()
        if typed and typed != known:
            raise CredentialsError(f"the grant of {self.path} has other realms: leave --realm {','.join(typed)} out")
        return known

    def check_role(self, role: str) -> None:
        """Check that it is that of a command.

        Raises:
            CredentialsError: it is for another role.
        """
        if self.credentials.role != role:
            raise CredentialsError(
                f"{self.path} is of the {self.credentials.role} {self.credentials.name}, not of a {role}"
            )

    def check_node(self, name: str | None) -> str:
        """Return the node's name; ``name`` is what an option says.

        Raises:
            CredentialsError: that is another one.
        """
        if name is not None and name != self.grant.name:
            raise CredentialsError(f"{self.path} is of the node {self.grant.name}: leave --name {name} out")
        return self.grant.name


def read_login(path: Path) -> Login:
    """Return what a credentials file and its grant say.

    Raises:
        CredentialsError: one of them is missing or malformed, others have rights to it, or they do not belong together.
    """
    credentials, (grant, _) = read_credentials(path), read_grant(path)
    if (grant.role, grant.name) != (credentials.role, credentials.name):
        raise CredentialsError(
            f"{path} is of the {credentials.role} {credentials.name}, but the grant beside it of the {grant.role} "
            f"{grant.name}"
        )
    return Login(path, credentials, grant)


def hide_passwords() -> None:
    """Take passwords out of the environment, also out of the copy that the system shows, before an app is loaded."""
    for name in _WITH_PASSWORDS:
        value = os.environ.get(name)
        if value is not None and masked(value) != value:
            _overwrite(name)
            del os.environ[name]


def _overwrite(name: str) -> None:
    """Overwrite the value of a variable where the process got it: /proc/PID/environ shows that place."""
    if sys.platform != "linux":
        return
    getenv: Callable[[bytes], int | None] = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p  # type: ignore[attr-defined]
    place = getenv(name.encode())
    if place:
        ctypes.memset(place, ord("*"), len(ctypes.string_at(place)))
