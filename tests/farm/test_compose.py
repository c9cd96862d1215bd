"""compose.yaml: what it says holds together, and its command lines serve, as processes with the same environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from scheduler.addresses import read_address
from tests.farm.conftest import READY_S, Role
from tests.waiting import PATIENCE_S, until

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose.yaml"
KEY = "compose-test-key"
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<other>[^}]*))?\}")
SERVICE_FIELDS = {
    *("image", "build", "command", "environment", "ports", "volumes", "depends_on", "healthcheck", "restart"),
    *("profiles", "secrets", "stop_grace_period"),
}
"""Of the compose specification's, those that are used here."""

CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
OURS = ("migrate", "api", "scheduler", "batches", "worker")
THEIRS = ("valkey", "postgres", "prometheus", "grafana")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file, its anchors resolved."""
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return content


def resolved(text: str, given: dict[str, str]) -> str:
    """With variables in their places, as `docker compose` puts them there."""

    def value(found: re.Match[str]) -> str:
        name, how = found["name"], found["how"]
        if given.get(name):
            return given[name]
        assert how == ":-", f"{name} has to be given: {found['other']}"
        return str(found["other"])

    return VARIABLE.sub(value, text)


def test_the_file_has_every_part_and_only_fields_of_the_specification(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {*OURS, *THEIRS}
    assert {key for key in compose if not key.startswith("x-")} == {"services", "secrets", "volumes"}
    for name, service in services.items():
        assert set(service) - SERVICE_FIELDS == set(), name
        assert ("build" in service) == (name in OURS), name
        assert re.search(r":v?\d+[\d.]*(-\w+)?$", service["image"]) or name in OURS, f"{name} is not pinned"
    assert services["worker"]["profiles"] == ["cpu"]
    assert [name for name, service in services.items() if "profiles" in service] == ["worker"]
    assert 'ENTRYPOINT ["mlx-farm"]' in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_who_waits_for_whom_can_be_waited_for(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] in CONDITIONS, name
            if how["condition"] == "service_healthy":
                assert services[needed]["healthcheck"]["test"][0] == "CMD", needed
            if how["condition"] == "service_completed_successfully":
                assert services[needed]["restart"] == "no", needed
    assert "migrate" in services["api"]["depends_on"]


def test_files_volumes_and_secrets_are_there(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            assert target.startswith("/"), name
            if source.startswith("./"):
                assert (ROOT / source).is_file(), source
                assert mode == ["ro"], source
            else:
                assert source in compose["volumes"], source
        for secret in service.get("secrets", []):
            assert secret in compose["secrets"], secret
    used = {volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])}
    assert set(compose["volumes"]) <= used


def test_only_the_api_can_be_reached_from_other_machines(compose: dict[str, Any]) -> None:
    open_to_all = {
        name
        for name, service in compose["services"].items()
        if any(not port.startswith("127.0.0.1:") for port in service.get("ports", []))
    }
    assert open_to_all == {"api"}


def test_prometheus_asks_the_api_with_its_key(compose: dict[str, Any]) -> None:
    asked = (ROOT / "docs" / "monitoring" / "prometheus.yml").read_text(encoding="utf-8")
    [scrape] = yaml.safe_load(asked)["scrape_configs"]
    [target] = scrape["static_configs"][0]["targets"]
    service, _, port = target.partition(":")
    assert compose["services"][service]["ports"][0].endswith(f":{port}")
    secret = scrape["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert secret in compose["services"]["prometheus"]["secrets"]
    assert compose["secrets"][secret] == {"environment": "FARM_API_KEY"}
    assert "FARM_API_KEY" in compose["services"]["api"]["environment"]


def _has_compose() -> bool:
    """Is there a docker that has the command?"""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _has_compose(), reason="docker compose is not installed")
def test_docker_compose_accepts_the_file() -> None:
    command = ["docker", "compose", "--profile", "cpu", "config", "--quiet"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"FARM_API_KEY": KEY}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


class Containers:
    """The file's services as processes: the same command lines and variables, but for where the servers are."""

    def __init__(self, compose: dict[str, Any], redis_url: str, database_url: str, home: Path) -> None:
        self._compose = compose
        self._roles: list[Role] = []
        self._here = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
        self._here |= {"PYTHONPATH": str(ROOT), "FARM_HOME": str(home), "FARM_PORT": "0", "FARM_SUPERVISED": "1"}
        self._here |= {"FARM_SPARE_PROCESS": "false", "FARM_LEASE_S": "40"}
        self._servers = {"FARM_REDIS_URL": redis_url, "FARM_DATABASE_URL": database_url}

    def environment(self, name: str) -> dict[str, str]:
        """As the file says it."""
        said = self._compose["services"][name]["environment"]
        return {key: resolved(str(value), {"FARM_API_KEY": KEY}) for key, value in said.items()}

    def command(self, name: str) -> list[str]:
        """`mlx-farm …` as the file says it."""
        words = [resolved(word, {}) for word in self._compose["services"][name]["command"]]
        return [sys.executable, "-m", "farm", *words]

    def run(self, name: str) -> subprocess.CompletedProcess[str]:
        """To its end."""
        environment = self._here | self.environment(name) | self._servers
        return subprocess.run(
            self.command(name), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def start(self, name: str) -> Role:
        """Until it is ready."""
        environment = self._here | self.environment(name) | self._servers
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(self.command(name), env=environment, text=True, **pipes)  # type: ignore[call-overload]
        self._roles.append(Role(process, {}))
        watchdog = threading.Timer(READY_S, process.kill)
        watchdog.start()
        for line in process.stdout:
            if line.startswith("READY "):
                watchdog.cancel()
                self._roles[-1] = Role(process, json.loads(line.removeprefix("READY ")))
                return self._roles[-1]
        watchdog.cancel()
        raise AssertionError(f"{name} ended with exit code {process.wait()}")

    def stop(self) -> list[int]:
        """All of them, in order; their exit codes."""
        for role in self._roles:
            role.process.terminate()
        codes = [role.finish() for role in self._roles]
        self._roles.clear()
        return codes


@pytest.fixture
def containers(
    compose: dict[str, Any], start_redis: Callable[[], Any], new_database: Callable[[], str], tmp_path: Path
) -> Iterator[Containers]:
    """On a Redis and a database of their own."""
    made = Containers(compose, start_redis().url, new_database(), tmp_path / "home")
    yield made
    made.stop()


def test_the_containers_commands_serve(containers: Containers) -> None:
    assert read_address(containers.environment("worker")["FARM_REDIS_URL"])
    assert containers.environment("api")["FARM_DATABASE_URL"] == "postgresql+asyncpg://farm:farm@postgres:5432/farm"
    migrated = containers.run("migrate")
    assert migrated.returncode == 0, migrated.stderr
    for name in ("scheduler", "batches", "worker"):
        containers.start(name)
    api = containers.start("api")
    url = str(api.facts["url"]).replace("0.0.0.0", "127.0.0.1")
    with httpx2.Client(base_url=url, timeout=PATIENCE_S) as stranger:
        assert stranger.get("/livez").status_code == 200
        assert stranger.get("/metrics").status_code == 401
    with httpx2.Client(base_url=url, timeout=PATIENCE_S, headers={"authorization": f"Bearer {KEY}"}) as client:
        body = {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": "What is mlx-farm?"}]}

        def answered() -> httpx2.Response | None:
            answer = client.post("/v1/chat/completions", json=body)
            return None if answer.status_code == 503 else answer

        assert until(answered).status_code == 200
        metrics = until(lambda: client.get("/metrics")).text
        assert "farm_queue_up 1.0" in metrics
        assert 'farm_request_success_total{finished_reason="length",model_name="demo"}' in metrics
    assert set(containers.stop()) == {0}
