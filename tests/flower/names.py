"""The names of flwr that these tests use, from whichever version is installed, and what differs between versions.

Without flwr a module that imports this one is skipped; with BROKERFL_REQUIRE_BACKENDS=1 it fails.
"""
# ruff: noqa: F401 # the tests import from here

import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from tests.conftest import REQUIRED

if find_spec("flwr") is None:
    if REQUIRED:
        pytest.fail("flwr is missing, and BROKERFL_REQUIRE_BACKENDS=1")
    pytest.skip("flwr is not installed", allow_module_level=True)

with warnings.catch_warnings():
    # typer, which flwr imports, takes names from click.utils that click has deprecated.
    warnings.filterwarnings("ignore", r"'click\.utils\.", DeprecationWarning)
    import flwr.client.mod as legacy_mods
    import flwr.common as flwr_common
    import flwr.common.secure_aggregation.quantization as flwr_quantization
    import flwr.server.compat.app as flwr_server_app
    import flwr.server.compat.app_utils as flwr_app_utils
    import flwr.server.strategy as legacy
    import flwr.server.workflow.default_workflows as flwr_workflows
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import ndarrays_to_parameters
    from flwr.server import (
        LegacyContext,
        Server,
        ServerApp,
        ServerAppComponents,
        ServerConfig,
        SimpleClientManager,
    )
    from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

    from brokerfl.flower import compat
    from brokerfl.flower.records import record_dict_of, record_set_of

    #: What came after 1.13: names in modules of their own, and the strategies of the message API.
    HAS_MESSAGE_API = find_spec("flwr.serverapp") is not None

    if HAS_MESSAGE_API:
        import flwr.clientapp.mod as mods
        import flwr.serverapp.strategy as strategies
        from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
        from flwr.serverapp import Grid
    else:
        mods = strategies = None
        from flwr.common import Array, Error, Message
        from flwr.common import ConfigsRecord as ConfigRecord
        from flwr.common import MetricsRecord as MetricRecord
        from flwr.common import ParametersRecord as ArrayRecord
        from flwr.common import RecordSet as RecordDict
        from flwr.server import Driver as Grid

VERSION = tuple(map(int, version("flwr").split(".")[:2]))

needs_message_api = pytest.mark.skipif(not HAS_MESSAGE_API, reason="flwr 1.13 has neither flwr.app nor flwr.serverapp")

# Records.


def records_of(records: Mapping[str, Any]) -> Any:
    """A RecordDict, or RecordSet, with these records in their order."""
    made = RecordDict()
    for name, record in records.items():
        put_record(made, name, record)
    return made


def put_record(records: Any, name: str, record: Any) -> None:
    """Put a record into a RecordDict, or into the mapping of its kind in a RecordSet."""
    if HAS_MESSAGE_API:
        records[name] = record
    elif isinstance(record, ArrayRecord):
        records.parameters_records[name] = record
    else:
        kind = records.metrics_records if isinstance(record, MetricRecord) else records.configs_records
        kind[name] = record


def records_in(content: Any) -> list[tuple[str, Any]]:
    """Name and record of each, in order; the RecordSet of 1.13 has an order in each kind only."""
    if HAS_MESSAGE_API:
        return list(content.items())
    kinds = (content.parameters_records, content.metrics_records, content.configs_records)
    return [item for kind in kinds for item in kind.items()]


def record_in(content: Any, name: str) -> Any:
    """The first record of this name."""
    return next(record for key, record in records_in(content) if key == name)


def array_of(ndarray: "np.ndarray[Any, Any]") -> Any:
    """An Array made of an ndarray as flwr does it."""
    return Array(ndarray) if HAS_MESSAGE_API else flwr_common.array_from_numpy(ndarray)


def raw_array(dtype: str, shape: Iterable[int], stype: str, data: bytes) -> Any:
    """An Array made of its parts: its shape is a list in 1.13 and a tuple in later versions."""
    return Array(dtype, tuple(shape) if HAS_MESSAGE_API else list(shape), stype, data)


def arrays_of(*ndarrays: "np.ndarray[Any, Any]") -> Any:
    """An ArrayRecord of arrays named "0", "1", …."""
    return ArrayRecord({str(number): array_of(ndarray) for number, ndarray in enumerate(ndarrays)}, keep_input=True)


def ndarrays_in(record: Any) -> list[Any]:
    """What is in an ArrayRecord, as flwr reads it."""
    return [array.numpy() for array in record.values()]


# Messages.


def message_to(
    grid: Any, node: int, content: Any, kind: str = "query", group: str = "", ttl: float | None = None
) -> Any:
    """A message to a node, made as apps of this version make it."""
    if HAS_MESSAGE_API:
        return Message(content, node, kind, group_id=group, ttl=ttl)
    return grid.create_message(content, kind, node, group, ttl)


def reply_to(message: Any, content: Any) -> Any:
    """A reply, made as apps of this version make it."""
    return Message(content, reply_to=message) if HAS_MESSAGE_API else message.create_reply(content)


def replied_to(reply: Any) -> str:
    """The id of the message that a reply answers."""
    return reply.metadata.reply_to_message_id if HAS_MESSAGE_API else reply.metadata.reply_to_message


# Legacy apps.


def start_server(grid: Any, server: Any, config: Any) -> Any:
    """Run a legacy Server, as flwr does it with what a server_fn returns; return its History."""
    if HAS_MESSAGE_API:
        return flwr_server_app.start_grid(grid=grid, server=server, config=config)
    return flwr_server_app.start_driver(driver=grid, server=server, config=config)
