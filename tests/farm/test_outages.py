"""Servers go away and come back: what was accepted is answered, the rest refused at once, processes stay up."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.farm.conftest import Farm
from tests.farm.streams import Answer, ask
from tests.waiting import PATIENCE_S

QUESTION = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def shaky(start_farm: Callable[..., Farm]) -> Farm:
    """A farm whose servers are stopped."""
    return start_farm(failpoints=True)


def question(farm: Farm, **headers: str) -> httpx2.Response:
    return httpx2.post(f"{farm.url}/v1/chat/completions", json=QUESTION, headers=headers, timeout=PATIENCE_S)


def test_a_dead_redis_means_503_with_retry_after_and_recovery(shaky: Farm, eventually: Callable[..., Any]) -> None:
    eventually(lambda: question(shaky).status_code == 200)
    shaky.redis.kill()
    refused = question(shaky)
    assert refused.status_code == 503
    assert float(refused.headers["retry-after"]) > 0
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    for path, status in (("livez", 200), ("readyz", 503)):
        assert httpx2.get(f"{shaky.url}/{path}", timeout=PATIENCE_S).status_code == status
    shaky.redis.start()
    eventually(lambda: question(shaky).status_code == 200)


def test_a_stream_goes_on_after_redis_was_killed_in_the_middle(shaky: Farm, eventually: Callable[..., Any]) -> None:
    body = ask("Hello!", temperature=0)
    undisturbed = Answer(shaky.url, body).read()
    shaky.fail_at("hang 20")
    with Answer(shaky.url, body) as answer:
        eventually(shaky.has_failed)
        shaky.redis.kill()
        shaky.redis.start()
        shaky.go_on()
        assert answer.read() == undisturbed
    assert answer.sequences == list(range(1, len(answer.ids) + 1))


@contextmanager
def locked_database(url: str) -> Iterator[None]:
    """Nobody else can write the `jobs` table meanwhile."""
    if url.startswith("sqlite"):
        with sqlite3.connect(
            url.removeprefix("sqlite+aiosqlite:///"), isolation_level=None, timeout=PATIENCE_S
        ) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")
        connection.close()
        return
    with asyncio.Runner() as runner:
        locker = runner.run(asyncpg.connect(url.replace("+asyncpg", "")))
        runner.run(locker.execute("BEGIN; LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        yield
        runner.run(locker.execute("ROLLBACK"))
        runner.run(locker.close())


def test_a_locked_database_delays_the_record_and_nothing_else(shaky: Farm, eventually: Callable[..., Any]) -> None:
    with locked_database(shaky.database_url):
        answers = [eventually(lambda: (answer := question(shaky)).status_code == 200 and answer) for _ in range(3)]
    for answer in answers:
        job_id = answer.headers["farm-job-id"]
        query = f"SELECT state FROM jobs WHERE id = '{job_id}'"
        eventually(lambda query=query: shaky.query(query) == [{"state": "finished"}])


def test_an_answer_that_redis_has_lost_since_is_in_the_record(shaky: Farm, eventually: Callable[..., Any]) -> None:
    """The job's whole life is in the second that a power loss takes, and nobody has recorded anything of it."""
    scheduler = shaky.scheduler.process
    scheduler.send_signal(signal.SIGSTOP)
    disk = shaky.redis.disk()
    answer = question(shaky)
    assert answer.status_code == 200
    shaky.redis.lose_power(disk)
    scheduler.send_signal(signal.SIGCONT)
    query = f"SELECT state, output_tokens FROM jobs WHERE id = '{answer.headers['farm-job-id']}'"
    tokens = answer.json()["usage"]["completion_tokens"]
    eventually(lambda: shaky.query(query) == [{"state": "finished", "output_tokens": tokens}])


def test_an_async_job_survives_the_death_of_everything_but_sql(shaky: Farm, eventually: Callable[..., Any]) -> None:
    accepted = question(shaky, Prefer="respond-async")
    assert accepted.status_code == 202
    job = accepted.headers["location"]
    eventually(lambda: shaky.get(job)["state"] == "finished")
    result = shaky.get(job)["result"]
    assert result["choices"][0]["message"]["content"]
    kept = f"SELECT id FROM durable_jobs WHERE id = '{accepted.headers['farm-job-id']}' AND result IS NOT NULL"
    eventually(lambda: shaky.query(kept))
    shaky.redis.kill()
    for leftover in shaky.redis.folder.glob("appendonlydir/*"):
        leftover.unlink()  # the queue has lost its memory
    (shaky.redis.folder / "appendonly.aof").unlink(missing_ok=True)
    shaky.redis.start()
    answer = eventually(lambda: shaky.get(job).get("result"))
    assert answer == result


def test_a_scheduler_starts_without_its_database_and_stops_in_order(shaky: Farm) -> None:
    scheduler = shaky.start("scheduler", FARM_DATABASE_URL="postgresql+asyncpg://nobody@127.0.0.1:1/none")
    assert scheduler.process.poll() is None
    assert scheduler.stop() == 0
