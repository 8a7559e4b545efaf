"""What signatures and seals cost: rounds with them, compared with rounds without, over nodes on one server.

Owns whose keys these are: all nodes have the same.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count

from benchmarks.federation import Federation, empty_round, model_round
from benchmarks.measure import Comparison, Plan, compare
from benchmarks.models import MEGABYTE, WARM_UP
from benchmarks.stage import PREFIX, Stage
from brokerfl.common import crypto
from brokerfl.common.identity import Identity, Owner, PublicKeys, Trusted
from brokerfl.server import Driver
from brokerfl.wire.protection import Protected

_NODES, _PAIRS = 5, count()


class _Same(Mapping[int, PublicKeys]):
    """The same keys for each node: their ids are random."""

    def __init__(self, keys: PublicKeys) -> None:
        self._keys = keys

    def __getitem__(self, node_id: int) -> PublicKeys:
        return self._keys

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _protected(*, seals: bool) -> Protected:
    me = Identity("bench", secrets.token_bytes(32), secrets.token_bytes(32))
    keys = PublicKeys(crypto.signing_public(me.signing), crypto.exchange_public(me.exchange))
    return Protected(me, Trusted(owners={"bench": Owner("bench", keys.signing)}, nodes=_Same(keys)), seals=seals)


def compare_empty(*, seals: bool) -> Callable[[Stage, Plan], Comparison]:
    """Return what measures empty rounds."""

    def measure(stage: Stage, plan: Plan) -> Comparison:
        with ExitStack() as stack:
            secured, plain = (empty_round(*each) for each in _runs(stage, stack, seals))
            return compare(secured, plain, plan, warm_up=50)

    return measure


def compare_model(*, seals: bool) -> Callable[[Stage, Plan], Comparison]:
    """Return what measures rounds of 10 MB to each node and back."""

    def measure(stage: Stage, plan: Plan) -> Comparison:
        with ExitStack() as stack:
            runs = _runs(stage, stack, seals)
            for driver, nodes in runs:
                model_round(driver, nodes, WARM_UP)()
            secured, plain = (model_round(driver, nodes, 10 * MEGABYTE) for driver, nodes in runs)
            return compare(secured, plain, plan, warm_up=0)

    return measure


def _runs(stage: Stage, stack: ExitStack, seals: bool) -> list[tuple[Driver, list[int]]]:
    """Return Driver and nodes of a run that is secured, and of one that is not."""
    url, protection = stage.server.url, _protected(seals=seals)
    prefix = f"{PREFIX}-{next(_PAIRS)}"  # nodes of another pair may seem to be online still
    secured = stack.enter_context(Federation(url, _NODES, f"{prefix}-secured", protection=protection))
    plain = stack.enter_context(Federation(url, _NODES, f"{prefix}-plain"))
    return [stack.enter_context(secured.run(protection=protection)), stack.enter_context(plain.run())]
