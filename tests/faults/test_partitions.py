"""Processes that reach Redis badly or not at all, over a proxy: lost replies, a slow line, a partition."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.faults.redis_nodes import until
from tests.faults.redis_proxy import RedisProxy
from tests.faults.streams import Answer, ask

BODY = ask("Tell me a story.", temperature=1.1, seed=8)
LEASE_S = 3


class Apart:
    """A farm whose worker and whose second API node reach Redis through a proxy each."""

    def __init__(self, farm: Any) -> None:
        self.farm = farm
        self.worker, self.api = RedisProxy(farm.redis.socket), RedisProxy(farm.redis.socket)
        farm.start("workers", FARM_REDIS_URL=self.worker.url)
        assert farm.worker.stop() == 0
        self.url = str(farm.start("api", FARM_REDIS_URL=self.api.url).facts["url"])
        self.undisturbed = Answer(farm.url, BODY).read()

    def attempts(self, job_id: str) -> int:
        """How often a finished job was claimed."""
        rows = until(lambda: self.farm.query(f"SELECT attempts FROM jobs WHERE id = '{job_id}' AND state = 'finished'"))
        return int(rows[0]["attempts"])


@pytest.fixture(scope="module")
def apart(start_farm: Callable[..., Any]) -> Iterator[Apart]:
    """See Apart."""
    apart = Apart(start_farm(lease_s=str(LEASE_S)))
    yield apart
    apart.worker.close()
    apart.api.close()


def post(url: str) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/chat/completions", json=BODY, timeout=60)


def test_streams_are_whole_while_replies_get_lost(apart: Apart) -> None:
    """F11, F12: of the worker's and of the API node's calls every 15th is carried out and not answered."""
    for proxy in (apart.worker, apart.api):
        proxy.lose_every(15)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: Answer(apart.farm.url, BODY), range(2)))
        answers += pool.map(lambda _: Answer(apart.url, BODY), range(2))
        assert list(pool.map(lambda answer: answer.read(), answers)) == [apart.undisturbed] * 4
    for proxy in (apart.worker, apart.api):
        proxy.lose_every(0)


def test_a_slow_line_costs_no_worker_its_lease(apart: Apart) -> None:
    """F23: 50 ms each way."""
    for proxy in (apart.worker, apart.api):
        proxy.latency_s = 0.05
    answer = Answer(apart.url, BODY)
    assert answer.read() == apart.undisturbed
    for proxy in (apart.worker, apart.api):
        proxy.latency_s = 0.0
    assert apart.attempts(answer.job_id) == 1


def test_an_api_node_that_is_cut_off_refuses_at_once_and_its_streams_go_on(apart: Apart) -> None:
    """F22: requests do not wait behind each other for a server that is silent."""
    with Answer(apart.url, BODY) as answer:
        answer.read(events=5)
        with apart.api.silence(), ThreadPoolExecutor(10) as pool:
            began_s = time.monotonic()
            refused = list(pool.map(lambda _: post(apart.url), range(10)))
            assert time.monotonic() - began_s < 30
            assert {response.status_code for response in refused} == {503}
            assert all(float(response.headers["retry-after"]) > 0 for response in refused)
            assert Answer(apart.farm.url, BODY).read() == apart.undisturbed
        assert answer.read() == apart.undisturbed


def test_a_worker_that_is_cut_off_loses_its_jobs_to_another_and_is_fenced(apart: Apart) -> None:
    """F21: its lease ends, its job goes on elsewhere, and what it says when it is heard again is dropped."""
    apart.worker.latency_s = 0.2  # so that it has not said all before it is cut off
    with Answer(apart.url, BODY) as answer:
        answer.read(events=1)
        with apart.worker.silence():
            apart.farm.start("workers")
            assert answer.read() == apart.undisturbed
        apart.worker.latency_s = 0.0
    assert apart.attempts(answer.job_id) == 2
    assert Answer(apart.farm.url, BODY).read() == apart.undisturbed
    written_twice = "SELECT job_id FROM job_events WHERE type = 'finished' GROUP BY job_id HAVING COUNT(*) > 1"
    assert apart.farm.query(written_twice) == []
