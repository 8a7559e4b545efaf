"""`brokerfl metrics`: what Prometheus reads, and whether docs/monitoring speaks of just that."""

import json
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from brokerfl.broker.connection import connect
from brokerfl.broker.embedded import EmbeddedServer
from brokerfl.cli.collector import serving
from brokerfl.cli.main import main
from brokerfl.view import watch
from brokerfl.view.reasons import OVER, NodeState, Reason, RunState
from brokerfl.view.watch import Watch
from tests.apps import eventually
from tests.cli.conftest import DEADLINE, Broker, Commands, error_of
from tests.cli.scene import HOSTILE, Scene, patient, scene
from tests.conftest import PREFIX, Backend, real_backend

pytestmark = pytest.mark.timeout(180)

__all__ = ["patient"]  # the fixture

MONITORING = Path(__file__).parent.parent.parent / "docs" / "monitoring"


class Scrape:
    """What an endpoint says."""

    def __init__(self, port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE) as answer:
            self.families = list(text_string_to_metric_families(answer.read().decode()))
        self.samples = [sample for family in self.families for sample in family.samples]

    def __call__(self, name: str, /, **labels: str) -> float:
        """The value of a metric; the test names as many labels as tell it from others."""
        [value] = [
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return float(value)

    def values(self, name: str, label: str) -> dict[str, float]:
        """The value of each label."""
        return {sample.labels[label]: sample.value for sample in self.samples if sample.name == name}


def scrape_once(looks: Watch) -> Scrape:
    """What an endpoint says that is there just for this."""
    with serving(looks, "127.0.0.1", 0) as (port, _):
        return Scrape(port)


@pytest.fixture
def valkey(valkey_url: str) -> Backend:
    """The embedded Valkey, empty."""
    made = real_backend("valkey", valkey_url)
    made.admin.flushall()
    return made


@pytest.fixture(scope="module")
def there(valkey_url: str) -> tuple[Scene, Scrape]:
    """A scene that is over, and what was scraped of it."""
    backend = real_backend("valkey", valkey_url)
    backend.admin.flushall()
    with scene(backend) as made:
        return made, scrape_once(Watch(backend.connect()))


def test_a_scrape(there: tuple[Scene, Scrape]) -> None:
    """Runs and nodes with their states and reasons, one-hot over the closed lists; a run that has ended is left out."""
    made, scrape = there
    run, gone, node = str(made.stuck), str(made.detached), str(made.node)
    assert (scrape("brokerfl_up"), scrape("brokerfl_redis_away")) == (1, 0)
    states = {state.value: 0.0 for state in RunState if state not in OVER}
    assert scrape.values("brokerfl_runs", "state") == {**states, "stuck": 1.0, "detached": 1.0}
    assert scrape.values("brokerfl_nodes", "state") == {**{state.value: 0.0 for state in NodeState}, "late": 1.0}
    assert scrape.values("brokerfl_run_age_seconds", "run").keys() == {run, gone}
    reasons = {reason.value for reason in Reason} - {Reason.NONE, Reason.REDIS_AWAY}
    given = {
        (sample.labels["run"], sample.labels["reason"]): sample.value
        for sample in scrape.samples
        if sample.name == "brokerfl_run_reason"
    }
    assert given == {
        (each, reason): (each, reason) in ((run, "node_late"), (gone, "detached"))
        for each in (run, gone)
        for reason in reasons
    }
    assert scrape("brokerfl_node_state", node=node, state="late") == 1
    assert scrape("brokerfl_run_messages_total", run=run, name="", app="server:app") == 2
    assert scrape("brokerfl_run_group_answered", run=run) == 1
    assert scrape("brokerfl_run_waiting_seconds", run=run) >= 60
    assert scrape("brokerfl_run_memory_bytes", run=run) == 4096
    assert scrape("brokerfl_node_errors_total", node=node, name="site-9") == 2
    assert scrape("brokerfl_node_executions_total", node=node) == 7
    assert scrape("brokerfl_node_busy_seconds", node=node) >= 60
    assert scrape("brokerfl_redis_used_bytes", server="1") > 0
    assert scrape("brokerfl_redis_full", server="1") == 0


def test_names_and_kinds(there: tuple[Scene, Scrape]) -> None:
    """What only grows is a counter and ends with _total, all else is a gauge; each has a help."""
    _, scrape = there
    assert {family.type for family in scrape.families} == {"counter", "gauge"}
    for family in scrape.families:
        assert family.documentation
        for sample in family.samples:
            assert re.fullmatch("brokerfl_[a-z_]+", sample.name)
            assert sample.name.endswith("_total") is (family.type == "counter")


def test_any_name_can_be_scraped(valkey: Backend) -> None:
    """Whatever a node is called."""
    with scene(valkey, HOSTILE):
        names = scrape_once(Watch(valkey.connect())).values("brokerfl_node_queue_messages", "name")
    assert names.keys() == {HOSTILE.replace("\n", "\\n")}


# docs/monitoring.

WORDS = {"by", "sum", "min", "rate", "increase", "absent", "label_values"}


def expressions() -> list[str]:
    """All that the rules and the dashboard ask Prometheus."""
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            found.extend(text for key, text in value.items() if key in ("expr", "definition") and isinstance(text, str))
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                walk(each)

    walk(yaml.safe_load((MONITORING / "alerts.yml").read_text()))
    walk(json.loads((MONITORING / "grafana-dashboard.json").read_text()))
    assert len(found) > 20
    return found


def test_rules_and_dashboard_name_what_there_is(there: tuple[Scene, Scrape]) -> None:
    """Every metric, label and value in docs/monitoring is exposed."""
    _, scrape = there
    labels: dict[str, set[str]] = {}
    for sample in scrape.samples:
        labels.setdefault(sample.name, {"instance"}).update(sample.labels)
    for expression in expressions():
        named = re.findall(r"(brokerfl_[a-z_]+)(?:\{([^}]*)\})?", expression)
        assert named, expression
        for metric, matchers in named:
            assert metric in labels, expression
            for label, value in re.findall(r'(\w+)\s*(?:=|!=|=~|!~)\s*"([^"]*)"', matchers):
                assert label in labels[metric], expression
                if label in ("state", "reason"):
                    assert set(value.split("|")) <= scrape.values(metric, label).keys(), expression
        for grouped in re.findall(r"by \((\w+)\)", expression):
            assert any(grouped in labels[metric] for metric, _ in named), expression


def test_the_text_of_rules_and_dashboard_has_labels_that_there_are(there: tuple[Scene, Scrape]) -> None:
    """What alerts say, and what the lines are called."""
    _, scrape = there
    known = {"instance"}.union(*(sample.labels for sample in scrape.samples))
    text = (MONITORING / "alerts.yml").read_text()
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= known
    assert set(re.findall(r"\{\{(\w+)\}\}", (MONITORING / "grafana-dashboard.json").read_text())) <= known


def test_the_readme_lists_all_metrics(there: tuple[Scene, Scrape]) -> None:
    """And no others; but those that not every node has are not in the scene."""
    _, scrape = there
    listed = set(re.findall(r"`(brokerfl_[a-z_]+)`", (MONITORING / "README.md").read_text()))
    exposed = {f"{family.name}_total" if family.type == "counter" else family.name for family in scrape.families}
    assert listed == exposed


# A Redis that is away.


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """A server of the test's own."""
    with EmbeddedServer() as made:
        yield made


def test_the_endpoint_outlives_redis(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without Redis it answers, says redis_away and nothing of runs; it logs that once, and the end of it."""
    monkeypatch.setattr(watch, "_FRESH", 0.0)
    with serving(Watch(connect(server.url, prefix=PREFIX)), "127.0.0.1", 0) as (port, _):
        assert Scrape(port)("brokerfl_up") == 1
        server.stop()
        for _ in range(2):
            scrape = Scrape(port)
            assert (scrape("brokerfl_up"), scrape("brokerfl_redis_away")) == (0, 1)
            assert {sample.name for sample in scrape.samples} == {"brokerfl_up", "brokerfl_redis_away"}
        server.start()
        eventually(lambda: Scrape(port)("brokerfl_up") == 1, DEADLINE)
    assert [record.levelname for record in caplog.records if record.name == "brokerfl"] == ["WARNING", "INFO"]


def test_nobody_waits_long_for_a_frozen_redis(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as away, while the one look that is under way waits for it; what was seen is kept."""
    monkeypatch.setattr(watch, "_FRESH", 0.0)
    looks = Watch(connect(server.url, prefix=PREFIX))
    seen = looks.look()
    os.kill(server.pid, signal.SIGSTOP)
    monkeypatch.setattr(watch, "_PATIENCE", 0.0)
    asked = []
    read = watch.read_overview
    monkeypatch.setattr(watch, "read_overview", lambda connection: asked.append(1) or read(connection))
    away = [looks.look() for _ in range(3)]
    os.kill(server.pid, signal.SIGCONT)
    assert [(each.reason, each.overview) for each in away] == [(Reason.REDIS_AWAY, seen.overview)] * 3
    assert all(each.why.startswith("Redis has not answered for ") for each in away)
    monkeypatch.setattr(watch, "_PATIENCE", DEADLINE)
    assert (looks.look().reason, len(asked)) == (Reason.NONE, 1)


def test_all_who_ask_at_once_share_a_look(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are; later ones get another."""
    looks = Watch(connect(server.url, prefix=PREFIX))
    monkeypatch.setattr(watch, "_FRESH", float("inf"))
    assert looks.look().overview is looks.look().overview
    monkeypatch.setattr(watch, "_FRESH", 0.0)
    assert looks.look().overview is not looks.look().overview


# The command.


def test_the_command(commands: Commands, broker: Broker) -> None:
    """It says where it is, a port in use is named, and SIGTERM ends it with 0."""
    process = commands.start("brokerfl", "metrics", "--port", "0")
    port = process.wait_for(r"Metrics are at http://127\.0\.0\.1:(\d+)/metrics\. Ctrl-C stops this\.")
    eventually(lambda: Scrape(int(port))("brokerfl_up") == 1, DEADLINE)
    second = commands.start("brokerfl", "metrics", "--port", port)
    abroad = commands.start("brokerfl", "metrics", "--port", "0", "--host", "192.0.2.1")
    assert f"port {port} cannot be used (Address already in use)" in error_of(second.ends(16))
    assert "--host 192.0.2.1 is not an address of this machine" in error_of(abroad.ends(2))
    process.send(signal.SIGTERM)
    assert process.ends(0).out.endswith("Stopped.\n")


@pytest.mark.parametrize(
    ("command", "package"), [("metrics", "prometheus_client"), ("dashboard", "uvicorn"), ("dashboard", "starlette")]
)
def test_a_missing_extra_is_named(command: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    for importer in ("brokerfl.cli.collector", "brokerfl.cli.site"):
        monkeypatch.delitem(sys.modules, importer, raising=False)
    ended = CliRunner().invoke(main, [command])
    assert ended.exit_code == 40
    assert f"needs {package}: pip install 'brokerfl[{command}]'" in ended.output
