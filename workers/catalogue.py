"""The models that a node agent may serve: read from their files at the start, and again when an operator says so."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
import orjson

from scheduler.model_events import ModelEvent
from scheduler.models import ModelCard
from scheduler.settings import WorkerSettings
from workers.tenure import Description, Tenure
from workers.words import BUDGET, MODEL, NO_MODEL

LONGEST_LINE_BYTES = 1 << 28
"""A model's tokenizer is in its line."""

Tell = Callable[[ModelEvent, str, dict[str, Any]], None]


class Catalogue:
    """Fills in what the models are and need; `tell` hears of each."""

    def __init__(self, settings: WorkerSettings, tenures: Mapping[str, Tenure], tell: Tell) -> None:
        self._settings = settings
        self._tenures = tenures
        self._tell = tell
        self.budget_bytes = settings.model_memory_bytes
        self.blas = ""

    async def read(self) -> None:
        """Have a process of its own look at all models; one that its files kill has failed, and another one goes on."""
        while names := [name for name, tenure in self._tenures.items() if not (tenure.description or tenure.failed)]:
            code = await self._look_at(names)
            unread = [name for name in names if not (self._tenures[name].description or self._tenures[name].failed)]
            if unread:
                self.fail(self._tenures[unread[0]], f"the process that read its files ended with exit code {code}")

    async def _look_at(self, names: Sequence[str]) -> int:
        """Describe these models; the exit code of the process that does it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "workers.describing", *names),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            limit=LONGEST_LINE_BYTES,
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                self._take(line)
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def fail(self, tenure: Tenure, reason: str) -> None:
        """The model is not served until somebody loads it by hand."""
        tenure.failed = reason
        tenure.wanted_since_s = None
        self._tell(ModelEvent.FAILED, tenure.name, {"reason": reason})

    def _take(self, line: bytes) -> None:
        if line.startswith(BUDGET):
            self.budget_bytes, self.blas = orjson.loads(line.removeprefix(BUDGET))
        elif line.startswith(MODEL):
            self._describe(orjson.loads(line.removeprefix(MODEL)))
        elif line.startswith(NO_MODEL):
            refused = orjson.loads(line.removeprefix(NO_MODEL))
            self.fail(self._tenures[refused["name"]], refused["reason"])

    def _describe(self, found: Mapping[str, Any]) -> None:
        tenure = self._tenures[found["name"]]
        tenure.description = Description(
            card=ModelCard.decode(msgpack.packb(found["card"])),
            tokenizer_json=found["tokenizer_json"],
            needs_bytes=found["needs_bytes"],
            cache_bytes=found["cache_bytes"],
        )
        self._tell(ModelEvent.KNOWN, tenure.name, {"needs_bytes": tenure.needs_bytes})
        if tenure.needs_bytes > self.budget_bytes:
            what = f"it needs about {tenure.needs_bytes >> 20} MiB, and models may take {self.budget_bytes >> 20} MiB"
            self.fail(tenure, f"{what} in all here (FARM_MODEL_MEMORY_BYTES)")
