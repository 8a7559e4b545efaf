"""`--record`: a hand-written loop without any state goes through its recording, and ends as if nothing had happened."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brokerfl.broker.node_info import NodeInfo, node_info_of
from brokerfl.client import ClientApp
from brokerfl.common import Array, ConfigError, Context, Message, ParametersRecord, RecordSet, RunDiverged
from brokerfl.server import Driver
from brokerfl.server.recorder import Recorder
from brokerfl.server.rehearsal import Rehearsal
from brokerfl.server.tape import Recorded, Tape, path_of
from brokerfl.wire.entries import encode_entry
from tests.apps import federation
from tests.conftest import Backend
from tests.parties import Parties
from tests.stage import after_sync, close_tape, kill, serving, tape_of

#: TLS changes nothing here.
WITHOUT = ("redis-tls",)

ROUNDS = 3


class Dead(BaseException):
    """What a ServerApp dies of here."""


class Fuse:
    """Dies at the n-th point; counts them."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.count, self._dies_at = 0, dies_at

    def __call__(self) -> None:
        self.count += 1
        if self.count - 1 == self._dies_at:
            raise Dead


def training_app() -> tuple[ClientApp, list[tuple[int, str]]]:
    """A ClientApp that changes a model with a large array; notes what it executes."""
    app, executed = ClientApp(), []

    def work(message: Message, context: Context) -> Message:
        executed.append((context.node_id, f"{message.metadata.message_type} {message.metadata.group_id}"))
        model = (message.content["model"]["w"].numpy() * 3 + context.node_id % 97) % 1009  # no sum depends on its order
        return message.create_reply(RecordSet({"model": ParametersRecord({"w": Array(model)})}))

    app.train()(work)
    app.evaluate()(work)
    return app, executed


def loop(driver: Driver, fuse: Callable[[], None], seed: int, groups: bool = True) -> tuple[bytes, list[int]]:
    """Rounds of training and evaluation with what Driver has for it. Nothing is kept; the first model is random."""
    model = np.random.default_rng(seed).integers(1000, size=20_000)
    history = []
    for number in range(1, ROUNDS + 1):
        group = str(number) if groups else ""
        nodes = sorted(driver.wait_for_nodes(2))

        def made(kind: str, model: Any = model, nodes: list[int] = nodes, group: str = group) -> list[Message]:
            content = RecordSet({"model": ParametersRecord({"w": Array(model)})})
            return [driver.create_message(content, kind, node, group) for node in nodes]

        fuse()
        ids = driver.push_messages(made("train"), checkpoint=not groups)
        fuse()
        sums = np.zeros(20_000, np.int64)
        for reply in driver.replies(ids):
            fuse()
            sums += reply.content["model"]["w"].numpy()
        model = sums % 1009
        fuse()
        replies = driver.send_and_receive(made("evaluate", model), checkpoint=not groups)
        history.append(sum(int(reply.content["model"]["w"].numpy().sum()) for reply in replies))
        fuse()
    return model.tobytes(), history


def recorder(
    backend: Backend, folder: Path, former: Driver | None = None, limit: int = 10**9, **options: Any
) -> Recorder:
    """A Driver that records; of a new run, or of a former one."""
    resume = None if former is None else former.run.run_id
    tape = partial(Tape, folder, limit=limit, is_new=former is None)
    return Recorder(tape, backend.connect(), "app", resume=resume, takeover=former is not None, **options)


def leave(driver: Recorder) -> None:
    """What kill -9 leaves behind: what was not synced may be on the disk or not."""
    kill(driver)
    close_tape(driver)


@pytest.mark.parametrize("groups", [True, False], ids=["groups", "checkpoints"])
def test_killed_anywhere(backend: Backend, tmp_path: Path, request: pytest.FixtureRequest, groups: bool) -> None:
    """Killed twice and resumed: the model is the same, although another one is the first, and nobody works twice."""
    app, executed = training_app()
    with federation(backend, app):
        count = Fuse()
        undisturbed = recorder(backend, tmp_path)
        expected = loop(undisturbed, count, 0, groups)
        undisturbed.end()
        everything = sorted(executed)
        points = range(count.count)
        if not request.config.getoption("--every-accident"):
            points = random.Random(f"{backend.name} {groups}").sample(points, 3)
        for point in points:
            executed.clear()
            driver = recorder(backend, tmp_path)
            for dies_at in (point, min(point + 2, count.count - 1)):
                with pytest.raises(Dead):
                    loop(driver, Fuse(dies_at), seed_of(driver), groups)
                leave(driver)
                driver = recorder(backend, tmp_path, driver)
            assert loop(driver, Fuse(), seed_of(driver), groups) == expected, f"killed at {point}"
            driver.end()
            assert sorted(executed) == everything, f"killed at {point}"


