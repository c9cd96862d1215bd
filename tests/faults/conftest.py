"""Farms of real processes for tests that hurt them (of tests/farm), and API nodes in the test's own (of tests/api)."""

from __future__ import annotations

from tests.api.conftest import queue, start_node, worker
from tests.farm.conftest import eventually, start_farm

__all__ = ["eventually", "queue", "start_farm", "start_node", "worker"]
