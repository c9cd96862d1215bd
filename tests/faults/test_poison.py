"""Jobs that kill whoever runs them: they end dead, and those who shared their batch end as if they had not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.faults.streams import Answer, ask

FAILPOINTS = Path(__file__).parent / "failpoints"
POISON_SEED = 666
INNOCENT = [ask("Tell me a story.", temperature=1.0, seed=seed, max_tokens=40) for seed in range(4)]
POISON = ask("Tell me a story.", temperature=1.0, seed=POISON_SEED, max_tokens=40)


@pytest.fixture(scope="module")
def poisoned(start_farm: Callable[..., Any]) -> Any:
    """A farm of two shards whose only worker dies of a certain seed."""
    farm = start_farm(shards="2")
    path = f"{FAILPOINTS}{os.pathsep}{farm.environment['PYTHONPATH']}"
    farm.start("workers", PYTHONPATH=path, POISON_SEED=str(POISON_SEED))
    assert farm.worker.stop() == 0
    return farm


def answer(farm: Any, body: dict[str, Any]) -> str:
    """The whole text of a stream."""
    return Answer(farm.url, body).read()


def last_words(farm: Any, body: dict[str, Any]) -> str:
    """The events of a stream that ends with an error."""
    return httpx2.post(f"{farm.url}/v1/chat/completions", json=body, timeout=300).text


def test_poisonous_jobs_end_dead_and_their_batch_mates_as_if_undisturbed(
    poisoned: Any, eventually: Callable[..., Any]
) -> None:
    """F8, F9: resumed with all others, then each alone; two poisonous jobs cost six deaths, or four where they met."""
    undisturbed = [answer(poisoned, body) for body in INNOCENT]
    with ThreadPoolExecutor() as clients:
        answers = [clients.submit(answer, poisoned, body) for body in INNOCENT]
        dead = [clients.submit(last_words, poisoned, POISON) for _ in range(2)]
        assert [text.result() for text in answers] == undisturbed
        for words in dead:
            assert "worker_lost" in words.result()
            assert "Workers died 3 times" in words.result()
    jobs = httpx2.get(f"{poisoned.url}/v1/jobs/dead").json()["data"]
    assert [job["crashes"] for job in jobs] == [3, 3]
    query = "SELECT CAST(data AS TEXT) AS data FROM job_events WHERE type IN ('requeued', 'died')"
    deaths = eventually(lambda: {json.loads(row["data"])["worker"] for row in poisoned.query(query)})
    assert 4 <= len(deaths) <= 6
