"""`python -m workers.model_process`: one model, one engine, one consumer. Started and watched by the node agent.

load → serve until asked to stop → drain
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import structlog
import uvloop

from scheduler.connections import blocking_client, command_client
from scheduler.errors import QueueUnavailable
from scheduler.image_tokens import ImageRule
from scheduler.models import ModelCard, ModelCatalog, tokenizer_hash
from scheduler.process import EXIT_MODEL, announce_ready, cancel_all, configure_logs, stop_event
from scheduler.queue import Heartbeat, JobQueue
from scheduler.settings import WorkerSettings
from scheduler.workers import WorkerBoard
from workers.consumer import Consumer
from workers.engine import (
    BLAS,
    PROCESS_BYTES,
    AdapterRefused,
    Chunk,
    EngineBackend,
    LoadedEngine,
    ModelError,
    ModelInfo,
    PagedOptions,
    StoreOptions,
    Task,
    UnsupportedModel,
    can_see,
    find_model,
    load_engine,
    task_of,
)
from workers.engine_thread import EngineThread
from workers.lease import Lease
from workers.pulse import Pulse
from workers.room import RowBounds
from workers.spawning import told_to_begin
from workers.use import Use
from workers.waking import wake_by
from workers.words import HOLDS, LOADING, MEMORY, REFUSED, say

log = structlog.get_logger()

GENERATING_PROCESS = "workers.model_process"
ENCODER_PROCESS = "workers.encoder_process"
"""Serves models that answer with numbers; it imports libraries that text generation does without."""

VISION_PROCESS = "workers.vision_process"
"""Serves models that see."""

DEMO_FOLDER = Path(__file__).parent / "demo"
FIGURES_PERIOD_S = 1.0
MEMORY_NEWS = 1.02
"""Times as much memory as was said last is worth saying."""

UNBOUNDED_CONTEXT_TOKENS = 2**20
"""Said of recurrent models, whose configuration names no bound."""


class ModelProcess:
    """Puts the parts together; lives from load to drain. `bounds` say how full the engine that `load` makes is kept."""

    def __init__(self, settings: WorkerSettings, load: Callable[[], LoadedEngine], bounds: RowBounds) -> None:
        self._settings = settings
        self._name = served_name(settings)
        self._redis = command_client(settings.redis)
        self._blocking = blocking_client(settings.redis)
        self._queue = JobQueue(self._redis, shards=settings.shards, policy=settings.queue_policy)
        self._loop = asyncio.get_running_loop()
        self._failed = asyncio.Event()
        self._engine = EngineThread(load, on_chunks=self._on_chunks, on_failure=self._on_failure)
        use = Use(lambda jobs, keep_alive_s: say(HOLDS, (jobs, keep_alive_s)))
        self._consumer = Consumer(self._queue, self._engine, self._name, use, bounds)
        self._lease = Lease(
            settings,
            os.environ.get("FARM_WORKER_BASE") or f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}",
            held=lambda: self._consumer.held,
            on_heartbeat=lambda beat: self._in_loop(self._heartbeat, beat),
            on_lost=lambda: self._in_loop(self._lease_lost),
        )

        self._pulse = Pulse(
            settings.progress_limit_s,
            stalled_s=lambda: self._engine.stalled_s,
            reading_tokens=lambda: self._engine.reading_tokens,
        )

    async def run(self, stop: asyncio.Event) -> int:
        """Load, serve, drain; return the exit code. Raises ModelError when the model cannot be loaded."""
        if self._name in self._settings.adapters:
            raise AdapterRefused(f"adapter {self._name!r} has the name of its model: give one of them another name")
        info = await asyncio.to_thread(self._engine.start)
        card = replace(
            model_card(self._name, info, self._engine.stats.backend, self._engine.context_tokens),
            adapters=tuple(sorted(self._settings.adapters)),
            obeys_grammars=self._engine.obeys_grammars,
            scores_prompts=self._engine.scores_prompts,
        )
        log.info("engine", backend=self._engine.description)
        self._pulse.start()
        self._lease.start()
        if not await self._lease.wait_registered(stop):
            await self._leave()
            return 0
        self._consumer.begin_lease(self._lease.name)
        figures = {
            "model": self._name,
            "engine": card.engine,
            "engine_description": self._engine.description,
            "draft_model": self._settings.draft_model or None,
            "blas": BLAS,
            "host": socket.gethostname(),
        }
        tasks = [
            asyncio.create_task(self._consumer.claim_loop()),
            asyncio.create_task(self._consumer.emit_loop()),
            asyncio.create_task(wake_by(self._blocking, self._queue, self._lease.base, self._consumer.wake)),
            asyncio.create_task(self._show(card, info.tokenizer_json, figures)),
        ]
        await ModelCatalog(self._redis).publish(card, info.tokenizer_json)
        announce_ready(role="model", model=self._name, blas=BLAS, engine=card.engine, card=asdict(card))
        stopping = [asyncio.create_task(stop.wait()), asyncio.create_task(self._failed.wait())]
        await asyncio.wait([*stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        healthy = not self._failed.is_set() and not any(task.done() for task in tasks)
        if healthy:
            await self._consumer.drain(self._settings.drain_s)
        await cancel_all([*stopping, *tasks])
        errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
        for error in errors:
            log.error("model process failed", error=repr(error))
        await self._leave()
        return 0 if healthy and not errors else 1

    async def _leave(self) -> None:
        self._pulse.stop()
        self._lease.stop()
        with suppress(QueueUnavailable):
            for shard in range(self._queue.shards):
                await self._queue.reap(shard, worker=self._lease.name)
            await WorkerBoard(self._redis).withdraw(self._lease.name)
        await asyncio.to_thread(self._engine.stop)
        await self._redis.aclose()
        await self._blocking.aclose()

    async def _show(self, card: ModelCard, tokenizer_json: str, facts: dict[str, Any]) -> None:
        """Keep the model's card and this worker's figures in Redis."""
        catalog, board = ModelCatalog(self._redis), WorkerBoard(self._redis)
        started_ms = time.time_ns() // 1_000_000
        tokens, at_s, said_bytes = 0, time.monotonic(), 0
        while True:
            stats = self._engine.stats
            now_s = time.monotonic()
            rate = (stats.generated_tokens_total - tokens) / max(now_s - at_s, 1e-3)
            tokens, at_s = stats.generated_tokens_total, now_s
            memory_bytes = process_memory_bytes(stats.active_memory_bytes)
            if memory_bytes > said_bytes * MEMORY_NEWS:
                said_bytes = memory_bytes
                say(MEMORY, memory_bytes)
            figures = asdict(stats) | {
                **facts,
                "memory_bytes": memory_bytes,
                "pid": os.getpid(),
                "jobs": len(self._consumer.held),
                "tokens_per_s": round(rate, 1),
                "stalled_s": round(self._engine.stalled_s, 3),
                "started_ms": started_ms,
                "seen_ms": time.time_ns() // 1_000_000,
            }
            with suppress(QueueUnavailable):
                await board.publish(self._lease.name, figures, ttl_s=self._settings.lease_s)
                if not await catalog.renew(card):
                    await catalog.publish(card, tokenizer_json)
            await asyncio.sleep(FIGURES_PERIOD_S)

    def _heartbeat(self, beat: Heartbeat) -> None:
        self._consumer.heartbeat(beat)

    def _lease_lost(self) -> None:
        self._consumer.begin_lease(self._lease.name)

    def _on_chunks(self, chunks: list[Chunk]) -> None:
        self._in_loop(self._consumer.arrived, chunks)

    def _on_failure(self, error: BaseException) -> None:
        log.error("engine failed", error=repr(error))
        self._in_loop(self._failed.set)

    def _in_loop(self, call: Any, *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)


def process_memory_bytes(active_bytes: int) -> int:
    """What this process takes. Elsewhere than on Linux what MLX has counts, because the system does not say it all."""
    if sys.platform != "linux":
        return active_bytes + PROCESS_BYTES
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return max(active_bytes, pages * os.sysconf("SC_PAGE_SIZE"))


def served_name(settings: WorkerSettings) -> str:
    """The name clients use: the one given, `demo`, a folder's last part, or the Hugging Face id."""
    if settings.model_name:
        return settings.model_name
    path = Path(settings.model).expanduser()
    return path.resolve().name if path.is_dir() else settings.model


