"""Who logs in: one of several passwords of a party, or what a function of the user's returns.

Owns when each is asked and tried. It must not know where a function, or a file with passwords, comes from.
"""

from collections.abc import Callable, Sequence
from typing import Any

from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider
from redis.exceptions import AuthenticationError

from brokerfl.common import ConfigError, CredentialsError, RedisRefuses


class SeveralPasswords(CredentialProvider):
    """A user with several passwords, of which one is valid: they are being changed.

    Args:
        user: its name.
        read: returns the passwords that are known now; asked at each connect, since somebody may add one.
    """

    def __init__(self, user: str, read: Callable[[], Sequence[str]]) -> None:
        self._user = user
        self._read = read
        self._known: Sequence[str] = ()
        self._good = ""

    def get_credentials(self) -> tuple[str, str]:
        """Return user name and password, the one that was valid last if it is known."""
        return self._user, self.passwords()[0]

    def passwords(self) -> list[str]:
        """Return all passwords in the order in which to try them."""
        try:
            self._known = self._read()
        except CredentialsError:
            if not self._known:  # a file that is being replaced, or gone, takes no connection away
                raise
        return sorted(self._known, key=lambda each: each != self._good)

    def note(self, password: str) -> None:
        """This one was valid."""
        self._good = password


def log_in(connected: Any) -> None:
    """Do what redis-py does with a new connection; try each password if there are several.

    Raises:
        AuthenticationError: none is valid.
    """
    provider = connected.credential_provider
    if not isinstance(provider, SeveralPasswords):
        connected.on_connect()
        return
    user, refused = provider.get_credentials()[0], None
    for password in provider.passwords():
        connected.credential_provider = UsernamePasswordCredentialProvider(user, password)
        try:
            connected.on_connect()
        except AuthenticationError as error:
            refused = error
            continue
        finally:
            connected.credential_provider = provider
        provider.note(password)
        return
    raise refused or AuthenticationError("there is no password")


class AskedCredentials(CredentialProvider):
    """Asks a function at each connect.

    Args:
        name: the function, for errors.
        function: returns user name and password; or a CredentialProvider of redis-py, which is kept and asked then.
    """

    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        self._name = name
        self._function = function
        self._provider: CredentialProvider | None = None

    def get_credentials(self) -> Any:
        """Return user name and password.

        Raises:
            RedisRefuses: the function raised; it may do better later.
            ConfigError: it returned something else.
        """
        try:
            found = self._function() if self._provider is None else self._provider
            if isinstance(found, CredentialProvider):
                self._provider = found
                return found.get_credentials()
        except Exception as error:
            raise RedisRefuses(f"no login for Redis: {self._name} raised {type(error).__name__}: {error}") from error
        try:
            user, password = found
            if isinstance(user, str | None) and isinstance(password, str):
                return user or "default", password
        except (TypeError, ValueError):
            pass
        raise ConfigError(
            f"{self._name} must return user name and password, or a CredentialProvider of redis-py, "
            f"not {type(found).__name__}"
        )
