"""Redis: keys, connections, streams, leases and the life of nodes and runs.

The only importer of redis. One file owns each truth. It must not know ClientApp, ServerApp or Driver.
"""
