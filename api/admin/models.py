"""Models and workers for operators: cards, who serves them now, and what waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response

from api.bodies import JsonResponse
from api.node import CurrentNode, Node
from scheduler.models import ModelCard
from scheduler.workers import worker_row

router = APIRouter(prefix="/admin", tags=["admin"])


@router.get("/models/status")
async def models_status(node: CurrentNode) -> Response:
    """Every model's card, its live workers, the jobs that wait for it; its `place`, if it is loaded by demand."""
    workers = await live_figures(node)
    cards = await node.catalog.cards()
    await node.places.look()
    data = []
    for card in cards:
        place = node.places.of(card.name)
        status = _status(card, workers, await node.queue.depths(card.name))
        data.append(status | {"place": asdict(place) if place else None})
    return JsonResponse({"object": "list", "data": data})


@router.get("/workers")
async def list_workers(node: CurrentNode) -> Response:
    """Every worker with a live lease. Each row has every key: null until the worker has published that figure."""
    return JsonResponse({"object": "list", "data": await live_figures(node)})


async def live_figures(node: Node) -> list[dict[str, Any]]:
    """Rows of the workers whose lease has not ended, also of those that have not published anything yet."""
    published = {figures["worker"]: figures for figures in await node.board.list()}
    return [published.get(name) or worker_row(name, {}) for name in await node.queue.live_workers()]


def _status(card: ModelCard, workers: Sequence[Mapping[str, Any]], waiting: Mapping[str, int]) -> dict[str, Any]:
    described = asdict(card)
    template = described.pop("chat_template")
    serving = [worker for worker in workers if worker["model"] == card.name]

    def total(figure: str) -> int:
        return sum(int(worker[figure] or 0) for worker in serving)

    looked_up = total("prefix_looked_up_tokens_total")
    return described | {
        "has_chat_template": template is not None,
        "workers": [worker["worker"] for worker in serving],
        "engine_description": next((worker["engine_description"] for worker in serving), None),
        "draft_model": next((worker["draft_model"] for worker in serving), None),
        "running": total("running"),
        "waiting": dict(waiting),
        "used_blocks": total("used_blocks"),
        "cached_blocks": total("cached_blocks"),
        "total_blocks": total("total_blocks"),
        "prefix_hit_rate": round(total("prefix_hit_tokens_total") / looked_up, 4) if looked_up else None,
    }
