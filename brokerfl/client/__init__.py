"""The node's side: `ClientApp`, and the loop that runs it."""

from brokerfl.client.app import ClientApp, ClientAppCallable, Mod

__all__ = ["ClientApp", "ClientAppCallable", "Mod"]
