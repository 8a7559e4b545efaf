"""The commands: `brokerfl-node`, `brokerfl-server`, `brokerfl`.

Owns options, signals, exit codes and what is printed. The only importer of click and rich; nothing imports it.
"""
