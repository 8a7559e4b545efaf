"""brokerfl.testing: what users test their own apps with."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import pytest

from brokerfl.client import ClientApp
from brokerfl.common import ConfigError, ConfigsRecord, Context, Message, MetricsRecord, RecordSet
from brokerfl.server import Driver, ServerApp
from brokerfl.testing import Federation, fake_connection, run_simulation


def apps() -> tuple[ServerApp, ClientApp]:
    """A ServerApp that sums what two rounds of nodes return into its state."""
    server_app, client_app = ServerApp(), ClientApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        answer = MetricsRecord({"n": int(context.node_config["partition-id"]) + int(context.run_config["base"])})
        return message.create_reply(RecordSet(metrics_records={"m": answer}))

    @server_app.main()
    def main(driver: Driver, context: Context) -> None:
        total = 0
        for turn in range(2):
            batch = [driver.create_message(RecordSet(), "train", node, str(turn)) for node in driver.get_node_ids()]
            total += sum(int(reply.content.metrics_records["m"]["n"]) for reply in driver.send_and_receive(batch))  # type: ignore[arg-type]
        context.state.metrics_records["sum"] = MetricsRecord({"n": total})

    return server_app, client_app


def test_one_call_runs_both_apps() -> None:
    """run_simulation runs a ServerApp on its nodes and returns its state."""
    result = run_simulation(*apps(), num_supernodes=3, run_config={"base": 10})
    assert result.context.state.metrics_records["sum"]["n"] == 2 * (10 + 11 + 12)
    assert result.context.run_id == result.run_id


def test_two_server_apps_at_once() -> None:
    """A Federation runs several ServerApps at once over the same nodes."""
    server_app, client_app = apps()
    results = {}
    with Federation(client_app, 3) as federation:

        def run(base: int) -> None:
            results[base] = federation.run(server_app, {"base": base})

        threads = [threading.Thread(target=run, args=(base,)) for base in (10, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    sums = {base: result.context.state.metrics_records["sum"]["n"] for base, result in results.items()}
    assert sums == {10: 66, 100: 606}


def test_what_main_raises_reaches_the_test() -> None:
    """An exception in main ends the simulation and is raised."""
    server_app = ServerApp()

    @server_app.main()
    def main(driver: Driver, context: Context) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run_simulation(server_app, ClientApp(), 1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("node ")]


def test_tables_of_a_config_are_flattened_and_other_values_are_named() -> None:
    """A run config may be what a pyproject.toml holds; a list is refused at once, not by every node."""
    server_app, client_app = ServerApp(), ClientApp()

    @server_app.main()
    def main(driver: Driver, context: Context) -> None:
        context.state.configs_records["seen"] = ConfigsRecord(dict(context.run_config))

    result = run_simulation(server_app, client_app, 1, run_config={"train": {"lr": 0.5}, "rounds": 3})  # type: ignore[dict-item]
    assert result.context.state.configs_records["seen"] == {"train.lr": 0.5, "rounds": 3}
    with pytest.raises(ConfigError, match="run_config: a is a list, not a boolean, number or string"):
        run_simulation(server_app, client_app, 1, run_config={"a": [1]})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="node_configs: a is a NoneType"):
        run_simulation(server_app, client_app, 1, node_configs=[{"a": None}])  # type: ignore[dict-item]
    with pytest.raises(
        ConfigError, match="'a' is a list, but keys must be str, and values booleans, numbers or strings"
    ):
        Driver(fake_connection(), "server:app", {"a": [1]})  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", ["coroutine", "generator", "async_generator", "Future"])
@pytest.mark.parametrize("plain", [True, False])
def test_a_main_that_runs_nothing(kind: str, plain: bool) -> None:
    """What a main function returns to be run by somebody else is refused, not dropped; so it is of a plain function."""

    async def coroutine(driver: Driver, context: Context) -> None:
        raise AssertionError("nobody awaits it")

    def generator(driver: Driver, context: Context) -> Iterator[None]:
        yield

    async def async_generator(driver: Driver, context: Context) -> AsyncIterator[None]:
        yield

    def future(driver: Driver, context: Context) -> "asyncio.Future[None]":
        with closing(asyncio.new_event_loop()) as loop:
            return loop.create_future()

    main: Any = {"coroutine": coroutine, "generator": generator, "async_generator": async_generator}.get(kind, future)
    server_app = ServerApp()
    server_app.main()(main)
    with pytest.raises(TypeError, match=f"^the main function returned a {kind}, which runs nothing by itself: "):
        run_simulation(main if plain else server_app, ClientApp(), 1)
