"""The gate's file: what a site lets the owners of runs do, as its operator writes it.

Owns the keys of the file and what they allow. It must not know runs that wait, or who approves them.

A key that is left out restricts nothing; only ``approve`` must be there.
"""

import base64
import binascii
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from enum import StrEnum
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from brokerfl.common import ConfigError, Message, is_message_type
from brokerfl.common.config import SCALARS
from brokerfl.wire.run import Run

#: The table of owners that have none of their own.
ANYBODY = "*"

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_REALM, _KEY_BYTES = re.compile("[1-9][0-9]{3}"), 32

_SPAN = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")

_DAY, _MINUTE = 24 * 60, 60


class Approve(StrEnum):
    """Whether somebody at the site has to approve the runs of an owner."""

    ALWAYS = "always"  # what the table allows is approved
    ASK = "ask"
    NEVER = "never"


@dataclass(frozen=True)
class Values:
    """Values that a config key may have.

    Attributes:
        listed: these; None for any.
        least, most: numbers from and up to these.
    """

    listed: tuple[bool | int | float | str, ...] | None = None
    least: float | None = None
    most: float | None = None

    def allow(self, value: Any) -> bool:
        """Whether a value, or each value of a list, is allowed."""
        if isinstance(value, list):
            return all(self.allow(each) for each in value)
        if self.listed is not None:
            return any(_is_same(value, each) for each in self.listed)
        if self.least is None and self.most is None:
            return True
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.least is None or self.least <= value) and (self.most is None or value <= self.most)


def _is_same(value: Any, allowed: Any) -> bool:
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)


@dataclass(frozen=True)
class Rule:
    """What one owner may do. What is None is not restricted.

    Attributes:
        approve: whether somebody has to approve each run.
        apps: projects, digests of code, or ServerApps as ``module:attribute``.
        types: message types; ``train.*`` stands for all of train.
        run_config, message_configs: the keys that there may be, and their values.
        most_open_runs: how many runs may be open at once.
        most_messages: how many messages may be executed in an hour.
        hours: minutes of the day, from and to.
        days: days of the week, from 0 for Monday.
        zone: of both; None for that of the machine.
    """

    approve: Approve
    apps: frozenset[str] | None = None
    types: frozenset[str] | None = None
    run_config: Mapping[str, Values] | None = None
    message_configs: Mapping[str, Values] | None = None
    most_open_runs: int | None = None
    most_messages: int | None = None
    hours: tuple[tuple[int, int], ...] | None = None
    days: frozenset[int] | None = None
    zone: tzinfo | None = None

    def objection(self, run: Run, message_type: str) -> str:
        """Return why a message of a run is not allowed before its content is known; "" if it is."""
        if self.apps is not None and self.apps.isdisjoint(names_of(run)):
            return "its app is not allowed"
        kind = message_type.partition(".")[0]
        if self.types is not None and self.types.isdisjoint((message_type, f"{kind}.*")):
            return f"messages of type {message_type} are not allowed"
        return "" if self.run_config is None else _objection("run config", self.run_config, run.run_config.items())

    def objection_to_content(self, configs: Iterable[tuple[str, Any]]) -> str:
        """Return why a message with these configs is not allowed; "" if it is."""
        return "" if self.message_configs is None else _objection("message", self.message_configs, configs)

    def opens(self, now: float) -> float:
        """Return the Unix time from which it is a time of the week at which messages are executed; 0 for now."""
        if self._is_open(now):
            return 0.0
        next_minute = now - now % _MINUTE + _MINUTE
        times = (next_minute + _MINUTE * minute for minute in range(8 * _DAY))  # as the clock shows it: it may be set
        return next((at for at in times if self._is_open(at)), next_minute + _MINUTE * 8 * _DAY)

    def _is_open(self, at: float) -> bool:
        local = datetime.fromtimestamp(at, self.zone)
        minute = local.hour * 60 + local.minute
        if self.days is not None and local.weekday() not in self.days:
            return False
        return self.hours is None or any(
            first <= minute < last if first < last else minute >= first or minute < last for first, last in self.hours
        )


def _objection(what: str, allowed: Mapping[str, Values], configs: Iterable[tuple[str, Any]]) -> str:
    for key, value in configs:
        if key not in allowed:
            return f"the {what} has {key!r}, which is not allowed"
        if not allowed[key].allow(value):
            return f"the {what} has a value of {key!r} that is not allowed"
    return ""


def names_of(run: Run) -> set[str]:
    """Return by what a file may name a run's app."""
    origin = run.origin
    return {run.app, *(filter(None, (origin.project, origin.digest)) if origin is not None else ())}


