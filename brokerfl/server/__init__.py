"""The ServerApp's side: `ServerApp`, and the `Driver` that it is given."""

from brokerfl.server.app import ServerApp
from brokerfl.server.driver import Driver

#: Flower's name for it since 1.17.
Grid = Driver

__all__ = ["Driver", "Grid", "ServerApp"]
