"""`mlx-farm providers …`, against a stand-in of the API."""

from __future__ import annotations

from typing import Any

import pytest

KEY = "sk-canary-0123456789"
SHOWN: dict[str, Any] = {
    "name": "cloud",
    "kind": "anthropic",
    "base_url": "https://api.anthropic.com/v1",
    "models": [{"name": "big"}],
    "serves": {"cloud/big": "loaded"},
    "has_key": True,
    "enabled": True,
}


@pytest.fixture(autouse=True)
def pointed(mlx_farm: Any, stub_api: Any) -> None:
    """The commands speak to the stand-in."""
    mlx_farm.environment["FARM_URL"] = stub_api.url
    stub_api.answer = lambda request: stub_api.reply(SHOWN if request.method == "POST" else {"data": [SHOWN]})


def test_a_provider_is_added_with_prices_and_its_key_from_a_variable(mlx_farm: Any, stub_api: Any) -> None:
    mlx_farm.environment["CLOUD_KEY"] = KEY
    model = "big,input=3,output=15.5,context=200000"
    done = mlx_farm("providers", "add", "cloud", "--kind", "anthropic", "--model", model, "--key-env", "CLOUD_KEY")
    assert (done.returncode, done.stdout.strip()) == (0, "cloud is enabled: cloud/big")
    [request] = stub_api.requests
    assert request.path == "/admin/providers"
    assert request.body == {
        "name": "cloud",
        "kind": "anthropic",
        "base_url": "https://api.anthropic.com/v1",
        "models": [{"name": "big", "input_usd": 3.0, "output_usd": 15.5, "context_tokens": 200000}],
        "key": KEY,
    }
    assert KEY not in done.stdout + done.stderr


def test_providers_are_listed_disabled_and_enabled(mlx_farm: Any, stub_api: Any) -> None:
    listed = mlx_farm("providers", "ls")
    assert (listed.returncode, listed.stdout.split()[-2:]) == (0, ["yes", "enabled"])
    for action in ("disable", "enable"):
        assert mlx_farm("providers", action, "cloud").returncode == 0
    assert stub_api.paths()[1:] == ["POST /admin/providers/cloud/disable", "POST /admin/providers/cloud/enable"]


@pytest.mark.parametrize("model", ["big,inptu=3", "big,input=-1", "big,context=1.5"])
def test_a_model_that_makes_no_sense_is_a_usage_error(mlx_farm: Any, stub_api: Any, model: str) -> None:
    done = mlx_farm("providers", "add", "cloud", "--model", model, "--no-key")
    assert (done.returncode, stub_api.requests) == (2, [])


def test_a_worker_for_providers_has_no_model_of_its_own(mlx_farm: Any) -> None:
    done = mlx_farm("worker", "--providers", "--model", "demo")
    assert (done.returncode, "--model says what a model is served with" in done.stderr) == (2, True)
    mlx_farm.environment["FARM_CIRCUIT_FAILURES"] = "none"
    done = mlx_farm("worker", "--providers")  # refused by the process that it becomes
    assert (done.returncode, "circuit_failures" in done.stderr) == (2, True)
