"""The options of a node. Owns their names and defaults; must not know what they change."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

from brokerfl.client.executor import MAX_CRASHES
from brokerfl.client.site import Site
from brokerfl.common import UserConfig
from brokerfl.wire.frame import MAX_MESSAGE_BYTES
from brokerfl.wire.guard import UNPROTECTED, Protection


@dataclass(frozen=True)
class NodeOptions:
    """The options of a node.

    Attributes:
        node_config: for every Context.
        max_crashes: how often a message may kill the node before it is answered with Error 8.
        workers: how many runs are served at once, one message of each at a time.
        max_message: the largest message that is accepted, in bytes.
        any_app: whether the runs of other projects are served, too.
        wait_for_redis: whether it waits for a Redis that is unreachable when the node registers.
        stuck_limit: seconds after which a message that nobody waits for any more ends the node; infinity for never.
        share_errors: ``text`` if Error replies have the text of what the ClientApp raised, ``class`` if only its class.
        site: what the site decides about messages and replies, and keeps of them.
        on_stuck: called then, in another thread; it is to end the process.
        protection: who the node is, and whose runs it serves.
    """

    node_config: UserConfig = field(default_factory=dict)
    max_crashes: int = MAX_CRASHES
    workers: int = 1
    max_message: int = MAX_MESSAGE_BYTES
    any_app: bool = False
    wait_for_redis: bool = False
    share_errors: str = "text"
    stuck_limit: float = math.inf
    site: Site = field(default_factory=Site)
    on_stuck: Callable[[], None] = lambda: None
    protection: Protection = UNPROTECTED


class GivenOptions(TypedDict, total=False):
    """The same, as keyword arguments."""

    node_config: UserConfig
    max_crashes: int
    workers: int
    max_message: int
    any_app: bool
    wait_for_redis: bool
    share_errors: str
    stuck_limit: float
    site: Site
    on_stuck: Callable[[], None]
    protection: Protection
