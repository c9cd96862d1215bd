"""Async jobs are accepted once, listings have no holes and no doubles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, update
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.database import open_database
from scheduler.errors import IdempotencyConflict, RecordUnavailable
from scheduler.jobs import Job, JobState, Lane
from scheduler.store import JobFilter, Store, job_of_row, row_of_job
from scheduler.tables import DurableJobRow, JobRow
from tests.scheduler.builders import make_job

JOB = Job(
    id="0-A",
    state=JobState.FINISHED,
    tenant="t",
    lane=Lane.LOW,
    kind="chat",
    model_asked="a",
    model="m",
    route="r",
    rule_version=1,
    request_id="q",
    params={"n": 1},
    durable=False,
    prompt_tokens=3,
    submitted_ms=1,
)


@pytest.fixture
def store(engine: AsyncEngine) -> Store:
    """A store on an empty database."""
    return Store(engine)


async def test_an_accepted_job_waits_for_its_relay(store: Store) -> None:
    job = make_job(durable=True, tenant="é", node="n1", prompts=((1, 2),))
    assert await store.accept(job) == job.id
    assert await store.unrelayed(0) == [replace(job, node="")]
    assert await store.unrelayed(60_000) == []
    assert await store.unfinished() == []
    await store.relayed(job.id)
    assert await store.unrelayed(0) == []
    assert [other.id for other in await store.unfinished()] == [job.id]
    kept = await store.durable_job(job.id)
    assert kept is not None
    assert (kept.tenant, kept.request, kept.frames, kept.ended_ms) == ("é", job.request, None, None)


async def test_the_times_of_a_job_count_from_its_acceptance(store: Store) -> None:
    late, past = make_job(durable=True, delay_ms=600_000, deadline_ms=900_000), make_job(durable=True, deadline_ms=1)
    for job in (late, past):
        await store.accept(job)
    async with store.engine.begin() as connection:
        earlier = {"accepted_ms": DurableJobRow.accepted_ms - 700_000}
        await connection.execute(update(DurableJobRow).where(DurableJobRow.id == late.id).values(earlier))
    found = {job.id: job for job in await store.unrelayed(0)}
    assert found[late.id].delay_ms == 0
    assert 190_000 < found[late.id].deadline_ms <= 200_000
    assert found[past.id].deadline_ms == 1


async def test_accepting_again_is_accepting_once(store: Store) -> None:
    job = make_job(idempotency_key="k", body_hash="h")
    again = replace(make_job(), idempotency_key="k", body_hash="h")
    assert [await store.accept(each) for each in (job, job, again)] == [job.id] * 3
    unkeyed = make_job()
    assert [await store.accept(unkeyed) for _ in range(2)] == [unkeyed.id] * 2
    assert len(await store.unrelayed(0)) == 2


async def test_the_same_key_with_another_body_is_a_conflict(store: Store) -> None:
    await store.accept(make_job(idempotency_key="k", body_hash="h"))
    with pytest.raises(IdempotencyConflict):
        await store.accept(make_job(idempotency_key="k", body_hash="other"))
    await store.accept(make_job(idempotency_key="k", body_hash="other", tenant="somebody else"))
    assert len(await store.unrelayed(0)) == 2


async def test_one_of_many_at_once_with_one_key_is_accepted(store: Store) -> None:
    ids = await asyncio.gather(*(store.accept(make_job(idempotency_key="k", body_hash="h")) for _ in range(8)))
    assert len(set(ids)) == 1


async def test_unfinished_jobs_come_in_pages(store: Store) -> None:
    ids = sorted([await store.accept(make_job()) for _ in range(7)])
    for job_id in ids:
        await store.relayed(job_id)
    found: list[str] = []
    while page := await store.unfinished(found[-1] if found else "", limit=3):
        found += [job.id for job in page]
    assert found == ids


async def test_unknown_jobs_are_none(store: Store) -> None:
    assert await store.durable_job("0-X") is None
    assert await store.job("0-X") is None
    assert await store.jobs(JobFilter()) == []


async def test_a_row_is_the_job_it_was_made_from(store: Store) -> None:
    async with store.engine.begin() as connection:
        await connection.execute(insert(JobRow).values(row_of_job(JOB)))
    assert await store.job(JOB.id) == JOB
    assert job_of_row(row_of_job(JOB)) == JOB


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(times=st.lists(st.integers(0, 6), min_size=1, max_size=25), limit=st.integers(1, 9))
def test_pages_have_no_holes_and_no_doubles(shared_url: str, times: list[int], limit: int) -> None:
    async def run() -> None:
        engine = open_database(shared_url)
        jobs = [replace(JOB, id=f"0-{i:03}", submitted_ms=ms) for i, ms in enumerate(times)]
        async with engine.begin() as connection:
            await connection.execute(delete(JobRow))
            await connection.execute(insert(JobRow), [row_of_job(job) for job in jobs])
        found: list[Job] = []
        store = Store(engine)
        while page := await store.jobs(JobFilter(), after=_key(found[-1]) if found else None, limit=limit):
            found += page
        assert found == sorted(jobs, key=_key, reverse=True)
        await engine.dispose()

    asyncio.run(run())


@pytest.fixture(scope="module")
def shared_url(new_database: Callable[[], str]) -> str:
    """One database for all examples."""
    return new_database()


def _key(job: Job) -> tuple[int, str]:
    return (job.submitted_ms, job.id)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (JobFilter(tenant="t"), ["0-D", "0-C", "0-B", "0-A"]),
        (JobFilter(tenant="x"), []),
        (JobFilter(model="m2"), ["0-B"]),
        (JobFilter(state=JobState.FAILED), ["0-C"]),
        (JobFilter(lane=Lane.HIGH), ["0-D"]),
        (JobFilter(since_ms=2, until_ms=4), ["0-C", "0-B"]),
        (JobFilter(model="m", state=JobState.FINISHED, lane=Lane.LOW), ["0-A"]),
    ],
)
async def test_listings_keep_what_is_wanted(store: Store, wanted: JobFilter, found: list[str]) -> None:
    jobs = [
        JOB,
        replace(JOB, id="0-B", submitted_ms=2, model="m2"),
        replace(JOB, id="0-C", submitted_ms=3, state=JobState.FAILED),
        replace(JOB, id="0-D", submitted_ms=4, lane=Lane.HIGH),
    ]
    async with store.engine.begin() as connection:
        await connection.execute(insert(JobRow), [row_of_job(job) for job in jobs])
    assert [job.id for job in await store.jobs(wanted)] == found


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite:////proc/no/such/farm.db", "postgresql+asyncpg://nobody@127.0.0.1:1/none"]
)
async def test_a_database_that_cannot_be_reached_is_said_to_be(url: str) -> None:
    with pytest.raises((RecordUnavailable, OSError)):
        await Store(open_database(url)).unrelayed(0)


async def test_a_database_without_tables_is_unavailable(tmp_path: object) -> None:
    engine = open_database(f"sqlite+aiosqlite:///{tmp_path}/empty.db")
    with pytest.raises(RecordUnavailable, match="no such table"):
        await Store(engine).accept(make_job())
    await engine.dispose()
