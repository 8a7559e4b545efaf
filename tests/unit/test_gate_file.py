"""The gate's file: what it allows, and what is said of one that is wrong."""

from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from brokerfl.client.gate_file import ANYBODY, Rule, read_gate_file
from brokerfl.common import ConfigError
from brokerfl.wire.origin import Origin
from brokerfl.wire.run import Run

KEY = "A" * 43 + "="


def rule(tmp_path: Path, text: str, owner: str = ANYBODY) -> Rule:
    """The rule of an owner whose table has this, and always approves."""
    file = tmp_path / "gate.toml"
    file.write_text(f'["{owner}"]\napprove = "always"\n{text}')
    return read_gate_file(file)[owner]


def run(**config: Any) -> Run:
    """A run of a project."""
    return Run(1234567890123456789, "server:app", config, 0.0, Origin("server:app", "mnist", "1.0", "ab" * 32))


@pytest.mark.parametrize(
    ("text", "message_type", "objection"),
    [
        ("", "query.anything", ""),
        ('apps = ["mnist"]', "train", ""),
        ('apps = ["server:app"]', "train", ""),
        (f'apps = ["{"ab" * 32}"]', "train", ""),
        ('apps = ["server", "MNIST", "1.0"]', "train", "its app is not allowed"),
        ("apps = []", "train", "its app is not allowed"),
        ('types = ["train"]', "train", ""),
        ('types = ["train"]', "train.warmup", "messages of type train.warmup are not allowed"),
        ('types = ["train.warmup"]', "train.warmup", ""),
        ('types = ["train.warmup"]', "train", "messages of type train are not allowed"),
        ('types = ["train.*", "evaluate"]', "train.warmup", ""),
        ('types = ["train.*", "evaluate"]', "train", ""),
        ('types = ["train.*", "evaluate"]', "evaluate.all", "messages of type evaluate.all are not allowed"),
    ],
)
def test_apps_and_types(tmp_path: Path, text: str, message_type: str, objection: str) -> None:
    """By the name of the project, its digest, or the ServerApp; types are exact."""
    assert rule(tmp_path, text).objection(run(), message_type) == objection


@pytest.mark.parametrize(
    ("allowed", "value", "is_allowed"),
    [
        ("{}", "anything", True),
        ("{}", b"\xff", True),
        ("[1, 2]", 1, True),
        ("[1, 2]", 1.0, True),
        ("[1, 2]", 3, False),
        ("[1]", True, False),
        ("[true]", True, True),
        ("[true]", 1, False),
        ('["adam"]', "adam", True),
        ('["adam"]', b"adam", False),
        ('["1"]', 1, False),
        ("[1, 2]", [1, 2, 1], True),
        ("[1, 2]", [1, 3], False),
        ("[]", [], True),
        ("[]", 1, False),
        ("{min = 1, max = 3}", 1, True),
        ("{min = 1, max = 3}", 3.0, True),
        ("{min = 1, max = 3}", 3.1, False),
        ("{min = 1}", float("inf"), True),
        ("{max = 3}", float("nan"), False),
        ("{min = 0}", True, False),
        ("{min = 0}", "5", False),
    ],
)
def test_values(tmp_path: Path, allowed: str, value: Any, is_allowed: bool) -> None:
    """Of the run config, and of a message's configs; booleans are no numbers."""
    found = rule(tmp_path, f'["*".run-config]\nlr = {allowed}\n["*".message-configs]\nlr = {allowed}')
    assert (found.objection_to_content([("lr", value)]) == "") is is_allowed
    if not isinstance(value, list | bytes):
        assert (found.objection(run(lr=value), "train") == "") is is_allowed


def test_only_what_is_named_is_allowed(tmp_path: Path) -> None:
    """A key that the table does not have is none that is allowed; without the table, all are."""
    found = rule(tmp_path, '["*".run-config]\nlr = {}')
    assert found.objection(run(lr=1, code="x"), "train") == "the run config has 'code', which is not allowed"
    assert found.objection_to_content([("code", "x")]) == ""


BERLIN = 'time-zone = "Europe/Berlin"\n'