def seed_of(driver: Recorder) -> int:
    """Another first model than before, once there is a recording."""
    return 99 if driver.record.is_replayed else 0


@pytest.mark.parametrize("seals", [True, False], ids=["sealed", "signed"])
def test_a_run_that_nobody_can_read_is_recorded(backend: Backend, tmp_path: Path, seals: bool) -> None:
    """Its recording is in clear, on the owner's own disk; resumed, nobody works twice."""
    app, executed = training_app()
    parties = Parties("n0", "n1", seals=seals)
    with parties.serving(backend, lambda: app):
        undisturbed = recorder(backend, tmp_path, protection=parties.of_owner)
        expected = loop(undisturbed, Fuse(), 0)
        undisturbed.end()
        everything = sorted(executed)
        executed.clear()
        driver = recorder(backend, tmp_path, protection=parties.of_owner)
        with pytest.raises(Dead):
            loop(driver, Fuse(9), 0)
        leave(driver)
        again = recorder(backend, tmp_path, driver, protection=parties.of_owner)
        assert loop(again, Fuse(), 99) == expected
        again.end()
    assert sorted(executed) == everything


def test_what_left_redis_is_on_the_disk(backend: Backend, tmp_path: Path) -> None:
    """A machine that fails loses what was not synced: never a reply that has left Redis."""
    app, executed = training_app()
    with federation(backend, app):
        driver = recorder(backend, tmp_path)
        synced: list[bytes] = []
        path = path_of(tmp_path, driver.run.run_id)

        def look() -> None:
            synced.append(path.read_bytes())

        after_sync(driver, look)
        with pytest.raises(Dead):
            loop(driver, Fuse(14), 0)
        count = len(executed)
        leave(driver)
        path.write_bytes(synced[-1])
        again = recorder(backend, tmp_path, driver)
        loop(again, Fuse(), 99)
        again.end()
    assert len(executed) == len(set(executed)) > count


def test_another_app_is_refused(backend: Backend, tmp_path: Path) -> None:
    """What an app pushes that the recording does not have is refused, and the first difference is named."""
    app, _ = training_app()
    with federation(backend, app):
        driver = recorder(backend, tmp_path)
        with pytest.raises(Dead):
            loop(driver, Fuse(9), 0)
        leave(driver)
        again = recorder(backend, tmp_path, driver)
        node = again.get_node_ids()[0]
        other = again.create_message(RecordSet(), "train", node, "one")
        difference = rf"as message 1 its recording has a train message of group '1' to node {node}, where this app "
        with pytest.raises(RunDiverged, match=difference + f"pushes a train message of group 'one' to node {node};"):
            again.push_messages([other])
        with pytest.raises(RunDiverged):  # an app that goes on in spite of that waits for nothing
            again.send_and_receive([])
        leave(again)
        with pytest.raises(ConfigError, match="has no recording of"):
            recorder(backend, tmp_path / "elsewhere", driver)
        last = recorder(backend, tmp_path, driver)
        last.end()


def test_what_an_app_was_told_of_nodes(backend: Backend, tmp_path: Path) -> None:
    """It is told the same again, with names and labels, whatever its threads ask; what led to no push is forgotten."""
    app, executed = training_app()

    def told(driver: Any, count: int) -> list[tuple[int, list[str]]]:
        """Rounds with all nodes but one: how many were waited for, and their names. They change between the lives."""
        found = []
        for number in range(count):
            try:
                online = len(driver.wait_for_nodes(2, timeout=0.0))
            except TimeoutError:
                online = 0
            chosen = [node for node in driver.get_nodes() if node.name != "third"]
            found.append((online, [node.name for node in chosen]))
            model = RecordSet({"model": ParametersRecord({"w": Array(np.arange(3))})})
            driver.send_and_receive(
                [driver.create_message(model, "train", each.node_id, str(number)) for each in chosen]
            )
        return found

    def died(driver: Recorder, count: int) -> Recorder:
        """It dies when it has been told of nodes once more."""
        told(driver, count)
        driver.get_nodes()
        driver.get_node_ids()
        leave(driver)
        return recorder(backend, tmp_path, driver)

    def looked(driver: Any) -> None:
        """Another thread of the app looks at nodes, as often as it comes to do so."""
        for ask in (driver.get_nodes, driver.get_node_ids):
            looking = threading.Thread(target=ask, name="look \ud800")
            looking.start()
            looking.join()

    with serving(backend, app, name="first"):
        driver = recorder(backend, tmp_path)
        looked(driver)
        looked(driver)
        driver = died(driver, 1)
    with serving(backend, app, name="second"), serving(backend, app, name="third"):
        driver = died(driver, 2)
        expected = [(0, ["first"]), (2, ["second"]), (2, ["second"])]
        looked(driver)
        assert told(driver, 3) == expected
        driver.end()
    assert len(executed) == 3
    with path_of(tmp_path, driver.run.run_id).open("rb") as file:
        assert told(Rehearsal(Recorded(file)), 3) == expected


