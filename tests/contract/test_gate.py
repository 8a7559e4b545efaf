"""A site decides which messages its node executes; what it does not let in waits, and holds up nobody else."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from brokerfl.broker import owner
from brokerfl.broker.nodes import read_node
from brokerfl.client import gate as gate_module
from brokerfl.client.audit import Audit
from brokerfl.client.gate import Gate
from brokerfl.client.gate_folder import Entry, GateFolder, Verdict
from brokerfl.client.node import Node
from brokerfl.client.site import Site
from brokerfl.common import Array, ConfigsRecord, ErrorCode, JournalError, ParametersRecord, RecordSet
from brokerfl.common.text import shown_node
from brokerfl.server import Driver
from brokerfl.view.judge import judge_node
from brokerfl.view.overview import read_overview
from brokerfl.view.reasons import NodeState, Reason, RunState
from brokerfl.wire.status import Awaited, NodeStatus, Phase, RunStatus, encode_status
from tests.apps import Bench, Clock, driving, echo_app, eventually, number
from tests.conftest import Backend
from tests.stage import (
    MOST_READ,
    by_hand,
    bytes_in_hand,
    heartbeat,
    in_inbox,
    look_at_gate,
    numbers,
    push,
    push_numbers,
    reason_of,
    serving,
    turns,
)

WITHOUT = ("redis-tls",)

ALL = '["*"]\napprove = "always"\n'


class AtSite:
    """The files of one site, and what its operator does.

    Attributes:
        file: the gate's file.
        node: the node's own directory.
    """

    def __init__(self, folder: Path) -> None:
        self.file, self.node = folder / "gate.toml", folder / "node"
        self.folder = GateFolder(self.node / "gate")

    def allows(self, text: str) -> None:
        self.file.write_text(text)

    def made(self, audit: bool = False) -> Site:
        """What a node is given when it is started."""
        self.node.mkdir(mode=0o700, exist_ok=True)
        return Site(Gate(self.file, self.folder), Audit(self.node / "audit.jsonl") if audit else None)

    def decides(self, driver: Driver, verdict: Verdict) -> None:
        self.folder.decide(driver.run.run_id, verdict, {})

    def approves(self, driver: Driver) -> None:
        self.decides(driver, Verdict.APPROVED)

    def sees(self, driver: Driver) -> Entry | None:
        """What waits of a run."""
        found = [entry for entry in self.folder.entries() if entry.run_id == driver.run.run_id]
        return found[0] if found and found[0].verdict is Verdict.PENDING else None

    def awaits(self, driver: Driver) -> dict[str, Any]:
        """What waits of a run, once something does."""
        eventually(lambda: self.sees(driver))
        entry = self.sees(driver)
        assert entry is not None
        return entry.record


@pytest.fixture
def site(tmp_path: Path) -> AtSite:
    """A site that allows everything."""
    made = AtSite(tmp_path)
    made.allows(ALL)
    return made


REALM = itertools.count(1234000000000000001)


@pytest.fixture(autouse=True)
def one_realm(monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs have one owner."""
    monkeypatch.setattr(owner, "new_run_id", lambda keys: next(REALM))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the gate."""
    made = Clock()
    made.strftime, made.localtime = gate_module.time.strftime, gate_module.time.localtime  # type: ignore[attr-defined]
    monkeypatch.setattr(gate_module, "time", made)
    return made


def status_of(backend: Backend, node: Node) -> NodeStatus:
    """What a node says now."""
    heartbeat(node)
    info = read_node(backend.connect(), node.node_id)
    assert info is not None
    assert info.status is not None
    return info.status


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_file_does_not_allow_waits(backend: Backend, site: AtSite, workers: int) -> None:
    """Its run waits, however much it sends; other runs go on, more than is read at once; then it is approved."""
    site.allows(f'{ALL}types = ["train"]')
    with (
        serving(backend, echo_app(), site.node, site=site.made(), workers=workers, name="site-7") as node,
        driving(backend) as other,
        driving(backend) as held,
    ):
        ids = [push(held, node.node_id, number(n), kind="evaluate") for n in range(10)]
        assert site.awaits(held)["type"] == "evaluate"
        ids += [push(held, node.node_id, number(n), kind="evaluate") for n in range(10, 12)]
        for value in range(3):
            pushed = push_numbers(other, node, *range(value, value + MOST_READ))
            assert sorted(numbers(other, pushed)) == [*range(value, value + MOST_READ)]
        status = status_of(backend, node)
        assert (status.withheld, status.withheld_runs) == (1, (held.run.run_id,))
        assert (status.queue, status.doing, status.done) == (0, (), 3 * MOST_READ)
        assert judge_node(True, status, status.at).state is NodeState.READY
        assert bytes_in_hand(node) == 0
        now = held.connection.read_time()
        told = RunStatus(now, Phase.REPLIES, now, owing=1, awaited=(Awaited(node.node_id, now),))
        backend.admin.set(held.connection.keys.run_status(held.run.run_id), encode_status(told), px=60_000)
        seen = {run.run_id: run for run in read_overview(backend.connect()).runs}[held.run.run_id]
        assert (seen.state, seen.reason) == (RunState.WAITING, Reason.AWAITS_APPROVAL)
        assert seen.judged.why == f"{shown_node(node.node_id, 'site-7')} has not approved it"
        site.approves(held)
        assert numbers(held, ids) == [*range(12)]
        assert site.sees(held) is None
        assert status_of(backend, node).withheld == 0


def test_one_run_waits_in_its_order(backend: Backend, site: AtSite) -> None:
    """Behind a message that is not allowed the run's others wait, too, also new ones of another type."""
    site.allows(f'{ALL}types = ["train"]')
    bench = Bench()
    bench.app.query()(bench.train)
    with driving(backend) as driver, serving(backend, bench.app, site.node, site=site.made()) as node:
        ids = [push(driver, node.node_id, number(n), kind=kind) for n, kind in enumerate(("train", "query", "train"))]
        assert site.awaits(driver)["message"] == ids[1]
        ids += push_numbers(driver, node, 3)
        assert numbers(driver, ids[:1]) == [1]
        assert bench.executed == {driver.run.run_id: [0]}
        site.approves(driver)
        assert sorted(numbers(driver, ids)) == [2, 3, 4]
        assert bench.executed == {driver.run.run_id: [0, 1, 2, 3]}


