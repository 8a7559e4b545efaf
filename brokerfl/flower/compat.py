"""The differences between versions of flwr, and each of its private names that brokerfl uses.

Owns all such names, as seen in 1.13.1, 1.25.0, 1.41.0 and 1.42.0 unless a comment says otherwise. It must not know the
values of records, or anything of brokerfl except its log.
"""

import copy
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from logging import WARNING
from types import SimpleNamespace
from typing import Any

from brokerfl.common import MissingExtra, log

#: The versions that the tests run with are the ends of this range and one in between.
OLDEST, NEWEST = (1, 13), (1, 42)


def _warn_of_untested() -> None:
    version = importlib.metadata.version("flwr")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not OLDEST <= numbers <= NEWEST:
        tested = " to ".join(".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        log(WARNING, "brokerfl is tested with flwr %s, not with %s, which is installed", tested, version)


_warn_of_untested()  # on import, and so only once


def _find(*names: str, modules: tuple[str, ...]) -> Any:
    """Return the first of ``names`` that one of ``modules`` has, or None; newer names and modules come first."""
    for module in modules:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:  # added after 1.13, or removed since
            continue
        for name in names:
            if hasattr(found, name):
                return getattr(found, name)
    return None


def _public(*names: str, modules: tuple[str, ...] = ("flwr.app", "flwr.common")) -> Any:
    """Return what `_find` returns.

    Raises:
        MissingExtra: this version of flwr has none of the names.
    """
    found = _find(*names, modules=modules)
    if found is not None:
        return found
    raise MissingExtra(
        f"flwr {importlib.metadata.version('flwr')} has no {' or '.join(names)} in {' or '.join(modules)}: "
        "pip install 'brokerfl[flower]' installs a version that brokerfl works with"
    )


# Public names. The names up to 1.17, RecordSet and …sRecord, still exist as aliases or deprecated subclasses.

Array = _public("Array")
ArrayRecord = _public("ArrayRecord", "ParametersRecord")
MetricRecord = _public("MetricRecord", "MetricsRecord")
ConfigRecord = _public("ConfigRecord", "ConfigsRecord")
RecordDict = _public("RecordDict", "RecordSet")
Context = _public("Context")
Error = _public("Error")
Message = _public("Message")
Metadata = _public("Metadata")
DEFAULT_TTL = float(_public("DEFAULT_TTL"))  # seconds: 1 hour in 1.13, 12 hours since
Grid = _public("Grid", "Driver", modules=("flwr.serverapp", "flwr.server"))

#: The module whose functions collect results from the threads of a legacy Server.
legacy_server = importlib.import_module("flwr.server.server")
Server = legacy_server.Server

# What legacy strategies are given, and give.
Parameters, Status, Code, FitIns, FitRes, EvaluateIns, EvaluateRes = (
    _public(name, modules=("flwr.common",))
    for name in ("Parameters", "Status", "Code", "FitIns", "FitRes", "EvaluateIns", "EvaluateRes")
)
ClientManager = _public("ClientManager", modules=("flwr.server", "flwr.server.client_manager"))
ClientProxy = _public("ClientProxy", modules=("flwr.server.client_proxy",))
DefaultWorkflow = _public("DefaultWorkflow", modules=("flwr.server.workflow",))

#: What a DefaultWorkflow does in a round if it is given nothing else.
default_fit_workflow = _find("default_fit_workflow", modules=(DefaultWorkflow.__module__,))

_GridClientProxy = _find(
    "GridClientProxy",
    "DriverClientProxy",
    modules=("flwr.server.compat.grid_client_proxy", "flwr.server.compat.driver_client_proxy"),
)

#: Of the message API; None before 1.21.
Strategy = _find("Strategy", modules=("flwr.serverapp.strategy",))

#: A RecordDict is one mapping of records of all kinds; the RecordSet of 1.13 has a mapping for each kind.
_IS_MAPPING = hasattr(RecordDict, "items")

_ATTRIBUTES = {ArrayRecord: "parameters_records", MetricRecord: "metrics_records", ConfigRecord: "configs_records"}


def _shape_type() -> type:
    """Return list or tuple: up to 1.18 a shape is a list, and 1.16 to 1.18 refuse a tuple."""
    try:
        Array("uint8", (0,), "numpy.ndarray", b"")
    except TypeError:
        return list
    return tuple if _IS_MAPPING else list


_SHAPE = _shape_type()


def records_of(records: Any) -> Iterable[tuple[str, Any]]:
    """Return the names and records of a RecordDict or RecordSet, in its order."""
    if _IS_MAPPING:
        return items_of(records)
    return [item for attribute in _ATTRIBUTES.values() for item in items_of(getattr(records, attribute))]


def items_of(mapping: Any) -> Iterable[tuple[str, Any]]:
    """Return the keys and values of a record as it is now: other threads of the app may change it meanwhile.

    A list of items is not enough: each is a tuple, which may start the garbage collector, whose callbacks let other
    threads in. Copying a dict creates nothing that the collector counts.
    """
    return mapping.items().mapping.copy().items()  # type: ignore[no-any-return]


def record_dict_of(records: Iterable[tuple[str, Any]]) -> Any:
    """Return a RecordDict or RecordSet with these records, in this order."""
    made = RecordDict()
    for name, record in records:
        if _IS_MAPPING:
            made[name] = record
        else:
            getattr(made, _ATTRIBUTES[type(record)])[name] = record
    return made


def replace_records(records: Any, others: Any) -> None:
    """Let a RecordDict or RecordSet hold what another one does; configs that both have are changed in place.

    flwr's workflows look at the round in a ConfigRecord that they hold.
    """
    pairs = [(records, others)]
    if not _IS_MAPPING:
        pairs = [(getattr(records, attribute), getattr(others, attribute)) for attribute in _ATTRIBUTES.values()]
    for mine, new in pairs:
        former = dict(items_of(mine))
        mine.clear()
        for name, record in items_of(new):
            held = former.get(name)
            if isinstance(held, ConfigRecord) and isinstance(record, ConfigRecord):
                held.clear()
                for key, value in items_of(record):
                    held[key] = value
                record = held
            mine[name] = record


def array_of(dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Any:
    """Return an Array."""
    return Array(dtype, _SHAPE(shape), stype, data)


def run_server_app(app: Any, grid: Any, context: Any, check: Callable[[object, str], None]) -> None:
    """Run a ServerApp, and pass what its functions returned to ``check``, with their names: flwr drops it."""

    def checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = function(*arguments)
            check(result, name)
            return result

        return call

    app = copy.copy(app)
    for attribute, name in (("_main", "main"), ("_server_fn", "server_fn")):
        function = getattr(app, attribute, None)
        if function is not None:
            setattr(app, attribute, checked(name, function))
    app(grid, context)


def client_proxy_of(node_id: int, grid: Any, run_id: int) -> Any:
    """Return what a legacy ClientManager has of a node, online or not."""
    given = {"node_id": node_id, "grid": grid, "driver": grid, "run_id": run_id, "anonymous": False}
    names = inspect.signature(_GridClientProxy).parameters
    return _GridClientProxy(**{name: value for name, value in given.items() if name in names})


#: What flwr's workflows (DefaultWorkflow, with SecAgg+ or without) keep in a ServerApp's state: the names of records,
#: and the keys of the second one. They never read them in another process.
WORKFLOW_RECORDS = ("parameters", "config")
WORKFLOW_KEYS = ("start_time", "current_round")


# Metadata and messages.

_METADATA = inspect.signature(Metadata).parameters


def metadata_of(reply_to_message_id: str, created_at: float, **fields: Any) -> Any:
    """Return a Metadata; ``fields`` are those with the same name in all versions."""
    is_new = "reply_to_message_id" in _METADATA
    fields["reply_to_message_id" if is_new else "reply_to_message"] = reply_to_message_id
    if "created_at" in _METADATA:
        fields["created_at"] = created_at
    return Metadata(**fields)


def message_of(content: Any = None, error: Any = None, *, created_at: float, **fields: Any) -> Any:
    """Return a Message with the metadata that `metadata_of` makes. Since 1.16 ``metadata=`` is "internal use only"."""
    message = Message(metadata=metadata_of(created_at=created_at, **fields), content=content, error=error)
    message.metadata.created_at = created_at  # 1.13 stamps it with the current time
    return message


def stamp(message: Any, **fields: int | str) -> None:
    """Set fields without a setter: run_id, src_node_id, message_id. flwr's own grids write to ``__dict__`` as well."""
    message.metadata.__dict__.update({f"_{name}": value for name, value in fields.items()})


# The process and the run.


#: The modules with runs: in 1.41, and before.
_RUN_MODULES = ("flwr.supercore.run", "flwr.common.typing")

_Run = _find("Run", modules=_RUN_MODULES)
_TaskIdentity = _find("TaskIdentity", modules=("flwr.supercore.task_identity",))

#: A BaseException; 1.13 has none.
RunNotRunning: type[BaseException] = _find("RunNotRunningException", modules=_RUN_MODULES) or type(
    "RunNotRunningException", (BaseException,), {}
)


def identify(run_id: int, node_id: int) -> None:
    """Tell flwr which run and node this process belongs to: since 1.38 no Message can be made without."""
    if _TaskIdentity is not None:
        _TaskIdentity.task_id, _TaskIdentity.run_id, _TaskIdentity.node_id = 1, run_id, node_id


def run_of(run_id: int, overrides: Mapping[str, Any]) -> Any:
    """Return the value of ``grid.run``; ``overrides`` are what the user gave of the run config."""
    run = _Run.create_empty(run_id) if hasattr(_Run, "create_empty") else SimpleNamespace(run_id=run_id)
    run.override_config = dict(overrides)
    return run


_NodeInfo = _find("NodeInfo", modules=("flwr.proto.node_pb2",))


def node_info_of(node_id: int, name: str, since: float) -> Any:
    """Return what ``grid.get_nodes`` does of a node that is online, as far as this version of flwr has fields for it.

    Args:
        node_id: its id.
        name: its name; "" for none.
        since: Unix time in seconds since when it is online; 0 if that is not known.
    """
    when = datetime.fromtimestamp(since, UTC).isoformat() if since else ""
    known = {"node_id": node_id, "status": "online", "registered_at": when, "last_activated_at": when, "name": name}
    if _NodeInfo is None:
        return SimpleNamespace(**known)
    fields = _NodeInfo.DESCRIPTOR.fields_by_name
    return _NodeInfo(**{field: value for field, value in known.items() if value and field in fields})
