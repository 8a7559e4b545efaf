"""`brokerfl dashboard`: the JSON that the page asks for, whom it answers, and the page in a real browser."""

import json
import math
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from brokerfl.cli.serving import listening
from brokerfl.cli.site import serving, site
from brokerfl.common import RedisUnreachable
from brokerfl.common.text import shown, sized
from brokerfl.view import story as story_module
from brokerfl.view.reasons import NodeState, Reason, RunState
from brokerfl.view.shape import node_to_json, run_to_json
from brokerfl.view.story import Stories, Story
from brokerfl.view.watch import Sight, Watch
from brokerfl.view.words import lasting, short_among
from brokerfl.wire.event import Event, Kind
from brokerfl.wire.past import curves_of
from tests.cli.browser import Browser, find_browser
from tests.cli.conftest import DEADLINE, Broker, Commands, run_id
from tests.cli.scene import HALF, HOSTILE, Scene, patient, scene
from tests.conftest import missing, real_backend
from tests.stage import beat, start

pytestmark = pytest.mark.timeout(180)

__all__ = ["patient"]  # the fixture

URL = "redis://127.0.0.1"


def get(port: int, path: str = "/", host: str = "", method: str = "GET") -> tuple[int, dict[str, str], str]:
    """Status, headers and body."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return answer.status, {key.lower(): value for key, value in answer.headers.items()}, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, {key.lower(): value for key, value in error.headers.items()}, error.read().decode()


@contextmanager
def served(look: Any, tell: Callable[[int], Story] = Story, **options: Any) -> Iterator[int]:
    """The site at a port."""
    app = site(look, tell, URL, {"127.0.0.1", "localhost", "::1", "fl.example.org"}, **options)
    with serving(app, listening("127.0.0.1", 0)) as (port, _):
        yield port


@pytest.fixture(scope="module")
def seen(valkey_url: str) -> tuple[Scene, Sight]:
    """A scene that is over, and what was seen of it. Its node has a hostile name."""
    backend = real_backend("valkey", valkey_url)
    backend.admin.flushall()
    with scene(backend, HOSTILE) as made:
        return made, Watch(backend.connect()).look()


# The JSON.


def test_the_json(seen: tuple[Scene, Sight]) -> None:
    """Runs and nodes with state, reason and why; ids are strings, times have a zone."""
    made, sight = seen
    with served(lambda: sight) as port:
        status, headers, body = get(port, "/api/overview")
    assert (status, headers["content-type"]) == (200, "application/json")
    told = json.loads(body)
    runs = {run["run"]: run for run in told["runs"]}
    stuck, detached, ended = (runs[str(each)] for each in (made.stuck, made.detached, made.ended))
    assert (stuck["state"], stuck["reason"]) == ("stuck", "node_late")
    assert (stuck["round"], stuck["sent"], stuck["answered"], stuck["rounds"]) == ("3", 2, 1, [4.0, 31.0])
    assert [(each["node"], each["name"]) for each in stuck["waiting_for"]] == [(str(made.node), HOSTILE)]
    assert stuck["waiting_for"][0]["seconds"] >= 60
    assert (detached["state"], detached["reason"], detached["sent"]) == ("detached", "detached", None)
    assert (ended["state"], ended["reason"], ended["app"], ended["memory"]) == ("completed", None, "server:app", None)
    [node] = told["nodes"]
    assert (node["node"], node["name"], node["state"]) == (str(made.node), HOSTILE, "late")
    assert (stuck["config"], node["labels"]) == ({"lr": 0.1, "odd": "nan"}, {"where": HOSTILE, "odd": HALF})
    assert node["doing"][0]["run"] == str(made.stuck)
    for time in (told["at"], stuck["started"], stuck["told"], ended["ended"], node["seen"], node["doing"][0]["since"]):
        assert datetime.fromisoformat(time).tzinfo is not None
    assert told["redis"]["reason"] is None
    assert told["redis"]["servers"][0]["product"].startswith("Valkey")


def test_all_keys_are_always_there(seen: tuple[Scene, Sight]) -> None:
    """Whatever is known of a run, its keys are the same."""
    _, sight = seen
    assert sight.overview is not None
    keys = {tuple(run_to_json(run, sight.overview.at)) for run in sight.overview.runs}
    assert len(keys) == 1
    [first, *_] = sight.overview.runs
    assert first.run is not None
    odd = run_to_json(replace(first, run=replace(first.run, created_at=math.nan)), sight.overview.at)
    assert (odd["age"], odd["started"]) == (None, None)
    assert len({tuple(node_to_json(node, sight.overview.at)) for node in sight.overview.nodes}) == 1


def test_redis_that_is_away_or_full_is_said(seen: tuple[Scene, Sight]) -> None:
    """With what was seen last, or nothing."""
    _, sight = seen
    nothing = Sight(None, Reason.REDIS_AWAY, "Redis does not answer")
    last = Sight(sight.overview, Reason.REDIS_FULL, "Redis is full")
    sights = iter([nothing, last])
    with served(lambda: next(sights)) as port:
        told = [json.loads(get(port, "/api/overview")[2]) for _ in range(2)]
    assert [(each["redis"]["reason"], each["redis"]["why"], len(each["nodes"])) for each in told] == [
        ("redis_away", "Redis does not answer", 0),
        ("redis_full", "Redis is full", 1),
    ]
    assert (told[0]["at"], told[0]["runs"], told[0]["redis"]["url"]) == (None, [], URL)


def told(run_id: int, rounds: int = 12) -> Story:
    """The story of a run whose accuracy rises and has a gap, with a round that took long and an Error."""
    at, events = 1_800_000_000.0, [Event(1_800_000_000.0, Kind.STARTED)]
    for number in range(1, rounds + 1):
        group, at = str(number), at + 30
        seconds = 31.0 if number == rounds else 4.0 + number % 3
        values = {"loss": 2.0 / number}
        events.append(Event(at, Kind.BEGUN, group, "train", sent=2))
        events.append(Event(at + seconds, Kind.ANSWERED, group, "train", 2, 2, 0, seconds, values=values))
        accuracy = math.nan if number == 5 else 1 - 0.9 / number
        events.append(Event(at + seconds, Kind.METRICS, group, values={"accuracy": accuracy}))
    events.append(Event(at + 40, Kind.ERROR, str(rounds), "train", node=77, text=f"Error 2: {HOSTILE}"))
    return Story(run_id, tuple(events), curves_of(events))


def test_the_story_of_a_run_as_json(seen: tuple[Scene, Sight]) -> None:
    """Its latest events in words, its rounds and its curves, of which a long one is thinned; else a clear answer."""
    _, sight = seen

    def tell(run_id: int) -> Story:
        if run_id == 8:
            raise RedisUnreachable("Redis does not answer")
        return Story(9) if run_id == 9 else told(run_id, 1000)

    with served(lambda: sight, tell) as port:
        status, _, body = get(port, "/api/runs/7")
        nothing, broken, wrong = (get(port, f"/api/runs/{each}") for each in (9, 8, "07"))
    story = json.loads(body)
    assert (status, story["run"], len(story["events"])) == (200, "7", 100)
    assert story["events"][-1]["number"] == 3001
    assert story["events"][-2]["said"] == "round 1000: accuracy=0.9991"
    assert datetime.fromisoformat(story["events"][0]["time"]).tzinfo is not None
    assert story["rounds"][-1] == {"round": "1000", "type": "train", "seconds": 31.0, "errors": 0}
    curves = {curve["name"]: curve["points"] for curve in story["curves"]}
    assert [*curves] == ["train/loss", "accuracy"]
    assert len(curves["accuracy"]) <= 400
    assert curves["accuracy"][-1] == [1000, 1 - 0.9 / 1000]
    assert json.loads(nothing[2]) == {"run": "9", "events": [], "rounds": [], "curves": []}
    assert (broken[0], json.loads(broken[2])) == (503, {"error": "Redis does not answer"})
    assert wrong[0] == 404


def test_a_story_is_read_on(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look reads what is new; of a run that ends, what was seen stays, and its numbers remain for others."""
    monkeypatch.setattr(story_module, "_FRESH", 0.0)
    backend = real_backend("valkey", valkey_url)
    stories = Stories(backend.connect())
    driver = start(backend)
    run_id = driver.run.run_id
    for number in (1, 2):
        driver.log_metrics(number, accuracy=number / 2)
        beat(driver)
        found = stories.of(run_id)
        assert [event.kind for event in found.events] == [Kind.STARTED, *[Kind.METRICS] * number]
        assert found.curves == {"accuracy": [(each, each / 2) for each in range(1, number + 1)]}
    driver.end()
    assert stories.of(run_id) == found
    assert Stories(backend.connect()).of(run_id) == Story(run_id, (), found.curves)
    assert stories.of(4711) == Story(4711)


