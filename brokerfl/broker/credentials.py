"""Credentials that a function of the user's returns: tokens, for example, that are valid for minutes.

Owns when it is asked, and what it may return. It must not know where the function comes from.
"""

from collections.abc import Callable
from typing import Any

from redis.credentials import CredentialProvider

from brokerfl.common import ConfigError, RedisRefuses


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
