"""`brokerfl demo`: its keys, and that it takes them away."""

import signal

import pytest

from tests.apps import eventually
from tests.cli.conftest import DEADLINE, Broker, Commands
from tests.conftest import PREFIX

pytestmark = pytest.mark.timeout(180)


def test_its_keys_begin_with_the_prefix_that_is_given(commands: Commands, broker: Broker) -> None:
    """So a user of Redis with rights to one prefix can run it; Ctrl-C leaves none of them."""
    pytest.importorskip("sklearn")
    demo = commands.start("brokerfl", "demo", "--nodes", "1")
    eventually(lambda: broker.scan(f"{PREFIX}-demo-*:nodes"), DEADLINE)
    demo.send(signal.SIGINT)
    demo.ends(130)
    assert broker.scan() == set()