def paged_options(settings: WorkerSettings) -> PagedOptions:
    """The paged cache that these settings ask for."""
    store = None
    if settings.prefix_store_bytes:
        store = StoreOptions(folder=settings.home_path / "prefixes", max_bytes=settings.prefix_store_bytes)
    return PagedOptions(kv_bytes=settings.kv_cache_bytes or None, kv_bits=settings.kv_bits or None, store=store)


def model_card(name: str, info: ModelInfo, engine: str, context_tokens: int | None) -> ModelCard:
    """What API nodes must know of a loaded model and of the engine that bounds its context."""
    return ModelCard(
        name=name,
        created_s=int(time.time()),
        context_tokens=context_tokens or UNBOUNDED_CONTEXT_TOKENS,
        vocab_tokens=info.vocab_size,
        tokenizer_sha256=tokenizer_hash(info.tokenizer_json),
        chat_template=info.chat_template,
        bos_token=info.special_tokens.get("bos_token"),
        eos_token=info.special_tokens.get("eos_token"),
        eos_token_ids=tuple(info.eos_token_ids),
        think_start=info.think_start,
        think_end=info.think_end,
        has_tool_calling=info.has_tool_calling,
        tool_call_start=info.tool_call_start,
        tool_call_end=info.tool_call_end,
        engine=engine,
        parameters=info.parameters,
        weight_bytes=info.weight_bytes,
        tool_format=info.tool_format,
        task=info.task.value,
        dimensions=info.dimensions,
        short_dimensions=info.short_dimensions,
        images=None if info.image_rule is None else ImageRule.of(info.image_rule),
    )