def test_what_waits_is_shown_at_the_site(
    backend: Backend, site: AtSite, caplog: pytest.LogCaptureFixture, small_chunks: None
) -> None:
    """Owner, app, type, both configs; the log says it once, and how to approve the run."""
    site.allows(f'{ALL}message-configs.lr = [0.1]\n["*".run-config]\nrounds = {{max = 3}}')
    content = RecordSet(
        {"p": ParametersRecord({"a": Array("uint8", [9999], "numpy.ndarray", bytes(9999))})},
        configs_records={"c": ConfigsRecord({"lr": 0.2, "key": b"\xff"})},
    )
    with (
        serving(backend, echo_app(), site.node, site=site.made()) as node,
        driving(backend, run_config={"rounds": 3}, name="tuning") as driver,
        driving(backend, run_config={"rounds": 4}) as long,
    ):
        ids = [push(driver, node.node_id, content), push(long, node.node_id, number(1))]
        record, other = site.awaits(driver), site.awaits(long)
        assert (record["owner"], record["app"], record["name"]) == ("1234", "server:app", "tuning")
        assert (record["run_config"], record["message_configs"]) == ({"rounds": 3}, {"lr": 0.2, "key": "ff"})
        assert record["why"] == "the message has a value of 'lr' that is not allowed"
        assert other["why"] == "the run config has a value of 'rounds' that is not allowed"
        for run in (driver, long):
            assert caplog.text.count(f"`brokerfl gate approve {run.run.run_id}`") == 1
            site.approves(run)
        assert "not allowed" not in caplog.text
        [reply] = driver.replies(ids[:1], timeout=20)
        assert len(reply.content.parameters_records["p"]["a"].data) == 9999
        assert numbers(long, ids[1:]) == [1]


def test_a_run_is_denied(backend: Backend, site: AtSite) -> None:
    """What waits and what comes later becomes an Error that says who refused it, and nothing of the file."""
    site.allows('["*"]\napprove = "ask"\napps = ["secret"]')
    bench = Bench()
    with driving(backend) as driver, serving(backend, bench.app, site.node, site=site.made()) as node:
        ids = push_numbers(driver, node, 1, 2)
        site.awaits(driver)
        site.decides(driver, Verdict.DENIED)
        ids += push_numbers(driver, node, 3)
        replies = [*driver.replies(ids, timeout=20)]
        assert len(replies) == 3
        for reply in replies:
            reason = reason_of(reply, ErrorCode.MOD_FAILED_PRECONDITION)
            assert reason.endswith("the gate of the node's site refused the run")
        assert site.sees(driver) is None
        site.approves(driver)  # which takes the denial back
        eventually(lambda: not reply_to(driver, node).has_error())
        assert bench.executed[driver.run.run_id]


def reply_to(driver: Driver, node: Node) -> Any:
    [reply] = driver.replies(push_numbers(driver, node, 1), timeout=20)
    return reply


def test_an_owner_who_may_nothing(backend: Backend, site: AtSite) -> None:
    """Never is answered at once, also if somebody approves the run."""
    site.allows('["*"]\napprove = "never"')
    with driving(backend) as driver, serving(backend, Bench().app, site.node, site=site.made()) as node:
        site.approves(driver)
        assert "refused the run" in reason_of(reply_to(driver, node), ErrorCode.MOD_FAILED_PRECONDITION)


