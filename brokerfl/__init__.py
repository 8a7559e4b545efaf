"""A message broker for federated learning on Redis or Valkey, with no server of its own.

Owns the version, which setup.cfg reads from here, and must import nothing.
"""

__version__ = "0.1.0"
