"""What the consumer takes for an engine: every choice of a job is one request to the provider.

The circuit is asked first and told how it went. What the provider says becomes chunks with parts; how an answer ended,
what was counted and what it costs come with the last one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from scheduler.circuits import Circuits
from scheduler.errors import QueueUnavailable
from scheduler.frames import AnswerPart
from scheduler.providers import Kind, Provider, ProviderModel
from scheduler.requests import JobRequest
from workers.engine import Chunk, EngineStats, Fault, FinishReason
from workers.held import HeldJob
from workers.providers.anthropic import AnthropicStream
from workers.providers.openai import OpenAiStream
from workers.providers.saying import AnswerStream, Finish, ProviderFailed
from workers.providers.upstream import Upstream
from workers.told import Told

log = structlog.get_logger()

MAX_PENDING = 64
"""Pieces of answers that have come and are not written out yet: behind them the provider has to wait."""

STREAMS: Mapping[Kind, Callable[[], AnswerStream]] = {Kind.OPENAI: OpenAiStream, Kind.ANTHROPIC: AnthropicStream}


@dataclass(frozen=True, slots=True)
class Asked:
    """One choice of a job. `interrupted`: something of it was said before, and nobody can go on with it."""

    id: str
    request: JobRequest
    interrupted: bool


def asked_of(job: HeldJob, index: int) -> Asked:
    """The consumer's `prompt_of`."""
    return Asked(f"{job.run}/{index}", job.claimed.request, job.has_spoken)


class ProviderEngine:
    """Implements Computing; belongs to the event loop, in which `on_chunks` is called as well.

    `on_failure` hears of what is no provider's failure, but a defect of ours.
    """

    def __init__(
        self,
        provider: Provider,
        model: ProviderModel,
        upstream: Upstream,
        circuits: Circuits,
        on_chunks: Callable[[list[Chunk]], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._provider = provider
        self._model = model
        self._name = provider.served_name(model)
        self._upstream = upstream
        self._circuits = circuits
        self._on_chunks = on_chunks
        self._on_failure = on_failure
        self._running: dict[str, asyncio.Task[None]] = {}
        self._pending = 0
        self._room = asyncio.Event()
        self._generated_tokens = 0
        self._answers = 0

    @property
    def stats(self) -> EngineStats:
        """Answers that are coming, and what has come."""
        return EngineStats(
            running=len(self._running), generated_tokens_total=self._generated_tokens, steps_total=self._answers
        )

    def submit(self, prompt: Asked) -> None:
        """Ask the provider; what comes of it comes as chunks."""
        task = asyncio.create_task(self._run(prompt), name=prompt.id)
        self._running[prompt.id] = task
        task.add_done_callback(lambda ended: self._ended(prompt.id, ended))

    def cancel(self, prompt_id: str) -> None:
        """Close the connection; the last chunk says CANCELLED."""
        task = self._running.get(prompt_id)
        if task is not None:
            task.cancel()

    def taken(self) -> None:
        """A piece has been written out."""
        self._pending -= 1
        self._room.set()

    async def close(self) -> None:
        """Nothing runs any more."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, asked: Asked) -> None:
        said = False
        try:
            if asked.interrupted:
                raise _interrupted()
            await self._require_circuit()
            stream = STREAMS[self._provider.kind]()
            async with self._upstream.answer(asked.request, self._model.name) as data:
                async for received in data:
                    if parts := joined(stream.feed(received)):
                        said = True
                        await self._tell(Told(asked.id, (), "", parts=parts))
            await self._finish(asked, stream.close())
        except ProviderFailed as error:
            await self._fail(asked, error, said=said)

    def _ended(self, prompt_id: str, task: asyncio.Task[None]) -> None:
        """A cancelled one says so, at whatever stage it was, also before it began."""
        del self._running[prompt_id]
        if task.cancelled():
            self._put(Told(prompt_id, (), "", finish_reason=FinishReason.CANCELLED))
        elif (error := task.exception()) is not None:
            self._on_failure(error)

    async def _require_circuit(self) -> None:
        """Raises ProviderFailed while the circuit is open. Without Redis nothing is known of it."""
        with suppress(QueueUnavailable):
            circuit = await self._circuits.ask(self._name)
            if circuit.wait_ms:
                why = f"{self._name!r} has failed again and again and is not asked for another {circuit.wait_ms} ms"
                raise ProviderFailed("provider_circuit_open", why, wait_s=circuit.wait_ms / 1000)

    async def _finish(self, asked: Asked, finish: Finish) -> None:
        with suppress(QueueUnavailable):
            await self._circuits.went_well(self._name)
        self._answers += 1
        ended = FinishReason.LENGTH if finish.reason == "length" else FinishReason.STOP
        counts = self._counts(finish)
        self._generated_tokens += int(counts.get("output_tokens", 0))
        reason = "" if finish.reason in ("length", "stop") else finish.reason
        await self._tell(
            Told(asked.id, (), "", finish_reason=ended, stop_string=finish.stop_string, reason=reason, counts=counts)
        )

    def _counts(self, finish: Finish) -> dict[str, Any]:
        """For the record. A provider that tells no tokens leaves those that were estimated, and no cost."""
        if finish.use is None:
            return {}
        return {
            **asdict(finish.use),
            "cost_usd": self._model.cost_usd(finish.use),
            "provider": self._provider.name,
        }

    async def _fail(self, asked: Asked, error: ProviderFailed, *, said: bool) -> None:
        """Somebody else may take over, or the same again, as long as nothing was said."""
        if error.code != "provider_circuit_open" and not asked.interrupted:
            with suppress(QueueUnavailable):
                if error.refused:
                    await self._circuits.went_well(self._name)
                else:
                    log.warning("provider failed", model=self._name, code=error.code, error=str(error))
                    await self._circuits.failed(self._name, error.code)
        fault = Fault.PROMPT if error.refused else Fault.PASSING if error.passing and not said else Fault.ENGINE
        message = f"{self._name}: {error}."
        await self._tell(
            Told(
                asked.id,
                (),
                "",
                finish_reason=FinishReason.ERROR,
                error=message,
                fault=fault,
                code=error.code,
                wait_s=error.wait_s,
            )
        )

    async def _tell(self, chunk: Chunk) -> None:
        while self._pending >= MAX_PENDING:
            self._room.clear()
            await self._room.wait()
        self._put(chunk)

    def _put(self, chunk: Chunk) -> None:
        self._pending += 1
        self._on_chunks([chunk])


def _interrupted() -> ProviderFailed:
    why = "the answer was interrupted after its beginning, and a provider cannot go on where it was"
    return ProviderFailed("provider_interrupted", why, passing=False)


def joined(parts: Sequence[AnswerPart]) -> tuple[AnswerPart, ...]:
    """Neighbours of one kind, and of one call, put together: one read of the line is one frame."""
    joined: list[AnswerPart] = []
    for kind, text, call, name, call_id in parts:
        last = joined[-1] if joined else None
        if last is not None and name is None and (last[0], last[2]) == (kind, call):
            joined[-1] = (kind, last[1] + text, call, last[3], last[4])
        else:
            joined.append((kind, text, call, name, call_id))
    return tuple(joined)
