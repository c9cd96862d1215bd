"""Models on disks, from the command line and through the API: pulled, cut off, gone on with, listed, given up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.farm.conftest import Farm
from tests.hub_stand_in import Hub, Troubles, running_hub, single_file_repository, tiny_repository
from tests.waiting import PATIENCE_S, until

TINY, LARGE = "farm/tiny", "farm/large"
CHUNK_BYTES = 10 << 20
"""huggingface_hub's."""

SILENT = 504
"""A node has not answered in time: ask again."""


@pytest.fixture(scope="module")
def one_hub() -> Iterator[Hub]:
    with running_hub() as hub:
        hub.repositories |= {TINY: tiny_repository(), LARGE: single_file_repository(rows=2000)}
        yield hub


@pytest.fixture
def hub(one_hub: Hub) -> Iterator[Hub]:
    """Without troubles, at first."""
    one_hub.troubles = Troubles()
    one_hub.asked.clear()
    yield one_hub
    one_hub.troubles.go_on.set()


def command(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    """`mlx-farm …`, begun."""
    return subprocess.Popen(
        [sys.executable, "-m", "farm", *words],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(environment: dict[str, str], *words: str, code: int = 0) -> tuple[str, str]:
    """`mlx-farm …`, to its end: what it said."""
    process = command(environment, *words)
    out, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, errors
    return out, errors


def test_a_pull_that_is_interrupted_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    environment = os.environ | hub.environment(tmp_path / "hub")
    data = hub.repositories[LARGE].files["model.safetensors"]
    hub.troubles.hold_at = CHUNK_BYTES + CHUNK_BYTES // 2
    process = command(environment, "pull", LARGE)
    assert hub.troubles.held.wait(PATIENCE_S)
    until(lambda: [part.stat().st_size for part in tmp_path.rglob("*.incomplete")] == [CHUNK_BYTES])
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert f"mlx-farm pull {LARGE} goes on" in errors
    hub.troubles.hold_at = None
    hub.troubles.go_on.set()

    listed, _ = run(environment, "ls", "--local")
    assert "half pulled 4" in listed
    out, _ = run(environment, "pull", LARGE, "--json")
    last = json.loads(out.splitlines()[-1])
    assert (last["state"], last["done_bytes"]) == ("done", last["total_bytes"])
    assert (Path(last["folder"]) / "model.safetensors").read_bytes() == data
    assert hub.ranges(data)[-1] == f"bytes={CHUNK_BYTES}-"
    found, _ = run(environment, "search", "farm/", "--json")
    assert {model["name"]: model["is_here"] for model in json.loads(found)["data"]} == {LARGE: True, TINY: False}
    out, errors = run(environment | {"HF_HUB_OFFLINE": "1"}, "search", "large", code=3)
    assert (out.strip(), "HF_HUB_OFFLINE" in errors) == (LARGE, True)
    out, _ = run(environment, "rm", LARGE)
    assert "removed" in out
    assert run(environment, "rm", LARGE, code=1)[1].startswith("mlx-farm: There is no")


class Gallery:
    """The API of one farm; what a busy node has not answered is asked again."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def ask(self, method: str, path: str, **request: Any) -> httpx2.Response:
        """Until a node has answered, or refused."""

        def answer() -> httpx2.Response | None:
            response = self._client.request(method, path, **request)
            return None if response.status_code in (503, SILENT) else response

        response: httpx2.Response = until(answer)
        return response

    def get(self, path: str, **query: Any) -> Any:
        """Its JSON."""
        return self.ask("GET", path, params=query).raise_for_status().json()

    def until(self, pull: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """A pull, when it is so."""
        found: list[dict[str, Any]] = []

        def holds() -> bool:
            found[:] = [self.get(f"/pulls/{pull}")]
            return condition(found[0])

        until(holds)
        return found[0]


@pytest.fixture(scope="module")
def gallery_farm(start_farm: Callable[..., Farm], one_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Farm:
    """One that pulls from the stand-in."""
    return start_farm(variables=one_hub.environment(tmp_path_factory.mktemp("hub")))


@pytest.fixture
def gallery(gallery_farm: Farm) -> Iterator[Gallery]:
    """Its API."""
    with httpx2.Client(base_url=f"{gallery_farm.url}/admin/gallery", timeout=PATIENCE_S) as client:
        yield Gallery(client)


def test_operators_pull_models_onto_a_node_stop_that_and_see_what_is_there(
    gallery: Gallery, gallery_farm: Farm, hub: Hub
) -> None:
    [node] = until(lambda: gallery.get("/nodes")["data"])
    hub.troubles.hold_at = CHUNK_BYTES + CHUNK_BYTES // 2
    accepted = gallery.ask("POST", "/pulls", json={"model": LARGE})
    assert accepted.status_code == 202, accepted.text
    pull = accepted.json()
    assert (pull["node"], pull["model"]) == (node["node"], LARGE)
    moving = gallery.until(pull["id"], lambda row: row["state"] == "downloading" and row["done_bytes"] >= CHUNK_BYTES)
    assert moving["done_bytes"] < moving["total_bytes"]
    assert gallery.ask("POST", "/pulls", json={"model": LARGE}).json()["id"] == pull["id"]  # that one goes on
    stopping = gallery.ask("POST", f"/pulls/{pull['id']}/cancel")
    assert stopping.json()["state"] in ("stopping", "stopped")
    stopped = gallery.until(pull["id"], lambda row: row["ended_ms"] is not None)
    assert (stopped["state"], stopped["error"]) == ("stopped", None)
    assert gallery.ask("POST", f"/pulls/{pull['id']}/cancel").json()["state"] == "stopped"
    hub.troubles.hold_at = None
    hub.troubles.go_on.set()

    environment = gallery_farm.environment | {"FARM_URL": gallery_farm.url}
    out, _ = run(environment, "pull", LARGE, "--node", "any")
    assert out.splitlines()[-1].startswith(f"{LARGE} on {node['node']}: done")
    assert hub.ranges(hub.repositories[LARGE].files["model.safetensors"])[-1] == f"bytes={CHUNK_BYTES}-"
    assert {row["state"] for row in gallery.get("/pulls")["data"]} == {"stopped", "done"}

    [model] = gallery.get("/models")["data"]
    assert (model["name"], model["complete"], model["facts"]["kind"]) == (LARGE, True, "text")
    assert [found["name"] for found in gallery.get("/search", text="tiny")["data"]] == [TINY]
    advice = gallery.get("/recommend", context_tokens=2048)
    assert advice["machine"]["budget_bytes"] > 0
    assert LARGE in {row["name"] for row in advice["data"] if row["is_here"]}
    changes = gallery_farm.get("/admin/changes")["data"]
    assert {"gallery.pull", "gallery.cancel"} <= {change["action"] for change in changes}


def test_what_cannot_be_pulled_is_told_through_the_api(gallery: Gallery, hub: Hub) -> None:
    until(lambda: gallery.get("/nodes")["data"])
    pull = gallery.ask("POST", "/pulls", json={"model": "farm/nobody"}).json()
    failed = gallery.until(pull["id"], lambda row: row["ended_ms"] is not None)
    assert (failed["state"], "has no model" in failed["error"]) == ("failed", True)
    for model in ("tiny", "../x", "-o/b", "a/b;c", "demo"):
        assert gallery.ask("POST", "/pulls", json={"model": model}).status_code == 400, model
    elsewhere = gallery.ask("POST", "/pulls", json={"model": TINY, "node": "mars"})
    assert (elsewhere.status_code, "mars" in elsewhere.text) == (409, True)
    assert gallery.ask("GET", "/pulls/pull_0").status_code == 404
    hub.troubles.is_down = True
    away = gallery.ask("GET", "/search", params={"text": "tiny"})
    assert (away.status_code, "not reachable" in away.text) == (409, True)
