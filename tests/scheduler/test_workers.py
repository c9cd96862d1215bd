"""Workers' figures are seen as long as they are fresh."""

from __future__ import annotations

from redis.asyncio import Redis

from scheduler.workers import FIGURES, WorkerBoard, worker_row
from tests.scheduler.conftest import Eventually


async def test_figures_are_listed_by_name_until_withdrawn(redis: Redis) -> None:
    board = WorkerBoard(redis)
    assert await board.list() == []
    await board.publish("w2", {"rows": 1}, 60)
    await board.publish("w1", {"rows": 2}, 60)
    rows = await board.list()
    assert rows == [worker_row("w1", {"rows": 2}), worker_row("w2", {"rows": 1})]
    assert (rows[0]["rows"], rows[0]["pid"], set(FIGURES) < set(rows[0])) == (2, None, True)
    await board.withdraw("w1")
    assert [figures["worker"] for figures in await board.list()] == ["w2"]


async def test_old_figures_are_forgotten_with_their_name(redis: Redis, eventually: Eventually) -> None:
    board = WorkerBoard(redis)
    await board.publish("w1", {}, 0.01)

    async def gone() -> bool:
        return await board.list() == []

    await eventually(gone)
    assert await redis.smembers("{farm}:workers") == set()  # type: ignore[misc]
