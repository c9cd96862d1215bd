"""One model of a provider at work: its engine, its consumer, its lease, and what is shown of it.

The same parts as in a model's process, several of them in one process: nothing here computes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from redis.asyncio import Redis

from scheduler.circuits import CircuitPolicy, Circuits
from scheduler.connections import blocking_client
from scheduler.errors import QueueUnavailable
from scheduler.models import ModelCard, ModelCatalog, tokenizer_hash
from scheduler.process import cancel_all
from scheduler.provider_settings import ProviderWorkerSettings
from scheduler.providers import Provider, ProviderModel
from scheduler.queue import Heartbeat, JobQueue
from scheduler.workers import WorkerBoard
from workers.consumer import Consumer
from workers.engine import Chunk
from workers.lease import Lease
from workers.providers.engine import ProviderEngine, asked_of
from workers.providers.upstream import Upstream
from workers.room import RowBounds
from workers.use import Use
from workers.waking import wake_by

SHOW_S = 1.0
OPEN = "circuit open"
"""The state of a card that routing passes over (api/serving.py)."""

NO_TOKENIZER = ""


class ProviderServing:
    """Lives from `start` to `stop`; `redis` is shared."""

    def __init__(
        self,
        settings: ProviderWorkerSettings,
        redis: Redis,
        provider: Provider,
        model: ProviderModel,
        upstream: Upstream,
    ) -> None:
        self.name = provider.served_name(model)
        self._settings = settings
        self._redis = redis
        self._blocking = blocking_client(settings.redis)
        self._provider = provider
        self._card = provider_card(provider, model)
        self._queue = JobQueue(redis, shards=settings.shards, policy=settings.queue_policy)
        self._loop = asyncio.get_running_loop()
        base = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self._circuits = Circuits(redis, base, circuit_policy(settings, provider))
        self._broken: list[BaseException] = []
        self._succeeded = False
        self._stopping = asyncio.Event()
        self._engine = ProviderEngine(provider, model, upstream, self._circuits, self._arrived, self._break)
        use = Use(lambda jobs, keep_alive_s: None)
        self._consumer = Consumer(
            self._queue, self._engine, self.name, use, RowBounds(provider.concurrency), prompt_of=asked_of
        )
        self._lease = Lease(
            settings,
            base,
            held=lambda: self._consumer.held,
            on_heartbeat=lambda beat: self._in_loop(self._heartbeat, beat),
            on_lost=lambda: self._in_loop(self._lease_lost),
        )
        self._task = asyncio.create_task(self._live(), name=self.name)

    @property
    def has_ended(self) -> bool:
        """Did it end by itself? Then by an error, which `stop` raises."""
        return self._task.done()

    async def stop(self, *, succeeded: bool = False) -> None:
        """Claim no more, let running jobs finish for a while, hand the rest back, and go.

        `succeeded`: another one serves the same model from now on, so that its card stays.
        """
        self._succeeded = succeeded
        self._stopping.set()
        await self._task

    async def _live(self) -> None:
        self._lease.start()
        try:
            if await self._lease.wait_registered(self._stopping):
                self._consumer.begin_lease(self._lease.name)
                await self._work()
        finally:
            await self._leave()

    async def _work(self) -> None:
        await self._publish()
        tasks = [
            asyncio.create_task(self._consumer.claim_loop()),
            asyncio.create_task(self._consumer.emit_loop()),
            asyncio.create_task(wake_by(self._blocking, self._queue, self._lease.base, self._consumer.wake)),
            asyncio.create_task(self._show()),
        ]
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        failed = [task for task in tasks if task.done()]
        if not failed and not self._broken:
            await self._consumer.drain(self._settings.drain_s)
        await cancel_all([stopping, *tasks])
        for task in failed:
            task.result()
        for error in self._broken:
            raise error

    async def _leave(self) -> None:
        await self._engine.close()
        await asyncio.to_thread(self._lease.stop)
        with suppress(QueueUnavailable):
            for shard in range(self._queue.shards):
                await self._queue.reap(shard, worker=self._lease.name)
            await WorkerBoard(self._redis).withdraw(self._lease.name)
            rows = await WorkerBoard(self._redis).list()
            live = set(await self._queue.live_workers()) - {self._lease.name}
            if not self._succeeded and not any(row["model"] == self.name and row["worker"] in live for row in rows):
                await ModelCatalog(self._redis).withdraw(self.name)
        await self._blocking.aclose()

    async def _publish(self) -> None:
        with suppress(QueueUnavailable):
            await ModelCatalog(self._redis).publish(self._card, NO_TOKENIZER)

    async def _show(self) -> None:
        """Keep the card, with the circuit's state, and this worker's figures in Redis."""
        board, started_ms, tokens, at_s = WorkerBoard(self._redis), _now_ms(), 0, time.monotonic()
        while True:
            stats, now_s = self._engine.stats, time.monotonic()
            rate = (stats.generated_tokens_total - tokens) / max(now_s - at_s, 1e-3)
            tokens, at_s = stats.generated_tokens_total, now_s
            figures: dict[str, Any] = asdict(stats) | {
                "model": self.name,
                "engine": self._card.engine,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "jobs": len(self._consumer.held),
                "tokens_per_s": round(rate, 1),
                "started_ms": started_ms,
                "seen_ms": _now_ms(),
            }
            with suppress(QueueUnavailable):
                await board.publish(self._lease.name, figures, ttl_s=self._settings.lease_s)
                is_open = await self._circuits.is_shut(self.name)
                self._card = replace(self._card, state=OPEN if is_open else "loaded")
                await ModelCatalog(self._redis).publish(self._card, NO_TOKENIZER)
            await asyncio.sleep(SHOW_S)

    def _break(self, error: BaseException) -> None:
        """A defect of ours: nothing here goes on."""
        self._broken.append(error)
        self._stopping.set()

    def _arrived(self, chunks: list[Chunk]) -> None:
        self._consumer.arrived(chunks)

    def _heartbeat(self, beat: Heartbeat) -> None:
        self._consumer.heartbeat(beat)

    def _lease_lost(self) -> None:
        self._consumer.begin_lease(self._lease.name)

    def _in_loop(self, call: Any, *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)


def provider_card(provider: Provider, model: ProviderModel) -> ModelCard:
    """What API nodes must know of a provider's model: no template, no tokenizer, nothing to read in its texts."""
    return ModelCard(
        name=provider.served_name(model),
        created_s=0,
        context_tokens=model.context_tokens,
        vocab_tokens=0,
        tokenizer_sha256=tokenizer_hash(NO_TOKENIZER),
        chat_template=None,
        bos_token=None,
        eos_token=None,
        eos_token_ids=(),
        think_start=None,
        think_end=None,
        has_tool_calling=True,
        tool_call_start=None,
        tool_call_end=None,
        engine=f"provider ({provider.kind.value})",
        parameters=0,
        weight_bytes=0,
        task="chat",
        provider=provider.kind.value,
        max_output_tokens=model.max_output_tokens,
    )


def circuit_policy(settings: ProviderWorkerSettings, provider: Provider) -> CircuitPolicy:
    """A probe has as long as any request."""
    return CircuitPolicy(
        failures=settings.circuit_failures,
        window_ms=round(settings.circuit_window_s * 1000),
        open_ms=round(settings.circuit_open_s * 1000),
        probe_ms=round(provider.timeout_s * 1000),
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
