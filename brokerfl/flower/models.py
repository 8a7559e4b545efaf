"""The models that the steps of a loop gave.

Owns which of them a record has, and what stands for one that it no longer has. It must not know what a step is.

flwr's own loop only needs the last model of the rounds that are over. The loop of an app may use each of them again,
such as to keep the best one, so those are kept, up to a limit.
"""

from typing import Any, NoReturn

from brokerfl.common import RunDiverged
from brokerfl.flower import compat
from brokerfl.flower.keeper import Keeper, Kept
from brokerfl.flower.values import decode
from brokerfl.server.record import Record
from brokerfl.wire.manifest import manifest_of
from brokerfl.wire.steps import MODEL, decode_value, named, tree_and_arrays

#: Most bytes of the models of an app's own loop that a record keeps; the oldest go first.
MOST_KEPT = 1024**3


def is_model(value: Any) -> bool:
    """Return whether an aggregate hook may give this for a model: None is that there is no new one."""
    return value is None or isinstance(value, compat.ArrayRecord)


def form_of(arrays: Any) -> list[str] | None:
    """Return the names, dtypes and shapes of a model, in words; None if it is none."""
    if not isinstance(arrays, compat.ArrayRecord):
        return None
    return [f"{name}: {array.dtype} of shape {tuple(array.shape)}" for name, array in compat.items_of(arrays)]


class Models:
    """The models in one run's record, by the step that gave them.

    Args:
        record: what a former ServerApp recorded is taken over.
        keeper: encodes and uploads new ones.
    """

    def __init__(self, record: Record, keeper: Keeper) -> None:
        self._record = record
        self._keeper = keeper
        self._fresh: dict[int, Any] = {}
        self._kept = {int(step): _kept(field) for step, field in named(record.fields, MODEL)}
        self._own: dict[int, None] = {}  # those of an app's own loops, in their order

    def has(self, step: int) -> bool:
        """Return whether the record has this model."""
        return step in self._kept

    def recall(self, step: int) -> Any:
        """Return a recorded model, or what stands for it."""
        content = self._record.read(f"{MODEL}{step}")
        if content is None:
            return Gone(step)
        return decode(*tree_and_arrays(content))

    def note(self, step: int, arrays: Any, begun: int, is_flowers: bool) -> None:
        """A step gave a model. In flwr's own loop, which ``begun`` began, it takes the place of the one before."""
        if is_flowers:
            for former in [each for each in (*self._kept, *self._fresh) if begun <= each < step]:
                self._kept.pop(former, None)
                self._fresh.pop(former, None)
                self._own.pop(former, None)
        else:
            self._own[step] = None
        self._fresh[step] = arrays

    def kept(self) -> dict[str, Kept]:
        """Return what a record has of them, by name; what is new is uploaded.

        Raises:
            RecordTypeError, ValueError, MessageTooLarge, RedisOutOfMemory, OutageLimit, RunError: as `Keeper.keep`.
        """
        for step, arrays in list(self._fresh.items()):
            kept = self._keeper.keep(f"{MODEL}{step}", arrays, is_model=True)
            assert kept is not None, "only cells are as main makes them"
            self._kept[step] = kept
            del self._fresh[step]
        self._keep_to_limit()
        found = {f"{MODEL}{step}": kept for step, kept in self._kept.items()}
        self._kept = {step: kept._replace(upload=None) for step, kept in self._kept.items()}
        return found

    def _keep_to_limit(self) -> None:
        size = sum(self._kept[step].size for step in self._own if step in self._kept)
        for step in list(self._own)[:-1]:
            if size <= MOST_KEPT:
                return
            size -= self._kept.pop(step).size if step in self._kept else 0
            del self._own[step]


def _kept(field: bytes) -> Kept:
    fields = decode_value(field)
    manifest = manifest_of(fields)
    if manifest is None:
        return Kept(field, b"", sum(map(len, fields.values())))
    return Kept(field, manifest.key, manifest.size)


class _Nothing(dict[str, Any]):
    """The arrays of a model that the record no longer has."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def _refuse(self, *arguments: Any) -> NoReturn:
        raise RunDiverged(
            f"this app uses the model of an early round again (step {self._step}), and a record keeps only the last "
            f"{MOST_KEPT // 1024**2:,} MiB of models: begin anew with --from-start"
        )

    __getitem__ = __iter__ = __len__ = __contains__ = __eq__ = __repr__ = _refuse
    keys = values = items = copy = get = _refuse
    __hash__ = None


class Gone(compat.ArrayRecord):  # type: ignore[misc]  # of any flwr
    """Stands for a model that the record no longer has: whoever looks into it is told so."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.__dict__["_data"] = _Nothing(step)
