"""Flower apps on brokerfl, unmodified: ClientApps and ServerApps of flwr's classes.

Owns how such an app is recognised and adapted. Only this layer imports flwr, and only when there is a Flower app, which
has imported flwr already.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brokerfl.client.app import ClientAppCallable
    from brokerfl.common import RecordSet
    from brokerfl.server.app import ServerAppCallable

__all__ = ["adapt_client_app", "adapt_server_app", "is_flower_app", "keeps_something"]


def is_flower_app(app: object, kind: str) -> bool:
    """Return whether ``app`` is an instance of flwr's class ``kind`` or of a subclass.

    Args:
        app: anything.
        kind: ``ClientApp`` or ``ServerApp``.
    """
    return any(
        parent.__name__ == kind and parent.__module__.partition(".")[0] == "flwr" for parent in type(app).__mro__
    )


def adapt_client_app(app: Any) -> "ClientAppCallable":
    """Return flwr's ClientApp as a callable for a node; return anything else unchanged.

    Raises:
        MissingExtra: this version of flwr cannot be used.
    """
    if not is_flower_app(app, "ClientApp"):
        return app  # type: ignore[no-any-return]
    from brokerfl.flower.client_app import FlowerClientApp

    return FlowerClientApp(app)


def adapt_server_app(app: Any) -> "ServerAppCallable":
    """Return flwr's ServerApp as a callable for `brokerfl-server`; return anything else unchanged.

    Raises:
        MissingExtra: this version of flwr cannot be used.
    """
    if not is_flower_app(app, "ServerApp"):
        return app  # type: ignore[no-any-return]
    from brokerfl.flower.server_app import FlowerServerApp

    return FlowerServerApp(app)


def keeps_something(app: Any, state: "RecordSet") -> bool:
    """Return whether a ServerApp, adapted or not, finds anything of its former life in its state."""
    return bool(getattr(app, "keeps_something", bool)(state))
