"""`mlx-farm load|unload|pin|unpin|ps` on a farm of demo models with memory for one, whose spare process takes over."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import psutil
import pytest

from tests.farm.conftest import Farm
from tests.waiting import PATIENCE_S, until

MIB = 1 << 20


@pytest.fixture(scope="module")
def tight(start_farm: Callable[..., Farm]) -> Farm:
    """Memory for one of two models, and a spare process that will serve the next."""
    return start_farm(
        models="first=demo,second=demo",
        model_memory_bytes=str(300 * MIB),
        kv_cache_bytes=str(16 * MIB),
        max_sequences="4",
        keep_alive_s="-1",
        spare_process="true",
    )


@pytest.fixture(autouse=True)
def pointed(mlx_farm: Any, tight: Farm) -> None:
    """The commands speak to the farm."""
    mlx_farm.environment["FARM_URL"] = tight.url


def state(tight: Farm, model: str) -> str:
    """Where a model stands."""
    rows = tight.get("/admin/models/status")["data"]
    return next(str(row["place"]["state"]) for row in rows if row["name"] == model)


def processes(tight: Farm) -> set[int]:
    """Of the agent: a model's, and the spare's."""
    return {child.pid for child in psutil.Process(tight.worker.process.pid).children()}


def table(printed: str, name: str) -> dict[str, str]:
    """The row of the model in the table of places, by column."""
    lines = [line.split("\t") for line in printed.splitlines()]
    head = next(line for line in lines if line[:2] == ["MODEL", "STATE"])
    row = next(line for line in lines[lines.index(head) + 1 :] if line[0] == name)
    return dict(zip(map(str.lower, head), row, strict=True))


def test_a_model_is_loaded_shown_and_given_up(mlx_farm: Any, tight: Farm) -> None:
    fits = mlx_farm("load", "first", "--dry-run")
    assert (fits.returncode, "of 300 MiB are free" in fits.stdout) == (0, True), fits.stderr
    assert state(tight, "first") == "available"
    loaded = mlx_farm("load", "first")
    assert (loaded.returncode, loaded.stdout.splitlines()[-1]) == (0, "first: loaded"), loaded.stderr
    shown = table(mlx_farm("ps").stdout, "first")
    assert (shown["state"], shown["pinned"], shown["failed"]) == ("loaded", "False", "")
    swap = json.loads(mlx_farm("load", "second", "--dry-run", "--json").stdout)
    assert (swap["would_evict"], swap["why_not"]) == (["first"], "")
    assert mlx_farm("unload", "first").returncode == 0
    until(lambda: state(tight, "first") == "available")


def test_a_pinned_model_stays_until_it_is_unpinned(mlx_farm: Any, tight: Farm) -> None:
    assert mlx_farm("pin", "first").stdout.endswith(", pinned\n")
    until(lambda: state(tight, "first") == "loaded")
    for arguments, reason in ((("unload", "first"), "unpin it first"), (("load", "second"), "pinned")):
        refused = mlx_farm(*arguments)
        assert (refused.returncode, reason in refused.stderr) == (1, True), refused.stderr
    assert table(mlx_farm("ps").stdout, "first")["pinned"] == "True"
    assert json.loads(mlx_farm("unpin", "first", "--json").stdout)["pinned"] is False
    loaded = json.loads(mlx_farm("load", "second", "--json").stdout)
    assert (loaded["would_evict"], loaded["state"]) == (["first"], "loaded")


def test_an_order_goes_to_the_agent_that_is_named(mlx_farm: Any, tight: Farm) -> None:
    (agent,) = json.loads(mlx_farm("ps", "--json").stdout)["agents"]
    assert mlx_farm("load", "first", "--agent", agent["agent"]).returncode == 0
    refused = mlx_farm("load", "first", "--agent", "nobody")
    assert (refused.returncode, agent["agent"] in refused.stderr) == (1, True)
    unknown = mlx_farm("load", "nothing")
    assert (unknown.returncode, "nothing" in unknown.stderr) == (1, True)


def test_the_spare_process_serves_the_model_that_takes_another_one_s_place(tight: Farm) -> None:
    def ask(model: str) -> None:
        body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
        answer = httpx2.post(f"{tight.url}/v1/chat/completions", json=body, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text

    ask("first")
    before = until(lambda: len(found := processes(tight)) == 2 and found)
    served = tight.model_pid("first")
    ask("second")
    assert tight.model_pid("second") in before - {served}


def test_keep_alive_of_a_request_gives_up_the_model_in_each_protocol(mlx_farm: Any, tight: Farm) -> None:
    words = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    for path, body in (
        ("/v1/messages", words),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 4, "store": False}),
        ("/v1/chat/completions", words),
    ):
        asked = {"model": "first", "keep_alive": 0}
        answer = httpx2.post(f"{tight.url}{path}", json=body | asked, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        until(lambda: state(tight, "first") == "available")
    assert table(mlx_farm("ps").stdout, "first")["state"] == "available"


def test_what_was_decided_is_in_the_record(mlx_farm: Any, tight: Farm) -> None:
    def rows() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = tight.get("/v1/audit/models?model=first&limit=1000")["data"][::-1]
        return found

    until(lambda: rows()[-1]["event"] == "unloaded")
    told = [row["event"] for row in rows()]
    assert told[:2] == ["known", "ordered"]
    assert {"loading", "loaded", "evicting", "unloaded", "pinned", "unpinned"} <= set(told)
    assert told.count("loading") == told.count("unloaded")
    query = "SELECT event, COUNT(*) AS times FROM model_events WHERE model = 'first' GROUP BY event"
    assert {row["event"]: row["times"] for row in tight.query(query)} == {name: told.count(name) for name in told}
    csv = httpx2.get(f"{tight.url}/v1/audit/models", params={"event": "pinned", "format": "csv"}, timeout=PATIENCE_S)
    assert csv.text.splitlines()[0] == "at_ms,seq,agent,event,model,data"
    assert len(csv.text.splitlines()) == 2
