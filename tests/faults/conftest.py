"""Farms of real processes for tests that hurt them: the fixtures of tests/farm."""

from __future__ import annotations

from tests.farm.conftest import eventually, start_farm

__all__ = ["eventually", "start_farm"]
