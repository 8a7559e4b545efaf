"""Flower apps on brokerfl, unmodified: ClientApps and ServerApps made of flwr's classes.

Owns how such an app is recognised and made into one of ours. This layer is the only importer of flwr, and imports it
only when there is an app of it: whoever has one has imported flwr.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brokerfl.client.app import ClientAppCallable
    from brokerfl.server.app import ServerAppCallable

__all__ = ["adapt_client_app", "adapt_server_app", "is_flower_app"]


def is_flower_app(app: object, kind: str) -> bool:
    """Return whether ``app`` is an instance of flwr's class ``kind``, or of a class derived from it.

    Args:
        app: anything.
        kind: ``ClientApp`` or ``ServerApp``.
    """
    return any(
        parent.__name__ == kind and parent.__module__.partition(".")[0] == "flwr" for parent in type(app).__mro__
    )


def adapt_client_app(app: Any) -> "ClientAppCallable":
    """Return what a node can run in place of flwr's ClientApp; anything else as it is.

    Raises:
        MissingExtra: this flwr is not one that can be used.
    """
    if not is_flower_app(app, "ClientApp"):
        return app  # type: ignore[no-any-return]
    from brokerfl.flower.client_app import FlowerClientApp

    return FlowerClientApp(app)


def adapt_server_app(app: Any) -> "ServerAppCallable":
    """Return what `brokerfl-server` can run in place of flwr's ServerApp; anything else as it is.

    Raises:
        MissingExtra: this flwr is not one that can be used.
    """
    if not is_flower_app(app, "ServerApp"):
        return app  # type: ignore[no-any-return]
    from brokerfl.flower.server_app import FlowerServerApp

    return FlowerServerApp(app)
