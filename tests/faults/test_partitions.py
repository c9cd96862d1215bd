"""Lines between the processes and Redis that are cut or slow: streams go on with the undisturbed text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.conftest import RedisServer
from tests.farm.streams import Answer, ask
from tests.faults.redis_proxy import RedisProxy
from tests.waiting import until

BODY = ask("Tell me a story.", temperature=1.1, seed=8, max_tokens=200)


class Lines:
    """Two lines to one server: the API node's and the first worker's."""

    def __init__(self, server: RedisServer) -> None:
        self.url = server.url
        self.api, self.worker = RedisProxy(server.socket), RedisProxy(server.socket)

    def close(self) -> None:
        """Cut both."""
        self.api.close()
        self.worker.close()


@pytest.fixture(scope="module")
def lines(start_redis: Callable[[], RedisServer]) -> Iterator[Lines]:
    """To a server of their own."""
    lines = Lines(start_redis())
    yield lines
    lines.close()


@pytest.fixture(scope="module")
def farm(start_farm: Callable[..., Any], lines: Lines) -> Iterator[Any]:
    """Its scheduler is beside its server."""
    ways = {"api": lines.api, "workers": lines.worker}
    farm = start_farm(redis=lines, own={role: {"FARM_REDIS_URL": way.url} for role, way in ways.items()}, lease_s="4")
    yield farm
    farm.stop()


@pytest.fixture(scope="module")
def undisturbed(farm: Any) -> str:
    """The answer to the story that everybody asks for."""
    return Answer(farm.url, BODY).read()


def attempts(farm: Any, answer: Answer) -> int:
    """How often a job was claimed, once the record says that it has finished."""
    query = f"SELECT attempts FROM jobs WHERE id = '{answer.job_id}' AND state = 'finished'"
    return int(until(lambda: farm.query(query), timeout_s=120)[0]["attempts"])


def test_a_cut_off_api_node_refuses_and_its_streams_go_on(farm: Any, lines: Lines, undisturbed: str) -> None:
    """F22."""
    answer = Answer(farm.url, BODY)
    answer.read(events=2)
    with lines.api.silence():
        refused = httpx2.post(f"{farm.url}/v1/chat/completions", json=BODY, timeout=120)
        assert refused.status_code == 503
        assert float(refused.headers["retry-after"]) > 0
    assert answer.read() == undisturbed
    assert attempts(farm, answer)


def test_a_cut_off_workers_job_goes_on_at_another(farm: Any, lines: Lines, undisturbed: str) -> None:
    """F21: what it says when the line is whole again is not heard, and it goes on with other jobs."""
    answer = Answer(farm.url, BODY)
    answer.read(events=2)
    with lines.worker.silence():
        other = farm.start("workers")
        assert answer.read() == undisturbed
    assert attempts(farm, answer) > 1
    until(lambda: len(farm.get("/admin/workers")["data"]) == 2)  # the one that was lost is back
    assert other.stop() == 0
    assert Answer(farm.url, BODY).read() == undisturbed


def test_slow_lines_only_delay(farm: Any, lines: Lines, undisturbed: str) -> None:
    """F23: 50 ms there and back for the API node and the worker."""
    lines.api.latency_s = lines.worker.latency_s = 0.025
    answer = Answer(farm.url, BODY)
    assert answer.read() == undisturbed
    assert attempts(farm, answer)
