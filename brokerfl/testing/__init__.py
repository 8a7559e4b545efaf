"""Test your apps: a ServerApp and its ClientApps in one process, on fakeredis.

They use the same node loop and the same Driver as in production:

    from brokerfl.testing import run_simulation

    def test_my_app():
        result = run_simulation(server_app, client_app, num_supernodes=3)
        assert result.context.state.metrics_records["final"]["accuracy"] > 0.9

Needs the extra ``brokerfl[testing]``.
"""

from brokerfl.testing.fake import FakeServer, fake_connection
from brokerfl.testing.federation import Federation, SimulationResult, run_simulation

__all__ = ["FakeServer", "Federation", "SimulationResult", "fake_connection", "run_simulation"]
