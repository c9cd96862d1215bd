"""A worker that also notes when its engine got each prompt and made each frame.

For bench/serving.py: `python -m bench.recording_worker FILE`. The note is written at the end, as JSON:
{"submitted": {job: s}, "produced": {job: [s, …]}} in CLOCK_MONOTONIC seconds, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import uvloop

import workers.model_process
from scheduler.process import configure_logs
from scheduler.settings import WorkerSettings
from workers.engine import Chunk, Prompt
from workers.engine_thread import EngineThread
from workers.model_process import load_generator
from workers.room import RowBounds

submitted: dict[str, float] = {}
produced: dict[str, list[float]] = defaultdict(list)


class RecordingThread(EngineThread):
    """An engine thread that keeps times."""

    def submit(self, prompt: Prompt) -> None:
        """Note when the engine got the prompt."""
        submitted[prompt.id.partition("/")[0]] = time.monotonic()
        super().submit(prompt)


class RecordingProcess(workers.model_process.ModelProcess):
    """A model process that keeps times."""

    def _on_chunks(self, chunks: list[Chunk]) -> None:
        now_s = time.monotonic()
        for chunk in chunks:
            produced[chunk.prompt_id.partition("/")[0]].append(now_s)
        super()._on_chunks(chunks)


def main() -> None:
    """Serve, then write the note."""
    workers.model_process.EngineThread = RecordingThread  # type: ignore[attr-defined]
    workers.model_process.ModelProcess = RecordingProcess  # type: ignore[misc]
    settings = WorkerSettings()
    configure_logs(settings.log_level, settings.log_format)
    sys.setswitchinterval(0.0005)
    load = partial(load_generator, settings)
    bounds = RowBounds(settings.max_sequences, settings.high_lane_rows)
    code = uvloop.run(workers.model_process.serve(settings, load, bounds))
    Path(sys.argv[1]).write_text(json.dumps({"submitted": submitted, "produced": produced}))
    os._exit(code)


if __name__ == "__main__":
    main()