# Whom it answers.


def test_names(seen: tuple[Scene, Sight]) -> None:
    """Only those that it was told; with `any_address` every IP address, too."""
    _, sight = seen
    own = ("localhost", "127.0.0.1:8464", "LOCALHOST:1", "[::1]:8464", "fl.example.org")
    strange = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "fl.example.org.", "[::1", "a:b:c")
    addresses = ("10.1.2.3:8464", "[2001:db8::1]:8464")
    with served(lambda: sight) as port:
        for path in ("/", "/api/overview"):
            assert {host: get(port, path, host)[0] for host in own} == dict.fromkeys(own, 200)
            refused = {host: get(port, path, host) for host in (*strange, *addresses)}
            assert {host: status for host, (status, _, _) in refused.items()} == dict.fromkeys(refused, 421)
            assert not [text for _, _, text in refused.values() if str(seen[0].node) in text or "<html" in text]
    with served(lambda: sight, any_address=True) as port:
        assert {host: get(port, "/", host)[0] for host in addresses} == dict.fromkeys(addresses, 200)
        assert {host: get(port, "/", host)[0] for host in strange} == dict.fromkeys(strange, 421)


def test_what_a_browser_may_do(seen: tuple[Scene, Sight]) -> None:
    """Only the page's own script and style; nothing is kept, nothing is loaded from elsewhere, nothing can be sent."""
    _, sight = seen
    with served(lambda: sight) as port:
        _, headers, page = get(port)
        _, of_json, _ = get(port, "/api/overview")
        assert get(port, method="POST")[0] == 405
        assert get(port, "/../setup.cfg")[0] == 404
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert policy["script-src"].startswith("'sha256-")
    assert "unsafe" not in str(policy)
    for each in (headers, of_json):
        assert (each["x-content-type-options"], each["cache-control"]) == ("nosniff", "no-store")
        assert each.keys().isdisjoint({"set-cookie", "access-control-allow-origin", "server"})
    assert set(re.findall(r"https?://[^\"' )]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|setHTML|\beval\b|localStorage", page)


# The page.


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium."""
    program = find_browser()
    if program is None:
        missing("chromium")
    assert program is not None
    with Browser(program, tmp_path_factory.mktemp("profile")) as made:
        yield made


def test_the_page_shows_strangers_names_as_text(browser: Browser, seen: tuple[Scene, Sight]) -> None:
    """What a node calls itself, its labels and its errors never become markup; the policy blocks nothing of ours."""
    made, sight = seen
    with served(lambda: sight) as port:
        browser.open(f"http://127.0.0.1:{port}/#run={made.stuck}")
        browser.wait_for("document.querySelector('#nodes tr')")
        shown = json.dumps(HOSTILE)
        assert browser.ask(f"document.querySelector('#nodes th span').textContent === {shown}")
        assert browser.ask(f"document.querySelector('#nodes tr').textContent.includes('where=' + {shown})")
        assert browser.ask(f"document.querySelector('#owing li span').textContent === {shown}")
        assert browser.ask("document.querySelectorAll('main img, main script').length") == 0
        assert "owned" not in browser.ask("document.title")
        text = browser.ask("document.querySelector('#runs').innerText")
        assert "stuck" in text
        assert "node_late" in text
        assert browser.ask("document.querySelector('#opened').innerText").count("31s") == 1
        asked = {url for url in browser.requests if not url.startswith("data:")}
        assert {url.split("/")[2] for url in asked} == {f"127.0.0.1:{port}"}
    assert not browser.errors


def test_the_page_writes_words_as_all_others_do(browser: Browser, seen: tuple[Scene, Sight]) -> None:
    """Durations, sizes and short ids are those of view/words.py, and it knows every state."""
    _, sight = seen
    seconds = [0, 0.44, 3, 9.94, 9.96, 59.4, 59.6, 708, 3599.7, 11_100, 187_200]
    sizes = [0, 512, 1023, 1024, 65_536, 1_572_864, 418_381_824, 1_073_741_824, 10**18]
    ids = ["12345", "12349", "99", "1234567"]
    with served(lambda: sight) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        browser.wait_for("document.querySelector('#nodes tr')")
        assert browser.ask(f"{seconds}.map(lasting)") == [lasting(each) for each in seconds]
        assert browser.ask(f"{sizes}.map(sized)") == [sized(each) for each in sizes]
        expected = [short_among(int(each), map(int, ids)) for each in ids]
        assert browser.ask(f"{ids}.map((each) => short(each, {ids}))") == expected
        assert set(browser.ask("[...RUNS_FIRST, ...NODES_FIRST]")) == {*RunState, *NodeState}
        assert set(browser.ask("Object.keys(MARKS)")) == {*RunState, *NodeState}


def test_the_page_says_when_redis_or_its_own_server_is_away(browser: Browser, seen: tuple[Scene, Sight]) -> None:
    """What was seen stays, and is marked as old."""
    _, sight = seen
    sights = [sight]
    with served(lambda: sights[0]) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        browser.wait_for("document.querySelector('#nodes tr') && trouble.hidden")
        sights[0] = Sight(sight.overview, Reason.REDIS_FULL, "Redis is full: 1G of 1G")
        browser.wait_for("trouble.innerText === 'redis_full: Redis is full: 1G of 1G'")
        sights[0] = Sight(sight.overview, Reason.REDIS_AWAY, "Redis does not answer")
        browser.wait_for("trouble.innerText.startsWith('redis_away: Redis does not answer')")
        assert browser.ask("document.body.className") == "stale"
    browser.wait_for('trouble.innerText.startsWith("This page\'s own server does not answer")')
    assert browser.ask("document.querySelectorAll('#nodes tr').length") == 1


def test_a_run_with_its_rounds_numbers_and_events(browser: Browser, seen: tuple[Scene, Sight], tmp_path: Path) -> None:
    """Drawn in both schemes of colours, in a wide and a narrow window; a gap is a gap, and words stay text."""
    made, sight = seen
    with served(lambda: sight, told) as port:
        browser.looks(1280, 900)
        browser.open(f"http://127.0.0.1:{port}/#run={made.stuck}")
        browser.wait_for("document.querySelectorAll('#curves figure').length === 3")
        names = browser.ask("[...document.querySelectorAll('#curves figcaption')].map((each) => each.innerText)")
        assert [name.split() for name in names] == [
            ["train:", "seconds", "a", "round", "31"], ["train/loss", "0.166667"], ["accuracy", "0.925"],
        ]  # fmt: skip
        paths = browser.ask("[...document.querySelectorAll('#curves path')].map((each) => each.getAttribute('d'))")
        assert [path.count("M") for path in paths] == [1, 1, 2]
        labels = browser.ask("document.querySelectorAll('#curves svg')[2].getAttribute('aria-label')")
        assert labels == "accuracy: 0.925 in round 12, 0.1 to 0.925"
        assert browser.ask("document.querySelectorAll('#events li').length") == 38
        assert browser.ask("document.querySelector('#events li').innerText").endswith(
            f"round 12, train: node 77: Error 2: {shown(HOSTILE)}"
        )
        for dark in (False, True):
            for width in (1280, 420):
                browser.looks(width, 1500, dark=dark)
                browser.wait_for(f"innerWidth === {width} && document.documentElement.scrollWidth <= {width}")
                colour = browser.ask("getComputedStyle(document.querySelector('#curves path')).stroke")
                assert colour == ("rgb(121, 180, 245)" if dark else "rgb(28, 90, 158)")
                browser.screenshot(tmp_path / f"{'dark' if dark else 'light'}-{width}.png")
        browser.looks(1280, 900)
        browser.ask(f"location.hash = 'run={made.detached}'")
        browser.wait_for("story.run === openedId() && document.querySelectorAll('#curves figure').length === 3")
        browser.ask("document.getElementById('close').click()")
        browser.wait_for("opened.hidden")
    assert not browser.errors


def test_a_live_run(browser: Browser, commands: Commands, broker: Broker) -> None:
    """The page of the command: a run moves, a node that is killed is lost, a run that ends is gone."""
    process = commands.start("brokerfl", "dashboard", "--port", "0")
    node = commands.start("brokerfl-node", "client:app", "--name", "site-1", "--lease", "0.9")
    server = commands.server("--run-config", "nodes=1 until='enough'")
    run = run_id(server)
    url = process.wait_for(r"The dashboard is at (http://127\.0\.0\.1:\d+/)\. Ctrl-C stops it\.")
    browser.open(f"{url}#run={run}")
    pushed = "Number(/(\\d+) to 1 nodes/.exec(facts.innerText)?.[1])"
    before = browser.wait_for(pushed)
    browser.wait_for("document.querySelector('#events li') && document.querySelector('#curves figure')")
    browser.wait_for(f"{pushed} > {before}")
    browser.wait_for("document.querySelector('#nodes').innerText.includes('site-1')")
    commands.write("enough", "")
    server.ends(0)
    browser.wait_for("document.querySelectorAll('#runs tr').length === 0 && !document.getElementById('no-runs').hidden")
    browser.ask("ended.click()")
    browser.wait_for("document.querySelector('#runs tr').innerText.includes('completed')")
    node.kill()
    browser.wait_for("document.querySelector('#nodes tr').innerText.includes('lost')")
    assert not browser.errors
    process.send(signal.SIGTERM)
    assert process.ends(0).out.endswith("Stopped.\n")


def test_the_command_warns_where_others_can_reach_it(commands: Commands, broker: Broker) -> None:
    """On another address than a loopback one it says that there is no password, and answers under any address."""
    process = commands.start("brokerfl", "dashboard", "--port", "0", "--host", "0.0.0.0", "--allow-host", "fl.example")
    port = int(process.wait_for(r"The dashboard is at http://0\.0\.0\.0:(\d+)/"))
    assert "there is no password" in process.err
    hosts = {"10.1.2.3": 200, "fl.example": 200, "evil.example": 421}
    assert {host: get(port, "/", host)[0] for host in hosts} == hosts
    second = commands.start("brokerfl", "dashboard", "--port", str(port), "--host", "0.0.0.0")
    assert f"port {port} cannot be used" in second.ends(16).err