def test_an_owner_whom_the_file_does_not_name(backend: Backend, site: AtSite) -> None:
    """Without a table for everybody else, a run waits."""
    site.allows('["9876"]\napprove = "always"')
    with driving(backend) as driver, serving(backend, Bench().app, site.node, site=site.made()) as node:
        ids = push_numbers(driver, node, 1)
        assert site.awaits(driver)["why"] == "the gate's file does not name its owner"
        site.approves(driver)
        assert numbers(driver, ids) == [1]


def test_an_owner_is_known_by_the_realm(backend: Backend, site: AtSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first four of the 19 digits of its id; a run whose id has 20 belongs to no realm."""
    site.allows('["1234"]\napprove = "always"')
    new = iter((1234000000000000000, 12340000000000000001))
    monkeypatch.setattr(owner, "new_run_id", lambda keys: next(new))
    with (
        driving(backend) as driver,
        driving(backend) as long,
        serving(backend, Bench().app, site.node, site=site.made()) as node,
    ):
        assert numbers(driver, push_numbers(driver, node, 1)) == [1]
        push_numbers(long, node, 1)
        assert site.awaits(long)["owner"] == ""


def test_what_expires_or_is_over_waits_no_more(backend: Backend, site: AtSite) -> None:
    """A message ends with its ttl, a run with its stop; neither leaves anything at the gate."""
    site.allows('["*"]\napprove = "ask"')
    bench = Bench()
    with serving(backend, bench.app, site.node, site=site.made()) as node:
        with driving(backend) as driver:
            [late] = driver.replies([push(driver, node.node_id, number(1), ttl=0.3)], timeout=20)
            assert reason_of(late, ErrorCode.MESSAGE_UNAVAILABLE)
            eventually(lambda: site.sees(driver) is None)
            assert in_inbox(backend, driver, node.node_id) == []
            push_numbers(driver, node, 2)
            site.awaits(driver)
        eventually(lambda: site.folder.entries() == [])
        assert bench.executed == {}


def test_what_waits_is_seen_while_the_node_is_busy(backend: Backend, site: AtSite, clock: Clock) -> None:
    """Its only thread executes: so it asks nothing again, and what waits is still shown."""
    site.allows(f'{ALL}types = ["train"]')
    bench = Bench()
    with (
        driving(backend) as busy,
        driving(backend) as driver,
        serving(backend, bench.app, site.node, site=site.made()) as node,
    ):
        go = bench.hold(busy)
        push(driver, node.node_id, number(1), kind="query")
        site.awaits(driver)
        ids = push_numbers(busy, node, 1)
        assert bench.begun.acquire(timeout=10)
        clock.now += 61
        for _ in range(2):
            look_at_gate(node)
        assert site.sees(driver) is not None
        assert status_of(backend, node).withheld == 1
        go.set()
        assert numbers(busy, ids) == [1]


def test_what_is_cancelled_holds_up_nothing(backend: Backend, site: AtSite, clock: Clock) -> None:
    """A minute later the gate looks at what is behind it; what still waits has waited since it came."""
    site.allows(f'{ALL}types = ["train"]')
    with (
        serving(backend, echo_app(), site.node, site=site.made()) as node,
        driving(backend) as driver,
        driving(backend) as other,
    ):
        refused = push(driver, node.node_id, number(1), kind="query")
        push(other, node.node_id, number(1), kind="query")
        since = site.awaits(other)["since"]
        site.awaits(driver)
        driver.cancel_messages([refused])
        ids = push_numbers(driver, node, 2)
        clock.now += 61
        assert numbers(driver, ids) == [2]
        eventually(lambda: site.sees(driver) is None)
        assert site.awaits(other)["since"] == since
        assert status_of(backend, node).withheld_runs == (other.run.run_id,)


def test_the_file_is_read_again(backend: Backend, site: AtSite, caplog: pytest.LogCaptureFixture) -> None:
    """When it changes; one that is wrong, or gone, changes nothing, and that is said once."""
    site.allows(f"{ALL}types = []")
    with driving(backend) as driver, serving(backend, echo_app(), site.node, site=site.made()) as node:
        ids = push_numbers(driver, node, 1)
        site.awaits(driver)
        site.allows(f"{ALL}typo = 1")
        eventually(lambda: "The gate goes on with its former file, because " in caplog.text)
        assert "has an unknown key 'typo'" in caplog.text
        site.file.unlink()
        eventually(lambda: "cannot be read: No such file" in caplog.text)
        assert site.sees(driver) is not None
        site.allows(ALL)
        assert numbers(driver, ids) == [1]
        site.allows(f"{ALL}types = []")
        eventually(lambda: caplog.text.count("was read again") == 2)
        push_numbers(driver, node, 2)
        site.awaits(driver)
        assert caplog.text.count("goes on with its former file") == 2


def test_the_messages_of_an_hour(backend: Backend, site: AtSite, clock: Clock) -> None:
    """One too many waits until the first is an hour old, also if its run is approved and the node starts again."""
    site.allows(f"{ALL}most-messages-an-hour = 2")
    bench = Bench()
    with driving(backend) as driver:
        with serving(backend, bench.app, site.node, site=site.made(audit=True)) as node:
            assert numbers(driver, push_numbers(driver, node, 1)) == [1]
            clock.now += 1000
            assert numbers(driver, push_numbers(driver, node, 2)) == [2]
            ids = push_numbers(driver, node, 3)
            assert site.awaits(driver)["why"].startswith("its owner has had 2 messages in an hour; until ")
        clock.now -= 1000
        site.approves(driver)
        with serving(backend, bench.app, site.node, site=site.made(audit=True)) as node:
            eventually(lambda: site.folder.entries()[0].record.get("why", "").startswith("its owner has had 2"))
            assert numbers(driver, ids, timeout=0.1) == []
            clock.now += 3700  # the audit file has the time of the system
            assert numbers(driver, ids) == [3]


def test_the_hours_of_the_day(backend: Backend, site: AtSite, clock: Clock) -> None:
    """What comes in the night waits for the morning."""
    site.allows(f'{ALL}hours = "08:00-09:00"\ntime-zone = "UTC"')
    day = 24 * 3600
    clock.now += day - clock.now % day + 8.5 * 3600
    with driving(backend) as driver, serving(backend, Bench().app, site.node, site=site.made()) as node:
        assert numbers(driver, push_numbers(driver, node, 1)) == [1]
        clock.now += 3600
        [message_id] = driver.push_messages([driver.create_message(number(2), "train", node.node_id, "1", ttl=day)])
        assert site.awaits(driver)["why"].startswith("it is not the time for it until ")
        clock.now += day - 3600
        assert numbers(driver, [message_id]) == [2]


def test_the_open_runs_of_an_owner(backend: Backend, site: AtSite) -> None:
    """One run too many waits until another has ended, or until it is approved."""
    site.allows(f"{ALL}most-open-runs = 1")
    with serving(backend, echo_app(), site.node, site=site.made()) as node, driving(backend) as third:
        with driving(backend) as first, driving(backend) as second:
            assert numbers(first, push_numbers(first, node, 1)) == [1]
            ids, others = push_numbers(second, node, 2), push_numbers(third, node, 3)
            for driver in (second, third):
                assert site.awaits(driver)["why"] == "its owner has 1 open runs"
            site.approves(second)
            assert numbers(second, ids) == [2]
            assert site.sees(third) is not None
        assert numbers(third, others) == [3]


def test_a_decision_outlives_the_node(backend: Backend, site: AtSite) -> None:
    """A run is approved while the node is down, and executed when it is there again; a decision ends with its run."""
    site.allows('["*"]\napprove = "ask"')
    bench = Bench()
    with driving(backend) as driver:
        with by_hand(backend, bench.app, site.node, site=site.made()) as node:
            ids = push_numbers(driver, node, 1)
            eventually(lambda: (node.turn(0.05), site.sees(driver))[1])
        site.approves(driver)
        with by_hand(backend, bench.app, site.node, site=site.made()) as node:
            turns(node, 1, bench)
            assert numbers(driver, ids) == [1]


def test_an_old_decision_is_deleted(site: AtSite, clock: Clock) -> None:
    """A run may be away from Redis for an hour; then what was decided about it is forgotten."""
    gate = Gate(site.file, site.folder)
    site.folder.decide(7, Verdict.APPROVED, {})
    for seconds, left in ((0, 1), (3000, 1), (700, 1), (0, 1)):
        clock.now += seconds
        gate.watch()
        assert len(site.folder.verdicts()) == left, "nobody has said yet which runs there are"
    gate.keep_only({7})
    gate.watch()
    gate.keep_only(())
    for seconds, left in ((0, 1), (3000, 1), (700, 0)):
        clock.now += seconds
        gate.watch()
        assert len(site.folder.verdicts()) == left


def test_a_gate_whose_directory_is_gone_lets_nothing_in(backend: Backend, site: AtSite) -> None:
    """The node ends with an error that names the directory."""
    with driving(backend) as driver, by_hand(backend, Bench().app, site.node, site=site.made()) as node:
        site.allows('["*"]\napprove = "ask"\n')
        site.folder.path.rename(site.node / "elsewhere")
        with pytest.raises(JournalError, match="the gate's directory"):
            look_at_gate(node)
        push_numbers(driver, node, 1)