def load_generator(settings: WorkerSettings) -> LoadedEngine:
    """The engine that generates text, as these settings want it. Raises ModelError."""
    return load_engine(
        model_source(settings),
        max_sequences=settings.max_sequences,
        prefill_step_tokens=settings.step_tokens or None,
        backend=EngineBackend(settings.engine),
        paged=paged_options(settings),
        adapters={name: folder.expanduser() for name, folder in settings.adapters.items()},
        draft_model=settings.draft_model or None,
        on_progress=lambda done_bytes, total_bytes: say(LOADING, (done_bytes, total_bytes)),
    )


def model_source(settings: WorkerSettings) -> str:
    """The model's folder or Hugging Face id."""
    return str(DEMO_FOLDER) if settings.model == "demo" else settings.model


async def serve(settings: WorkerSettings, load: Callable[[], LoadedEngine], bounds: RowBounds) -> int:
    """Run one model process until a stop signal."""
    stop = stop_event()
    try:
        return await ModelProcess(settings, load, bounds).run(stop)
    except ModelError as error:
        return refused(error)


def run(settings: WorkerSettings, load: Callable[[], LoadedEngine], *, rows: int, ahead: int | None = None) -> NoReturn:
    """Logs, run, end. The worker holds up to `rows` sequences, `ahead` that have not begun (None: no such bound)."""
    bounds = RowBounds(rows, min(settings.high_lane_rows, rows - 1), ahead)
    configure_logs(settings.log_level, settings.log_format)
    sys.setswitchinterval(0.0005)  # frames must not wait 5 ms for the engine's thread to let go of the interpreter
    code = uvloop.run(serve(settings, load, bounds))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of MLX or a hung engine must not keep a stopped process alive


def settled(own: str) -> WorkerSettings:
    """What to serve, once it is certain: a spare waits until it is told. A process that was not made for the model
    becomes the one that was, also while it waits, so that it has imported the right things.
    """
    for certain in (False, True):
        if certain and not told_to_begin():
            sys.exit(0)
        settings = WorkerSettings()
        try:
            process = _process_for(settings)
        except ModelError as error:
            sys.exit(refused(error))
        if process != own:
            os.execv(sys.executable, [sys.executable, "-P", "-m", process])
    return settings


def _process_for(settings: WorkerSettings) -> str:
    """The module that serves the model. Raises ModelError, also where a library is not installed."""
    task = asked_task(settings)
    if task is not Task.GENERATE:
        need = f"{settings.model} is a model to {task}, which needs mlx-embeddings: pip install 'mlx-farm[embeddings]'"
        return _with_library("mlx_embeddings", ENCODER_PROCESS, need)
    if settings.vision and can_see(find_model(model_source(settings))):
        need = f"{settings.model} is a model that sees, which needs mlx-vlm: pip install 'mlx-farm[vision]'"
        return _with_library("mlx_vlm", VISION_PROCESS, f"{need}; FARM_VISION=false serves it for text alone")
    return GENERATING_PROCESS


def _with_library(library: str, process: str, need: str) -> str:
    if find_spec(library) is None:
        raise UnsupportedModel(need)
    return process


def main() -> NoReturn:
    """Serve a model that generates text, or become the process that serves what this one is not made for."""
    settings = settled(GENERATING_PROCESS)
    run(settings, lambda: load_generator(settings), rows=settings.max_sequences)


def asked_task(settings: WorkerSettings) -> Task:
    """What the settings say that the model is for, or its files. Raises ModelError."""
    if settings.task != "auto":
        return Task(settings.task)
    return task_of(find_model(model_source(settings)))


def refused(error: ModelError) -> int:
    """Say why the model cannot be served; the exit code for that."""
    sys.stderr.write(f"{error}\n")
    say(REFUSED, str(error))
    return EXIT_MODEL


if __name__ == "__main__":
    main()
