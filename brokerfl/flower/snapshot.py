"""The snapshot: everything that a loop needs to go on from where it is.

Owns its layout as a record, and the states of the random generators of the process. It must not know when it is taken.
"""

import random
import sys
from dataclasses import dataclass, field
from typing import Any

from brokerfl.broker.steps import Recorded
from brokerfl.common.npy import load_numpy
from brokerfl.flower.keeper import Kept, small
from brokerfl.flower.values import encode
from brokerfl.wire.payload import EncodedContent
from brokerfl.wire.steps import HEAD, Head, encode_head, value_field

#: The name of the value that holds what nodes a configure hook saw.
NODES = "nodes"


@dataclass
class Snapshot:
    """What the next push commits."""

    round: int
    hook: str
    steps: int
    pages: dict[bytes, bytes]
    values: dict[str, Kept]
    node_lists: list[list[int]] = field(default_factory=list)

    def recorded(self, mark: int) -> Recorded:
        """Return it as a commit writes it; ``mark`` is the number of the last message before the push."""
        size = sum(kept.size for kept in self.values.values())
        fields = {value_field(name): kept.field for name, kept in self.values.items()}
        fields[value_field(NODES)] = small(encode(self.node_lists).tree)
        head = encode_head(Head(self.round, self.hook, self.steps, mark, size))
        return Recorded({HEAD: head, **self.pages, **fields}, self.contents)

    @property
    def contents(self) -> frozenset[bytes]:
        """What its large contents are called in Redis."""
        return frozenset(kept.content for kept in self.values.values() if kept.content)

    @property
    def uploads(self) -> list[EncodedContent]:
        """Those of them that are to be there when it is committed."""
        return [kept.upload for kept in self.values.values() if kept.upload is not None]


def random_states() -> dict[str, Any]:
    """Return the states of the generators that any code may use: random, numpy, and torch if it is imported."""
    states = {"random": random.getstate(), "numpy": load_numpy().random.get_state(legacy=False)}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy()
    return states


def restore_random(name: str, state: Any) -> None:
    """Put a state back that `random_states` returned; None for what was not recorded."""
    if state is None:
        return
    torch = sys.modules.get("torch")
    if name == "random":
        random.setstate(state)
    elif name == "numpy":
        load_numpy().random.set_state(state)
    elif torch is not None:
        torch.set_rng_state(torch.from_numpy(state))
