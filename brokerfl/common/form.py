"""The form of a content: which records it needs, and what they have to hold.

Owns what does not fit, in words. It must not know replies, and keeps no array of what it is made from.
"""

import math
from reprlib import repr as short
from typing import Any, NamedTuple

from brokerfl.common.array import Array, SType
from brokerfl.common.record import ParametersRecord, Record
from brokerfl.common.recordset import KINDS, RecordSet

#: What another content may have to be like.
Like = RecordSet | ParametersRecord


class _ArrayForm(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    stype: str

    def __str__(self) -> str:
        kind = "" if self.stype == SType.NUMPY else f" and stype {short(self.stype)}"
        return f"{short(self.dtype)[1:-1]} of shape {short(self.shape)}{kind}"


class Form:
    """What another content has to be like.

    Args:
        like: a RecordSet, whose records another content must have, too; or one ParametersRecord, which must be like the
            only one of the other content.

    Raises:
        TypeError: it is neither.
    """

    @classmethod
    def of(cls, like: Like | None) -> "Form | None":
        """Return the form that ``like`` has; None for None.

        Raises:
            TypeError: it has none.
        """
        return None if like is None else cls(like)

    def __init__(self, like: Like) -> None:
        self._only = isinstance(like, ParametersRecord)
        if isinstance(like, ParametersRecord):
            like = RecordSet({"": like})
        elif not isinstance(like, RecordSet):
            raise TypeError(f"like= takes a RecordSet or a ParametersRecord, not {type(like).__name__}")
        self._records = [
            (name, kind, _described(record))
            for kind, records in like.by_kind().items()
            for name, record in records.items()
        ]

    def misfit(self, content: RecordSet) -> str | None:
        """Return what is wrong with a content, in words; None if it fits.

        Arrays must have the same names in the same order, the same dtypes and shapes, and only finite values. Metrics
        and configs must have the keys, with values of the same type; what else they have does not matter.
        """
        for name, kind, wanted in self._records:
            if self._only:
                found = list(content.by_kind()[kind].items())
                if len(found) != 1:
                    return f"it has {len(found)} {KINDS[kind].attribute}, not one"
                [(name, record)] = found
            elif name in content.by_kind()[kind]:
                record = content.by_kind()[kind][name]
            else:
                return f"it has no {kind.__name__} {name!r}"
            reason = _misfit_of(record, wanted)
            if reason is not None:
                return f"{kind.__name__} {name!r}: {reason}"
        return None


def _described(record: Record[Any]) -> dict[str, Any]:
    return {key: _form_of(value) for key, value in record.items()}


def _form_of(value: Any) -> Any:
    """Return the form of an array, the type of any other value, or a list with the type of a list's elements."""
    if isinstance(value, Array):
        return _ArrayForm(value.dtype, tuple(value.shape), value.stype)
    if isinstance(value, list):
        return [_kind_of(each) for each in value[:1]]
    return _kind_of(value)


def _kind_of(value: Any) -> type:
    """Return the type of a scalar: a float may be a subclass, as numpy's float64."""
    return next(kind for kind in (bool, int, float, str, bytes) if isinstance(value, kind))


def _misfit_of(record: Record[Any], wanted: dict[str, Any]) -> str | None:
    for key, form in wanted.items():
        if key not in record:
            return f"it has no {key!r}"
        value = record[key]
        reason = _misfit_of_array(value, form) if isinstance(value, Array) else _misfit_of_value(value, form)
        if reason is not None:
            return f"{key!r} {reason}"
    if isinstance(record, ParametersRecord):
        for key, own in zip(record, wanted, strict=False):
            if key != own:
                return f"{short(key)} is in the place of {own!r}"
        if len(record) > len(wanted):
            return f"it also has {short(list(record)[len(wanted)])}"
    return None


def _misfit_of_array(array: Array, form: _ArrayForm) -> str | None:
    found = _form_of(array)
    if found != form:
        return f"is {found}, not {form}"
    if array.stype != SType.NUMPY:
        return None  # only the app knows what it holds
    try:
        return None if array.is_finite() else "has a value that is infinite or NaN"
    except (TypeError, ValueError) as error:
        return f"cannot be read: {error}"


def _misfit_of_value(value: Any, form: Any) -> str | None:
    found = _form_of(value)
    values, wanted = (value, form) if isinstance(value, list) else ([value], [form])
    if isinstance(form, list) != isinstance(value, list) or not _is_like(found if values is value else [found], wanted):
        return f"is {_named(found)}, not {_named(form)}"
    bad = [each for each in values if isinstance(each, float) and not math.isfinite(each)]
    return f"has the value {bad[0]}" if bad else None


def _is_like(found: list[type], wanted: list[type]) -> bool:
    """Whether the elements of one list can stand for those of another: any can for none, and an int for a float."""
    return not found or not wanted or found == wanted or (found == [int] and wanted == [float])


def _named(form: Any) -> str:
    if isinstance(form, list):
        return f"a list of {form[0].__name__}" if form else "an empty list"
    return f"of type {form.__name__}"
