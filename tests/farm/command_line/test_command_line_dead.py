"""`mlx-farm jobs dead|retry|discard`, against a stand-in of the API."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def pointed(mlx_farm: Any, stub_api: Any) -> None:
    """The commands speak to the stand-in."""
    mlx_farm.environment["FARM_URL"] = stub_api.url


def test_dead_jobs_are_listed_with_their_error(mlx_farm: Any, stub_api: Any) -> None:
    job = {"id": "j1", "model": "demo", "attempts": 3, "crashes": 3, "error": {"message": "Workers died."}}
    stub_api.answer = lambda request: stub_api.reply({"data": [job], "has_more": True})
    done = mlx_farm("jobs", "dead", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert "Workers died." in done.stdout
    assert "raise --limit" in done.stderr
    assert stub_api.paths() == ["GET /v1/jobs/dead?limit=1"]


@pytest.mark.parametrize(
    ("arguments", "path", "answer", "line"),
    [
        (("retry", "j1"), "/v1/jobs/j1/retry", {"id": "j2"}, "j1: again as j2"),
        (("discard", "j1"), "/v1/jobs/j1/discard", {"id": "j1"}, "j1: discarded"),
        (("discard", "--all"), "/v1/jobs/dead/discard", {"discarded": ["j1", "j2"]}, "j2: discarded"),
        (
            ("retry", "--all"),
            "/v1/jobs/dead/retry",
            {"retried": [{"id": "j1", "new_id": "j2"}], "failed": []},
            "j1: again as j2",
        ),
    ],
)
def test_one_or_all_are_dealt_with(
    mlx_farm: Any, stub_api: Any, arguments: tuple[str, ...], path: str, answer: dict[str, Any], line: str
) -> None:
    stub_api.answer = lambda request: stub_api.reply(answer)
    done = mlx_farm("jobs", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert line in done.stdout.splitlines()
    assert stub_api.paths() == [f"POST {path}"]


def test_what_could_not_be_retried_is_told_and_is_exit_code_1(mlx_farm: Any, stub_api: Any) -> None:
    failed = [{"id": "j1", "error": {"message": "The body is no longer kept."}}]
    stub_api.answer = lambda request: stub_api.reply({"retried": [], "failed": failed})
    done = mlx_farm("jobs", "retry", "--all")
    assert (done.returncode, done.stderr) == (1, "j1: The body is no longer kept.\n")


@pytest.mark.parametrize("arguments", [("retry",), ("discard", "j1", "--all")])
def test_one_and_all_are_not_mixed(mlx_farm: Any, arguments: tuple[str, ...]) -> None:
    assert mlx_farm("jobs", *arguments).returncode == 2
