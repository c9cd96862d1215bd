"""Jobs that kill whoever runs them: they end dead, and those who shared their batch end as if they had not."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.farm.conftest import Farm
from tests.farm.streams import Answer, ask, post

POISON_SEED = 666
INNOCENT = [ask("Tell me a story.", temperature=1.0, seed=seed, max_tokens=40) for seed in range(4)]
POISON = ask("Tell me a story.", temperature=1.0, seed=POISON_SEED, max_tokens=40)


@pytest.fixture(scope="module")
def poisoned(start_farm: Callable[..., Farm]) -> Farm:
    """A farm of two shards whose only worker dies of a certain seed."""
    return start_farm(failpoints=True, variables={"POISON_SEED": str(POISON_SEED)}, shards="2")


def answer(farm: Farm, body: dict[str, Any]) -> str:
    """The whole text of a stream."""
    return Answer(farm.url, body).read()


def last_words(farm: Farm, body: dict[str, Any]) -> str:
    """The events of a stream that ends with an error."""
    return post(f"{farm.url}/v1/chat/completions", body).text


def test_poisonous_jobs_end_dead_and_their_batch_mates_as_if_undisturbed(
    poisoned: Farm, eventually: Callable[..., Any]
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
    jobs = poisoned.get("/v1/jobs/dead")["data"]
    assert [job["crashes"] for job in jobs] == [3, 3]
    query = "SELECT CAST(data AS TEXT) AS data FROM job_events WHERE type IN ('requeued', 'died')"
    deaths = eventually(lambda: {json.loads(row["data"])["worker"] for row in poisoned.query(query)})
    assert 4 <= len(deaths) <= 6