@pytest.mark.parametrize(
    ("text", "at", "opens"),
    [
        ('hours = "08:00-18:00"', "2026-11-30 08:00", ""),
        ('hours = "08:00-18:00"', "2026-11-30 17:59", ""),
        ('hours = "08:00-18:00"', "2026-11-30 18:00", "2026-12-01 08:00"),
        ('hours = ["22:00-06:00"]', "2026-11-30 23:00", ""),
        ('hours = ["22:00-06:00"]', "2026-11-30 05:59", ""),
        ('hours = ["22:00-06:00"]', "2026-11-30 06:00", "2026-11-30 22:00"),
        ('hours = ["12:00-12:30", "00:00-24:00"]', "2026-11-30 23:59", ""),
        ('days = ["Sat", "Sun"]', "2026-11-30 10:00", "2026-12-05 00:00"),
        ('days = ["Sat", "Sun"]', "2026-12-06 23:59", ""),
        ('days = ["Mon"]\nhours = "09:00-10:00"', "2026-11-30 10:00", "2026-12-07 09:00"),
        ('hours = "02:00-02:30"', "2026-03-29 01:00", "2026-03-30 02:00"),  # that night there is no half past two
    ],
)
def test_times(tmp_path: Path, text: str, at: str, opens: str) -> None:
    """By the clock of the time zone, over midnight and the change to summer time."""

    def unix(text: str) -> float:
        return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).timestamp()

    assert rule(tmp_path, BERLIN + text).opens(unix(at) + 30) == (unix(opens) if opens else 0.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = [", "cannot be read: "),
        ("x = 1", "'x' must be a table"),
        ("[x]\n", "['x'] names no owner: write a public key"),
        ("[12345]\n", "['12345'] names no owner"),
        ('["*"]\n', '[\'*\'] has no approve: write "always", "ask" or "never"'),
        ('[1234]\napprove = "yes"', "['1234'] approve is 'yes'"),
        ('[1234]\napprove = "ask"\nApps = []', "['1234'] has an unknown key 'Apps'; the keys are approve, apps, "),
        ('[1234]\napprove = "ask"\napps = "mnist"', "['1234'] apps is 'mnist', but must be a list of strings"),
        ('[1234]\napprove = "ask"\ntypes = ["fit"]', "['1234'] types has 'fit', but must have types such as"),
        ('[1234]\napprove = "ask"\nrun-config = ["lr"]', "['1234'] run-config is ['lr'], but must be a table"),
        ('[1234]\napprove = "ask"\nrun-config.lr = 1', "['1234'] run-config lr is 1, but must be a list of values"),
        ('[1234]\napprove = "ask"\nrun-config.lr.mn = 1', "['1234'] run-config lr is {'mn': 1}, but must be"),
        ('[1234]\napprove = "ask"\nmessage-configs.lr.min = "1"', "['1234'] message-configs lr is {'min': '1'}"),
        ('[1234]\napprove = "ask"\nmost-open-runs = true', "['1234'] most-open-runs is True, but must be a number"),
        ('[1234]\napprove = "ask"\nmost-messages-an-hour = -1', "['1234'] most-messages-an-hour is -1"),
        ('[1234]\napprove = "ask"\nhours = "8-18"', "['1234'] hours has '8-18', but must have spans"),
        ('[1234]\napprove = "ask"\nhours = "08:00-24:01"', "['1234'] hours has '08:00-24:01'"),
        ('[1234]\napprove = "ask"\nhours = 8', "['1234'] hours is 8, but must be a list of strings"),
        ('[1234]\napprove = "ask"\ndays = ["Monday"]', "['1234'] days has 'Monday', but must have days such as Mon"),
        ('[1234]\napprove = "ask"\ntime-zone = "Nowhere/At"', "['1234'] time-zone is 'Nowhere/At'"),
        ('[1234]\napprove = "ask"\ntime-zone = 5', "['1234'] time-zone is 5"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, told: str) -> None:
    """File, table, key, and what it should be."""
    file = tmp_path / "gate.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_gate_file(file)
    assert str(error.value).startswith(f"the gate file {file}")
    assert told in str(error.value)


def test_owners(tmp_path: Path) -> None:
    """A realm, a public key, and everybody else."""
    for owner in ("1234", KEY, ANYBODY):
        assert rule(tmp_path, "", owner) is not None
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_gate_file(tmp_path / "missing.toml")


def test_the_example_is_one() -> None:
    """The file in the examples can be read."""
    rules = read_gate_file(Path(__file__).parent.parent.parent / "examples" / "gate" / "gate.toml")
    assert ANYBODY in rules