def configs_in(message: Message) -> list[tuple[str, Any]]:
    """Return the configs of a message, whatever the names of their records."""
    records = message.content.configs_records
    return [(key, value) for record in records.values() for key, value in record.items()]


Rules = Mapping[str, Rule]


def read_gate_file(path: Path) -> Rules:
    """Return the rules by owner: a public key in base64, a realm, or `ANYBODY`.

    Raises:
        ConfigError: it cannot be read, or has a key or value that it cannot have; the text names file, table and key.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the gate file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return {owner: _rule(path, owner, table) for owner, table in tables.items()}


def _rule(path: Path, owner: str, table: Any) -> Rule:
    where = f"the gate file {path}: "
    if not isinstance(table, dict):
        raise ConfigError(f"{where}{owner!r} must be a table with the name of an owner")
    if not _is_owner(owner):
        raise ConfigError(
            f"{where}[{owner!r}] names no owner: write a public key (base64 of 32 bytes), a realm (four digits) or '*'"
        )
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _KEYS:
            raise ConfigError(f"{where}[{owner!r}] has an unknown key {key!r}; the keys are {', '.join(_KEYS)}")
        name, read = _KEYS[key]
        try:
            found[name] = read(value)
        except ValueError as error:
            raise ConfigError(f"{where}[{owner!r}] {key} {error}") from None
    if "approve" not in found:
        raise ConfigError(f'{where}[{owner!r}] has no approve: write "always", "ask" or "never"')
    return Rule(**found)


def _is_owner(owner: str) -> bool:
    if owner == ANYBODY or _REALM.fullmatch(owner):
        return True
    try:
        return len(base64.b64decode(owner, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


# The values. Each function raises ValueError with what follows the name of the key.


def _approve(value: Any) -> Approve:
    if value not in tuple(Approve):
        raise ValueError(f'is {value!r}, but must be "always", "ask" or "never"')
    return Approve(value)


def _texts(value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"is {value!r}, but must be a list of strings")
    return frozenset(value)


def _types(value: Any) -> frozenset[str]:
    for each in (found := _texts(value)):
        if not is_message_type(each.removesuffix(".*")):
            raise ValueError(f"has {each!r}, but must have types such as train, train.warmup or train.*")
    return found


def _configs(value: Any) -> dict[str, Values]:
    if not isinstance(value, dict):
        raise ValueError(f"is {value!r}, but must be a table of config keys")
    return {key: _values(key, each) for key, each in value.items()}


def _values(key: str, value: Any) -> Values:
    if isinstance(value, list) and all(isinstance(each, SCALARS) for each in value):
        return Values(tuple(value))
    is_range = isinstance(value, dict) and value.keys() <= {"min", "max"}
    if not is_range or not all(type(each) in (int, float) for each in value.values()):
        raise ValueError(f"{key} is {value!r}, but must be a list of values, {{min = 1, max = 9}}, or {{}} for any")
    return Values(None, value.get("min"), value.get("max"))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"is {value!r}, but must be a number from 0 on")
    return value


def _hours(value: Any) -> tuple[tuple[int, int], ...]:
    return tuple(_span(each) for each in ([value] if isinstance(value, str) else _in_order(value)))


def _in_order(value: Any) -> list[str]:
    _texts(value)
    return list(value)


def _span(text: str) -> tuple[int, int]:
    found = _SPAN.fullmatch(text)
    first, last = (60 * int(found[1]) + int(found[2]), 60 * int(found[3]) + int(found[4])) if found else (0, 0)
    if first == last or last > _DAY:
        raise ValueError(f"has {text!r}, but must have spans such as 08:00-18:00 or 22:00-06:00")
    return first, last


def _days(value: Any) -> frozenset[int]:
    for each in (found := _texts(value)):
        if each not in DAYS:
            raise ValueError(f"has {each!r}, but must have days such as Mon or Sun")
    return frozenset(map(DAYS.index, found))


def _zone(value: Any) -> tzinfo:
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise ValueError(f"is {value!r}, but must be a time zone of this system, such as Europe/Berlin") from None


_KEYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "approve": ("approve", _approve),
    "apps": ("apps", _texts),
    "types": ("types", _types),
    "run-config": ("run_config", _configs),
    "message-configs": ("message_configs", _configs),
    "most-open-runs": ("most_open_runs", _count),
    "most-messages-an-hour": ("most_messages", _count),
    "hours": ("hours", _hours),
    "days": ("days", _days),
    "time-zone": ("zone", _zone),
}
