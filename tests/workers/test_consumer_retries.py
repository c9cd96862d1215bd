"""A failure that may pass, through a real engine: handed back and tried again, and dead in the end."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import mlx.core as mx
import pytest
from redis.asyncio import Redis

import workers.demo
from scheduler.jobs import JobState
from scheduler.scripts import QueuePolicy
from tests.api.scripted_farm import until
from tests.scheduler.builders import POOL, Farm, make_request
from workers.consumer import Consumer
from workers.engine import Chunk, EngineBackend, load_engine
from workers.engine_thread import EngineThread
from workers.room import RowBounds
from workers.use import Use

DEMO = Path(workers.demo.__file__).parent


@pytest.fixture(scope="module")
def sick_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with a weight that is no number."""
    folder = tmp_path_factory.mktemp("sick")
    for path in DEMO.iterdir():
        if path.is_file() and path.suffix != ".py":
            shutil.copy(path, folder)
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    name = "model.embed_tokens.weight"
    weights[name] = mx.where(mx.arange(weights[name].shape[0])[:, None] == 7, mx.nan, weights[name])
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


@pytest.fixture
async def running(redis: Redis, sick_model: Path) -> AsyncIterator[tuple[Farm, Consumer]]:
    """A consumer over the sick model, with its loops running."""
    farm, loop = Farm(redis, QueuePolicy(max_retries=2, retry_base_ms=1)), asyncio.get_running_loop()

    def arrived(chunks: list[Chunk]) -> None:
        loop.call_soon_threadsafe(consumer.arrived, chunks)

    engine = EngineThread(
        lambda: load_engine(str(sick_model), max_sequences=2, backend=EngineBackend.BATCH),
        on_chunks=arrived,
        on_failure=lambda error: None,
    )
    await asyncio.to_thread(engine.start)
    consumer = Consumer(farm.queue, engine, POOL, Use(lambda jobs, keep_alive_s: None), RowBounds(2))
    consumer.begin_lease(await farm.worker())
    tasks = [asyncio.create_task(consumer.claim_loop()), asyncio.create_task(consumer.emit_loop())]
    yield farm, consumer
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(engine.stop)


async def test_a_failure_that_may_pass_is_retried_and_dead_in_the_end(running: tuple[Farm, Consumer]) -> None:
    farm, worker = running
    job_id = await farm.submit(request=make_request(prompt_tokens=4, max_tokens=3))

    async def ended() -> bool:
        return await farm.state(job_id) is JobState.DEAD and not worker.held

    await until(ended)
    told = await farm.told(job_id)
    assert told == ["submitted", *["claimed", "delayed", "requeued"] * 2, "claimed", "died"]
    died = (await farm.events(job_id))[-1].data
    assert (died["error_code"], "not finite" in died["error"]) == ("engine_error", True)
