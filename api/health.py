"""Is this node alive, ready, and well? Also its version, its metrics and the root."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Response

from api.admin.models import live_figures
from api.bodies import JsonResponse
from api.metrics import FarmFigures
from api.node import CurrentNode, Node
from scheduler.errors import QueueUnavailable, RecordUnavailable
from scheduler.projector import Projector

router = APIRouter(tags=["health"])

LAG_LIMIT_MS = 30_000
"""A projector further behind than this is worth a look."""

STALLED_S = 5.0
"""An engine step that takes longer: no token moves on that worker."""

FULL_SHARE = 0.9
"""Of the queue's bound: fuller than this is overloaded."""


class Health(StrEnum):
    """`unavailable`: the queue does not answer, nothing can be served. `no_model` is an answer of /readyz only."""

    OK = "ok"
    DEGRADED = "degraded"
    OVERLOADED = "overloaded"
    SHUTTING_DOWN = "shutting_down"
    UNAVAILABLE = "unavailable"
    NO_MODEL = "no_model"


SERVING = frozenset({Health.OK, Health.DEGRADED})


@dataclass(frozen=True, slots=True)
class Checkup:
    """The verdict and what led to it."""

    status: Health
    problems: tuple[str, ...] = ()


@router.head("/", include_in_schema=False)
@router.get("/")
async def root() -> Response:
    """Where things are."""
    return JsonResponse({"name": "mlx-farm", "version": farm_version(), "docs": "/docs", "health": "/health"})


@router.get("/livez")
async def livez() -> Response:
    """The process runs."""
    return JsonResponse({"status": Health.OK})


@router.get("/readyz")
async def readyz(node: CurrentNode) -> Response:
    """Send requests here? 503 while draining, while the queue does not answer, and while no model is served.

    A model whose process is being started again is still served: requests wait for it in the queue.
    """
    status = Health.SHUTTING_DOWN if node.drain.draining else Health.OK
    if status is Health.OK:
        try:
            status = Health.OK if await node.catalog.cards() else Health.NO_MODEL
        except QueueUnavailable:
            status = Health.UNAVAILABLE
    return JsonResponse({"status": status}, status_code=200 if status is Health.OK else 503)


@router.get("/health")
async def health(node: CurrentNode) -> Response:
    """How the farm is, as seen from here: 200 for ok and degraded, else 503."""
    checkup = await examine(node)
    body = {"status": checkup.status, "problems": checkup.problems, "open_answers": node.drain.open_answers}
    return JsonResponse(body, status_code=200 if checkup.status in SERVING else 503)


@router.get("/version")
async def show_version() -> Response:
    """The version of this server."""
    return JsonResponse({"version": farm_version()})


@router.get("/metrics")
async def metrics(node: CurrentNode) -> Response:
    """Prometheus' text format."""
    text = node.metrics.render(await figures_of(node))
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def figures_of(node: Node) -> FarmFigures:
    """The farm at this moment, for a scrape; empty while Redis is away."""
    node.metrics.open_answers.set(node.drain.open_answers)
    try:
        depths = {card.name: await node.queue.depths(card.name) for card in await node.catalog.cards()}
        return FarmFigures(await live_figures(node), depths)
    except QueueUnavailable:
        return FarmFigures(reachable=False)


async def examine(node: Node) -> Checkup:
    """Look at the queue, the workers and the record."""
    if node.drain.draining:
        return Checkup(Health.SHUTTING_DOWN)
    problems: list[str] = []
    try:
        cards = await node.catalog.cards()
        workers = await live_figures(node)
        served = {figures["model"] for figures in workers}
        waiting = [sum((await node.queue.depths(card.name)).values()) for card in cards]
    except QueueUnavailable as error:
        return Checkup(Health.UNAVAILABLE, (str(error),))
    problems += _model_problems(node, [card.name for card in cards], served)
    problems += [
        f"worker {figures['worker']} has made no step for {figures['stalled_s']:.0f} s"
        for figures in workers
        if (figures["stalled_s"] or 0.0) > STALLED_S
    ]
    if not cards:
        problems.append("no model is served")
    problems += await _record_problems(node)
    if sum(waiting) > node.settings.max_waiting_jobs * FULL_SHARE:
        return Checkup(Health.OVERLOADED, (f"{sum(waiting)} jobs are waiting", *problems))
    return Checkup(Health.DEGRADED if problems else Health.OK, tuple(problems))


def _model_problems(node: Node, models: Sequence[str], served: Collection[str]) -> list[str]:
    """A model that is loaded by demand needs no worker, but it may have failed."""
    places = {model: node.places.of(model) for model in models if model not in served}
    problems = [f"model {model!r} has no live worker" for model, place in places.items() if place is None]
    failed = {model: place.failed for model, place in places.items() if place is not None and place.failed}
    return problems + [f"model {model!r} has failed: {reason}" for model, reason in failed.items()]


async def _record_problems(node: Node) -> list[str]:
    try:
        lags_ms = [
            await Projector(node.redis, node.store.engine, node.queue, shard).lag_ms()
            for shard in range(node.queue.shards)
        ]
    except (RecordUnavailable, QueueUnavailable) as error:
        return [str(error)]
    return [f"the record is {max(lags_ms) / 1000:.0f} s behind the events"] if max(lags_ms) > LAG_LIMIT_MS else []


def farm_version() -> str:
    """The installed version; 0 in a checkout that is not installed."""
    try:
        return version("mlx-farm")
    except PackageNotFoundError:
        return "0"
