"""A federation in one process: nodes in threads, ServerApps in the caller's. Owns only how they start and end."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from brokerfl.broker.connection import Connection
from brokerfl.broker.nodes import Registration
from brokerfl.client import ClientApp
from brokerfl.client.app import ClientAppCallable
from brokerfl.client.node import Node
from brokerfl.common import Context, UserConfig
from brokerfl.common.config import flattened
from brokerfl.common.log_context import log_context
from brokerfl.common.main import check_ran
from brokerfl.flower import adapt_client_app, adapt_server_app
from brokerfl.server import Driver, ServerApp
from brokerfl.server.app import ServerAppCallable
from brokerfl.testing.fake import FakeServer, fake_connection


@dataclass(frozen=True)
class SimulationResult:
    """The result of a ServerApp: the run's id, and the ServerApp's context with its final state."""

    run_id: int
    context: Context


class Federation:
    """Nodes on one Redis, as a context manager. Runs any number of ServerApps, also at once from many threads.

    Args:
        client_app: what every node runs; brokerfl's or flwr's.
        num_supernodes: the number of nodes.
        node_configs: one for each node; by default ``partition-id`` and ``num-partitions``.
        connect: returns a new connection for each node and each run; to fakeredis by default.
    """

    def __init__(
        self,
        client_app: ClientApp | ClientAppCallable,
        num_supernodes: int = 2,
        *,
        node_configs: Sequence[UserConfig] | None = None,
        connect: Callable[[], Connection] | None = None,
    ) -> None:
        client_app = adapt_client_app(client_app)
        server = FakeServer()
        self._connect = connect or (lambda: fake_connection(server))
        configs = node_configs or [
            {"partition-id": index, "num-partitions": num_supernodes} for index in range(num_supernodes)
        ]
        self._connections: list[Connection] = []
        self._failures: list[Exception] = []
        self.nodes: list[Node] = []
        self._ready = threading.Semaphore(0)
        for config in configs:
            connection = self._open()
            told = flattened(config, "node_configs")
            registration, ready = Registration(connection), self._ready.release
            node = Node(client_app, connection, registration, on_ready=ready, node_config=told)
            self.nodes.append(node)
        self._threads = [
            threading.Thread(target=self._serve, args=(node,), name=f"node {node.node_id}", daemon=True)
            for node in self.nodes
        ]

    def __enter__(self) -> "Federation":
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._ready.acquire()
        self._raise_failure()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            node.stop()
        for thread in self._threads:
            thread.join()
        for connection in self._connections:
            connection.close()
        if error is None:
            self._raise_failure()

    def _open(self) -> Connection:
        self._connections.append(self._connect())
        return self._connections[-1]

    def _serve(self, node: Node) -> None:
        try:
            node.serve()
        except Exception as error:
            self._failures.append(error)
        finally:
            self._ready.release()

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]

    def run(
        self, server_app: ServerApp | ServerAppCallable, run_config: UserConfig | None = None, app: str = "server:app"
    ) -> SimulationResult:
        """Run a ServerApp to its end and return its result.

        Args:
            server_app: brokerfl's or flwr's.
            run_config: booleans, numbers and strings by name; tables become dotted names.
            app: its name, as the operator sees it.

        Raises:
            ConfigError: the run config holds something else.
            Exception: raised by the main function; the run's keys are deleted all the same.
        """
        server_app = adapt_server_app(server_app)
        driver = Driver(self._open(), app, flattened(run_config or {}, "run_config"))
        try:
            with log_context(run=driver.run.run_id):
                check_ran(server_app(driver, driver.context))
        finally:
            driver.end()
        return SimulationResult(driver.run.run_id, driver.context)


def run_simulation(
    server_app: ServerApp | ServerAppCallable,
    client_app: ClientApp | ClientAppCallable,
    num_supernodes: int = 2,
    *,
    run_config: UserConfig | None = None,
    node_configs: Sequence[UserConfig] | None = None,
) -> SimulationResult:
    """Run a ServerApp on ``num_supernodes`` nodes, all in this process, and return its result.

    Args:
        server_app: brokerfl's or flwr's; its main function runs in the calling thread.
        client_app: brokerfl's or flwr's; every node runs it in its own thread.
        num_supernodes: the number of nodes.
        run_config: as ``--run-config``, or the table ``[tool.flwr.app.config]``: tables become dotted names.
        node_configs: as ``--node-config``, one for each node; by default ``partition-id`` and ``num-partitions``.

    Raises:
        ConfigError: a config holds a value that is not a boolean, number or string.
        Exception: raised by the ServerApp's main function. What a ClientApp raises becomes an Error reply.
    """
    with Federation(client_app, num_supernodes, node_configs=node_configs) as federation:
        return federation.run(server_app, run_config)
