"""The stage: one server, brokerfl's nodes and the rival's nodes on it, started when they are first asked for.

Owns which of them share a server. It must not know what is measured.
"""

import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from benchmarks import rivals
from benchmarks.federation import Federation
from benchmarks.rivals import Bare
from brokerfl.broker.embedded import EmbeddedServer

#: Nodes of each contestant. Those that a row does not need sit in a blocking read, which costs nothing.
NODES = 20

PREFIX = "bench"


class Stage:
    """Everything that runs, until the ``with`` block ends.

    Args:
        nodes: of each contestant.
        keeps_file: let the server keep an append-only file, in a temporary directory.

    Attributes:
        server: an embedded Valkey.
        client: a bare client of it, for what Redis says of itself.
    """

    def __init__(self, nodes: int = NODES, keeps_file: bool = False) -> None:
        self._stack = ExitStack()
        self._nodes = nodes
        data = Path(self._stack.enter_context(TemporaryDirectory(prefix="bench-"))) if keeps_file else None
        self.server = EmbeddedServer(data=data)

    def __enter__(self) -> Self:
        self._stack.enter_context(self.server)
        self.client: Any = rivals.connect(self.server.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @cached_property
    def federation(self) -> Federation:
        """The nodes of brokerfl."""
        return self._stack.enter_context(Federation(self.server.url, self._nodes, PREFIX))

    @cached_property
    def bare(self) -> Bare:
        """The nodes of the rival."""
        bare = self._stack.enter_context(Bare(self.server.url, self._nodes))
        bare.wait()
        return bare

    def used_memory(self) -> int:
        """Return the bytes that Redis holds, once it has freed what was deleted."""
        while self.client.info("memory")["lazyfree_pending_objects"]:
            time.sleep(0.01)
        return int(self.client.info("memory")["used_memory"])

    def key_memory(self, prefix: str) -> int:
        """Return the bytes of all keys under ``prefix``, as MEMORY USAGE tells them."""
        keys = self.client.scan_iter(match=f"{prefix}:*", count=1000)
        return sum(self.client.memory_usage(key, samples=0) or 0 for key in keys)
