"""Waiting for replicas: who wants it pays for it, and is told when it does not help."""

import logging

import pytest

from tests.apps import number
from tests.conftest import real_backend
from tests.stage import push, silent, start
from tests.topology.fleets import SentinelFleet


def test_transactions_wait_for_replicas(sentinels: SentinelFleet, caplog: pytest.LogCaptureFixture) -> None:
    """Each one that the run makes, and nobody's where nobody asked for it; too few replicas are said once."""
    sentinels.flushall()
    backend = real_backend("sentinel", sentinels.url)
    node, client = silent(backend), sentinels.client(sentinels.primary_of(""))

    def waits() -> int:
        return int(client.info("commandstats").get("cmdstat_wait", {}).get("calls", 0))

    for replicas, warnings in ((0, 0), (2, 0), (5, 1)):
        before = waits()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            driver = start(backend, wait_replicas=replicas)
            for group in ("1", "2"):
                push(driver, node, number(1), group)
            driver.end()
        assert (waits() - before >= 2) == (replicas > 0)
        assert len([record for record in caplog.records if "of 5 replicas" in record.getMessage()]) == warnings