def test_any_worker_of_a_pool_is_told_the_same(backend: Backend, tmp_path: Path) -> None:
    """Which of them is free differs between the lives."""
    app, _ = training_app()

    def rounds(driver: Any, busy: int) -> list[list[str]]:
        found = []
        for number in range(2):
            with ThreadPoolExecutor(3) as pool:
                done = threading.Event()
                held = [pool.submit(done.wait, 20) for _ in range(busy)]
                nodes = pool.submit(driver.get_nodes).result()
                done.set()
                assert all(each.result() for each in held)
            found.append([node.name for node in nodes])
            model = RecordSet({"model": ParametersRecord({"w": Array(np.arange(3))})})
            driver.send_and_receive([driver.create_message(model, "train", nodes[0].node_id, str(number))])
        return found

    with serving(backend, app, name="first"):
        driver = recorder(backend, tmp_path)
        assert rounds(driver, 0) == [["first"]] * 2
        leave(driver)
    with serving(backend, app, name="second"):
        driver = recorder(backend, tmp_path, driver)
        assert rounds(driver, 2) == [["first"]] * 2
        driver.end()


def test_a_recording_that_nobody_wrote(backend: Backend, tmp_path: Path) -> None:
    """It is not gone through: the error says how to go on."""
    driver = recorder(backend, tmp_path)
    leave(driver)
    with path_of(tmp_path, driver.run.run_id).open("ab") as file:
        file.write(encode_entry(["n", [7]]) + encode_entry(["p", [["1", 7, "train", "1"]]]))
    with pytest.raises(ConfigError, match=r"is malformed .*: begin anew with --from-start"):
        recorder(backend, tmp_path, driver)
    with pytest.raises(ConfigError, match="is malformed"), path_of(tmp_path, driver.run.run_id).open("rb") as file:
        Rehearsal(Recorded(file))


def test_a_tape_that_is_full_is_played(backend: Backend, tmp_path: Path) -> None:
    """A limit is for what is recorded from now on; text that nobody can encode is no reason to lose a recording."""
    app, executed = training_app()
    with federation(backend, app):
        driver = recorder(backend, tmp_path)
        tape_of(driver).infos([NodeInfo(1, True, labels=node_info_of(1, True, SURROGATE).labels)])
        with pytest.raises(Dead):
            loop(driver, Fuse(9), 0)
        leave(driver)
        executed.clear()
        again = recorder(backend, tmp_path, driver, limit=1000)
        assert again.record.is_replayed
        leave(again)


#: What a node may say of itself, in the order of `SHOWN`: a label with half of a surrogate pair.
SURROGATE = [b"n", b'{"site": "\\ud800"}', None, None, None, None]


def test_a_recording_has_a_limit(backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond its limit a run goes on, one line says that it would resume from the start, and so it does."""
    app, executed = training_app()
    with federation(backend, app):
        driver = recorder(backend, tmp_path, limit=300_000)  # less than two arrays: those of the nodes may be equal
        with pytest.raises(Dead):
            loop(driver, Fuse(14), 0)
        assert caplog.text.count("would resume from the start: it would have more than the 300,000 bytes") == 1
        assert path_of(tmp_path, driver.run.run_id).stat().st_size < 1000
        leave(driver)
        again = recorder(backend, tmp_path, driver)
        assert "resumes from the start: its recording was given up: it would have more" in caplog.text
        loop(again, Fuse(), 0)
        again.end()
    assert len(executed) > len(set(executed)) == ROUNDS * 4


def test_equal_contents_are_recorded_once(backend: Backend, tmp_path: Path) -> None:
    """What all nodes answer with is in the file once."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return message.create_reply(RecordSet({"model": ParametersRecord({"w": Array(np.ones(100_000))})}))

    with federation(backend, app, nodes=3):
        driver = recorder(backend, tmp_path)
        driver.send_and_receive(
            [driver.create_message(RecordSet(), "train", node, "1") for node in driver.get_node_ids()]
        )
        driver.end()
    assert 800_000 < path_of(tmp_path, driver.run.run_id).stat().st_size < 810_000
