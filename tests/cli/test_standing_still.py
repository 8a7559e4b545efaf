"""What stands still, and because of whom, is said in the same words everywhere: one federation with every ailment.

Five nodes, six runs: site-7 is ten times slower than the others, site-9 hangs, one ServerApp is killed, one run waits
for nodes, one is paused by an operator, one gets on; in the end Redis is full.
"""

import json
import re
import signal
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.apps import eventually
from tests.cli.conftest import DEADLINE, Broker, Commands, Process, run_id

pytestmark = pytest.mark.timeout(240)

CLIENT = """
import time
from pathlib import Path

from brokerfl.client import ClientApp
from brokerfl.common import Context, Message

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    time.sleep(float(context.node_config["pace"]))
    while context.node_config.get("hangs") and message.metadata.group_id == "hang":
        time.sleep(0.1)
    return message.create_reply(message.content)
"""

SERVER = """
from itertools import count

from brokerfl.common import Context, MetricsRecord, RecordSet
from brokerfl.server import Driver, ServerApp

app = ServerApp()


@app.main()
def main(driver: Driver, context: Context) -> None:
    config = context.run_config
    driver.wait_for_nodes(int(config.get("needed", 5)))
    sites = str(config.get("sites", "")).split()
    nodes = [node.node_id for node in driver.get_nodes() if node.name in sites]
    for number in count(1):
        group = "hang" if config.get("hangs") and number > 3 else str(number)
        content = RecordSet(metrics_records={"m": MetricsRecord({"n": number})})
        driver.send_and_receive([driver.create_message(content, "train", node, group) for node in nodes])
"""


class Views:
    """Everywhere that one may look."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._metrics = commands.start("brokerfl", "metrics", "--port", "0")
        self._page = commands.start("brokerfl", "dashboard", "--port", "0")
        self._urls = [each.wait_for(r"http://127\.0\.0\.1:\d+") for each in (self._metrics, self._page)]

    def runs(self) -> dict[str, dict[str, Any]]:
        """By `brokerfl runs`."""
        found = json.loads(self._commands.run("brokerfl", "runs", "--format", "json").out)
        return {each["run"]: each for each in found}

    def on_the_page(self) -> dict[str, dict[str, Any]]:
        """By the page."""
        with urllib.request.urlopen(f"{self._urls[1]}/api/overview", timeout=DEADLINE) as answer:
            return {each["run"]: each for each in json.load(answer)["runs"]}

    def in_metrics(self) -> dict[str, str]:
        """The reason of each run by the metrics."""
        with urllib.request.urlopen(f"{self._urls[0]}/metrics", timeout=DEADLINE) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        samples = [each for family in families for each in family.samples if each.name == "brokerfl_run_reason"]
        return {each.labels["run"]: each.labels["reason"] for each in samples if each.value}

    def on_the_screen(self) -> str:
        """By `brokerfl top`."""
        return self._commands.run("brokerfl", "top", "--once").out


def told(views: Views, run: str, reason: str, word: str) -> Callable[[], bool]:
    """Whether every view names this reason and this word."""

    def is_told() -> bool:
        paged = views.on_the_page()[run]
        if paged["reason"] != reason or word not in paged["why"]:  # the others cost a process each
            return False
        listed, screen = views.runs()[run], views.on_the_screen()
        line = next((line for line in screen.splitlines() if f" {run[:4]}" in line), "")
        return views.in_metrics().get(run) == listed["reason"] == reason and word in listed["why"] and word in line

    return is_told


def says(server_app: Process, *words: str) -> Callable[[], bool]:
    """Whether a line of a ServerApp's own log has all of these."""
    return lambda: any(all(word in line for word in words) for line in server_app.text.splitlines())


def test_every_view_names_the_cause_and_the_node(commands: Commands, broker: Broker) -> None:
    """Tables, screen, metrics, page and the ServerApps' own logs say the same of each run."""
    commands.write("client.py", CLIENT)
    commands.write("server.py", SERVER)
    paces = {"site-5": 0.4, "site-6": 0.4, "site-7": 8.0, "site-8": 0.4, "site-9": 0.4}
    for name, pace in paces.items():
        hangs = " hangs=true" if name == "site-9" else ""
        commands.node("--name", name, "--node-config", f"pace={pace}{hangs}", "--workers", "4", "--lease", "3")

    def start(config: str, name: str) -> tuple[str, Process]:
        process = commands.server("--run-name", name, "--run-config", config, "--lease", "3")
        return run_id(process), process

    views = Views(commands)
    slow, slow_app = start("sites='site-5 site-6 site-7'", "slow")
    hung, hung_app = start("sites='site-9' hangs=true", "hung")
    killed, killed_app = start("sites='site-5'", "killed")
    few, few_app = start("needed=30", "few")
    fine, _ = start("sites='site-5 site-6'", "fine")
    paused, paused_app = start("sites='site-8'", "paused")
    killed_app.kill()
    commands.run("brokerfl", "pause", "site-8")

    eventually(told(views, few, "waiting_nodes", "5 of 30 online"), within=DEADLINE)
    eventually(says(few_app, "waiting for nodes: 5 of 30 online", "[waiting_nodes]"), within=DEADLINE)
    eventually(told(views, killed, "detached", "no ServerApp"), within=DEADLINE)
    eventually(told(views, paused, "node_stuck", "site-8 ("), within=DEADLINE)
    eventually(says(paused_app, "site-8 (", "is paused", "[node_stuck]"), within=DEADLINE)
    eventually(told(views, slow, "node_late", "site-7 ("), within=DEADLINE)
    eventually(says(slow_app, "site-7 (", "times slower than the others", "[node_late]"), within=DEADLINE)
    eventually(told(views, hung, "node_late", "site-9 ("), within=DEADLINE)
    eventually(says(hung_app, "site-9 (", "busy", "[node_late]"), within=DEADLINE)
    eventually(lambda: views.runs()[fine]["reason"] is None, within=DEADLINE)
    nodes = {each["name"]: each for each in json.loads(commands.run("brokerfl", "nodes", "--format", "json").out)}
    assert (nodes["site-9"]["state"], nodes["site-8"]["state"]) == ("late", "paused")

    used = int(broker.admin.info("memory")["used_memory"])
    broker.admin.config_set("maxmemory", used)
    broker.admin.config_set("maxmemory-policy", "noeviction")
    try:
        for run in (slow, hung, few, fine):
            eventually(told(views, run, "redis_full", "Redis is full"), within=DEADLINE)
        eventually(says(slow_app, "Redis is full"), within=DEADLINE)
    finally:
        broker.admin.config_set("maxmemory", 0)
    eventually(lambda: views.runs()[fine]["reason"] is None, within=DEADLINE)

    for process in commands.started:
        if re.match("brokerfl-(server|node)", process.command) and process.is_running:
            process.send(signal.SIGKILL)
    for run in views.runs():
        commands.run("brokerfl", "stop", run)
