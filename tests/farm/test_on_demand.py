"""Models by demand on one node agent: real processes, and memory for one of two models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.farm.conftest import Farm

MIB = 1 << 20
CHAT = {"messages": [{"role": "user", "content": "What is mlx-farm?"}], "temperature": 0, "max_tokens": 8}
PATIENCE_S = 180.0
DEMO = Path(__file__).parents[2] / "workers" / "demo"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's folder, with weights that end too soon."""
    folder = tmp_path_factory.mktemp("models") / "broken"
    folder.mkdir()
    for file in DEMO.glob("*.*"):
        shutil.copy(file, folder)
    (folder / WEIGHTS).write_bytes((DEMO / WEIGHTS).read_bytes()[: 1 << 20])
    return folder


@pytest.fixture(scope="module")
def tight(start_farm: Callable[..., Farm], broken: Path) -> Farm:
    """Memory for one model."""
    return start_farm(
        variables={
            "PYTHONPATH": os.pathsep.join(map(str, (Path(__file__).parent / "dying", Path(__file__).parents[2])))
        },
        models=f"first=demo,second=demo,dies=demo,broken={broken}",
        model_memory_bytes=str(300 * MIB),
        kv_cache_bytes=str(16 * MIB),
        max_sequences="4",
        keep_alive_s="-1",
        lease_s="60",
    )


def post(farm: Farm, model: str, **more: Any) -> httpx2.Response:
    return httpx2.post(f"{farm.url}/v1/chat/completions", json=CHAT | {"model": model} | more, timeout=PATIENCE_S)


def ask(farm: Farm, model: str, **more: Any) -> str:
    """The text of an answer."""
    answer = post(farm, model, **more)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def places(farm: Farm) -> dict[str, dict[str, Any]]:
    """Where each model stands."""
    agents = httpx2.get(f"{farm.url}/admin/models/agents", timeout=60).json()["data"]
    return {row["model"]: row for agent in agents for row in agent["models"]}


def order(farm: Farm, action: str, model: str, **more: Any) -> httpx2.Response:
    return httpx2.post(f"{farm.url}/admin/models/{action}", json={"model": model, **more}, timeout=60)


def events(farm: Farm, model: str) -> list[dict[str, Any]]:
    """What was decided about a model, oldest first."""
    query: dict[str, str | int] = {"model": model, "limit": 1000}
    rows: list[dict[str, Any]] = httpx2.get(f"{farm.url}/admin/models/events", params=query, timeout=60).json()["data"]
    return rows[::-1]


def test_models_that_do_not_fit_together_answer_in_turns(tight: Farm) -> None:
    answers = [ask(tight, model) for model in ("first", "second")]
    with ThreadPoolExecutor(4) as pool:
        answers += pool.map(lambda model: ask(tight, model), ["first", "second"] * 2)
    assert answers == [answers[0]] * 6
    told = [event["event"] for event in events(tight, "first")]
    assert told[:6] == ["known", "loading", "loaded", "evicting", "unloaded", "loading"]


def test_a_request_waits_while_a_pinned_model_leaves_no_room_and_its_stream_says_so(
    tight: Farm, eventually: Callable[..., Any]
) -> None:
    assert order(tight, "pin", "first").json()["pinned"] is True
    eventually(lambda: places(tight)["first"]["state"] == "loaded", PATIENCE_S)
    fit = order(tight, "load", "second", dry_run=True).json()
    assert (fit["fits"], "first" in fit["why_not"]) == (False, True)
    refused = order(tight, "unload", "first")
    assert (refused.status_code, "unpin it first" in refused.json()["error"]["message"]) == (409, True)
    body = CHAT | {"model": "second", "stream": True}
    with httpx2.stream("POST", f"{tight.url}/v1/chat/completions", json=body, timeout=PATIENCE_S) as answer:
        lines = answer.iter_lines()
        said = next(line for line in lines if "model=waiting for=pinned" in line)
        assert said.startswith(": queued position=1 ")
        job = httpx2.get(f"{tight.url}/v1/jobs/{answer.headers['farm-job-id']}", timeout=60).json()
        assert (job["state"], job["position"], job["model_state"]["waits_for"]) == ("queued", 1, "pinned")
        assert order(tight, "unpin", "first").json()["pinned"] is False
        assert [line for line in lines if line][-1] == "data: [DONE]"
    evicted = [event for event in events(tight, "first") if event["event"] == "evicting"]
    assert evicted[-1]["why"] == "room"
    actions = tight.query("SELECT action, target FROM audit_admin ORDER BY id")
    assert actions == [{"action": f"models.{action}", "target": "first"} for action in ("pin", "unpin")]


def test_a_model_is_unloaded_when_a_request_says_so(tight: Farm, eventually: Callable[..., Any]) -> None:
    ask(tight, "second", keep_alive=0)
    eventually(lambda: places(tight)["second"]["state"] == "available", PATIENCE_S)
    assert [event["why"] for event in events(tight, "second") if event["event"] == "evicting"][-1] == "idle"
    odd = post(tight, "second", keep_alive="soon")
    assert (odd.status_code, odd.json()["error"]["param"]) == (400, "keep_alive")


def test_a_model_whose_process_dies_three_times_has_failed_until_it_is_loaded_by_hand(
    tight: Farm, eventually: Callable[..., Any]
) -> None:
    curse = Path(tight.environment["FARM_HOME"]) / "dies"
    curse.touch()
    waiting = post(tight, "dies")
    assert (waiting.status_code, waiting.json()["error"]["code"]) == (503, "model_failed")
    assert "died 3 times in a row" in waiting.json()["error"]["message"]
    eventually(
        lambda: "mlx-farm load dies" in post(tight, "dies").json()["error"]["message"], PATIENCE_S
    )  # at the door
    told = [event["event"] for event in events(tight, "dies")]
    assert told[:4] == ["known", "loading", "failed", "turned_away"]
    curse.unlink()
    assert order(tight, "load", "dies").status_code == 200
    eventually(lambda: places(tight)["dies"]["state"] == "loaded", PATIENCE_S)
    assert ask(tight, "dies") == ask(tight, "first")


def test_a_model_whose_files_are_no_good_is_refused_with_the_reason_and_the_others_are_served(tight: Farm) -> None:
    refused = post(tight, "broken")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_failed")
    assert "cannot load" in refused.json()["error"]["message"]
