"""The ServerApp's side: `ServerApp` and the `Driver` it is given."""

from brokerfl.server.app import ServerApp
from brokerfl.server.driver import Driver

__all__ = ["Driver", "ServerApp"]
