"""Context: its fields, and that no two share state."""

from brokerfl.common import Context, MetricsRecord, RecordSet, UserConfig


def test_fields() -> None:
    """A Context takes its five fields by position in Flower's order, or by name."""
    state = RecordSet()
    node_config: UserConfig = {"partition-id": 0, "gpu": False}
    by_position = Context(7, 22, node_config, state, {"lr": 0.1, "name": "x"})
    by_name = Context(run_id=7, node_id=22, node_config=node_config, state=state, run_config={"lr": 0.1, "name": "x"})
    assert by_position == by_name
    assert (by_position.run_id, by_position.node_id) == (7, 22)
    assert by_position.state is state
    assert by_position.node_config == {"partition-id": 0, "gpu": False}
    assert by_position.run_config["lr"] == 0.1


def test_state_is_kept() -> None:
    """What is put into the state is there for the next look, and in no other Context."""
    one, other = Context(1, 2, {}, RecordSet(), {}), Context(2, 2, {}, RecordSet(), {})
    one.state.metrics_records["seen"] = MetricsRecord({"n": 1})
    assert one.state.metrics_records["seen"]["n"] == 1
    assert other.state == RecordSet()
    one.state = RecordSet()
    assert one.state == RecordSet()
