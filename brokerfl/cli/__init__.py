"""The commands: `brokerfl-node`, `brokerfl-server`, `brokerfl`.

Owns options, signals, exit codes and output. Only this layer imports click and rich; nothing imports it.
"""
