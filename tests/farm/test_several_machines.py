"""Two node agents share one Redis and one record: models come and go by demand while everything about them changes.

Each has a FARM_HOME of its own, and a network of its own where the system lets it; Redis is a Unix socket.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from redis import Redis as SyncRedis

from tests.farm.conftest import Farm, Role
from tests.waiting import PATIENCE_S, until

MIB = 1 << 20
MODELS = ("a", "b", "c")
ADMIN = {"authorization": "Bearer of the farm"}
CLIENTS, QUESTIONS = 6, 3
NETWORKS = (("unshare", "--net"), ("unshare", "--map-root-user", "--net"))


def own_network() -> tuple[str, ...]:
    """A command that starts another one in a network of its own; nothing where the system does not let it."""
    for command in NETWORKS:
        try:
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
        except FileNotFoundError:
            break
    return ()


class Machines:
    """Two agents with memory for one model each, an API node, a scheduler; what an operator does to them."""

    def __init__(self, farm: Farm, homes: Callable[[str], Path]) -> None:
        self.farm = farm
        self._homes = homes
        self.second = self.add()
        self.http = httpx2.Client(base_url=farm.url, headers=ADMIN, timeout=PATIENCE_S)

    def add(self) -> Role:
        """Another machine."""
        network = own_network()
        role = self.farm.start("workers", within=network, FARM_HOME=str(self._homes("machine")))
        if network:
            assert os.readlink(f"/proc/{role.process.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        return role

    def post(self, path: str, body: Any) -> Any:
        """What an operator asks for, and gets."""
        answer = self.http.post(path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def agents(self) -> list[dict[str, Any]]:
        """What the agents show."""
        rows: list[dict[str, Any]] = self.http.get("/admin/models/agents").json()["data"]
        return rows

    def states(self, model: str) -> dict[str, str]:
        """Of a model, by agent."""
        return {
            agent["agent"]: row["state"] for agent in self.agents() for row in agent["models"] if row["model"] == model
        }

    def pin_what_is_loaded(self) -> tuple[str, str] | None:
        """Pin a model that an agent has now, and name both; None where it has gone and there is no room for it."""
        model = next((name for name in MODELS if "loaded" in self.states(name).values()), None)
        answer = self.http.post("/admin/models/pin", json={"model": model}) if model else None
        if model is None or answer is None or answer.status_code != 200:
            return None
        return model, answer.json()["agent"]

    def kill_model(self, model: str, agent: str) -> None:
        """kill -9 to the process of a model that the agent has and does not give up."""
        until(lambda: self.states(model).get(agent) == "loaded")
        parent = next(row["pid"] for row in self.agents() if row["agent"] == agent)

        def killed() -> bool:
            for row in self.http.get("/admin/workers").json()["data"]:
                with suppress(psutil.NoSuchProcess):
                    if row["model"] == model and psutil.Process(row["pid"]).ppid() == parent:
                        psutil.Process(row["pid"]).kill()
                        return True
            return False

        until(killed)

    def kill_the_second(self) -> str:
        """kill -9 to the second agent, and what it had shown runs out; its name."""
        names = {agent["agent"] for agent in self.agents()}
        self.second.kill()
        with SyncRedis.from_url(self.farm.redis.url) as redis:
            for agent in names:
                redis.delete(f"{{farm}}:agent:{agent}")  # the first one shows itself again
            for model in MODELS:
                redis.delete(f"{{farm}}:placing:{model}")
        left = until(lambda: {agent["agent"] for agent in self.agents()})
        (dead,) = names - left
        return str(dead)

    def rule(self, model: str) -> int:
        """`alias` is served by this model from now on; the version."""
        rules = [{"name": "alias", "match": "exact", "pattern": "alias", "targets": [{"model": model}]}]
        draft = self.post("/admin/rules/drafts", {"rules": rules})
        return int(self.post("/admin/rules/apply", {"draft": draft["id"]})["version"])

    def ask(self, model: str, key: str) -> str:
        """The text of an answer."""
        body = {"model": model, "temperature": 0, "max_tokens": 12, "messages": [{"role": "user", "content": "Hi"}]}
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx2.post(f"{self.farm.url}/v1/chat/completions", json=body, headers=headers, timeout=2 * PATIENCE_S)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])


@pytest.fixture
def machines(start_farm: Callable[..., Farm], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Three models, and memory for two of them in all."""
    farm = start_farm(
        api_key="of the farm",
        models=",".join(f"{name}=demo" for name in MODELS),
        model_memory_bytes=str(300 * MIB),
        kv_cache_bytes=str(16 * MIB),
        model_turn_s="1",
        model_copy_after_s="3600",
        max_sequences="4",
        keep_alive_s="-1",
    )
    machines = Machines(farm, tmp_path_factory.mktemp)
    yield machines
    machines.http.close()
    farm.stop()


