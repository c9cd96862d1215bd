"""`mlx-farm tenants …`, against a stand-in of the API."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def pointed(mlx_farm: Any, stub_api: Any) -> None:
    """The commands speak to the stand-in."""
    mlx_farm.environment["FARM_URL"] = stub_api.url


def test_tenants_are_listed_with_who_has_set_their_weight(mlx_farm: Any, stub_api: Any) -> None:
    tenant = {"name": "acme", "weight": 2.5, "set_by": "live", "jobs": 3, "tokens": 900}
    stub_api.answer = lambda request: stub_api.reply({"data": [tenant]})
    done = mlx_farm("tenants", "ls")
    assert (done.returncode, done.stdout.splitlines()[-1].split()) == (0, ["acme", "2.5", "live", "3", "900"])


def test_a_weight_is_changed_and_given_back(mlx_farm: Any, stub_api: Any) -> None:
    stub_api.answer = lambda request: stub_api.reply({"name": "a/b", "weight": 3.0, "set_by": "live"})
    done = mlx_farm("tenants", "weight", "a/b", "3")
    assert (done.returncode, done.stdout.strip()) == (0, "a/b: weight 3 (live)")
    assert mlx_farm("tenants", "weight", "a/b").returncode == 0
    assert stub_api.paths() == ["POST /admin/tenants/a%2Fb"] * 2