def held_by_two(rows: list[dict[str, Any]]) -> list[str]:
    """Models that were being loaded while another machine had them, or was loading them; oldest row first."""
    holders: dict[str, set[str]] = {name: set() for name in MODELS}
    found = []
    for row in rows:
        if row["event"] == "loading":
            found += [row["model"]] * bool(holders[row["model"]] - {row["agent"]})
            holders[row["model"]].add(row["agent"])
        elif row["event"] in ("evicting", "failed"):
            holders[row["model"]].discard(row["agent"])
    return found


def test_nothing_is_lost_while_models_machines_rules_and_keys_come_and_go(machines: Machines) -> None:
    versions = [machines.rule("a")]
    key = machines.post("/admin/keys", {"name": "app"})
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked: list[Future[str]] = [
            pool.submit(machines.ask, (*MODELS, "alias")[(client + turn) % 4], key["key"])
            for turn in range(QUESTIONS)
            for client in range(CLIENTS)
        ]
        until(lambda: sum(future.done() for future in asked) >= 4)
        pinned, agent = until(machines.pin_what_is_loaded)
        machines.kill_model(pinned, agent)
        versions.append(machines.rule("b"))
        until(lambda: sum(future.done() for future in asked) >= 7)
        machines.post("/admin/models/unpin", {"model": pinned, "agent": agent})
        machines.post("/admin/models/unload", {"model": pinned, "agent": agent})
        dead = machines.kill_the_second()
        other = machines.post("/admin/keys", {"name": "gone"})
        machines.post(f"/admin/keys/{other['id']}/revoke", {})
        machines.add()
        texts = {future.result() for future in asked}
    assert len(texts) == 1
    check_the_record(machines, len(asked), pinned, dead, versions)


def check_the_record(machines: Machines, asked: int, pinned: str, dead: str, versions: list[int]) -> None:
    """Every job and every decision is there."""
    query = machines.farm.query
    until(lambda: query("SELECT COUNT(*) AS jobs FROM jobs WHERE state = 'finished'") == [{"jobs": asked}])
    assert query("SELECT COUNT(*) AS jobs FROM jobs") == [{"jobs": asked}]
    rows = query("SELECT agent, event, model FROM model_events ORDER BY at_ms, seq")
    by_demand = rows[: [row["event"] for row in rows].index("pinned")]
    assert held_by_two(by_demand) == []
    told = Counter(row["event"] for row in rows)
    assert {"known", "loading", "loaded", "evicting", "unloaded"} <= told.keys()
    assert {row["model"] for row in rows if row["event"] == "loaded"} == set(MODELS)
    assert len({row["agent"] for row in rows if row["event"] == "known"}) == 3
    events = {row["event"] for row in rows if row["model"] == pinned}
    assert {"pinned", "died", "unpinned", "ordered"} <= events
    assert dead in {row["agent"] for row in by_demand}
    routed = query("SELECT DISTINCT rule_version AS v FROM jobs WHERE route = 'alias'")
    assert {row["v"] for row in routed} <= set(versions)
    actions = Counter(row["action"] for row in query("SELECT action FROM audit_admin"))
    assert actions == {
        "rules.draft": 2,
        "rules.apply": 2,
        "keys.create": 2,
        "keys.revoke": 1,
        "models.pin": 1,
        "models.unpin": 1,
        "models.unload": 1,
    }
