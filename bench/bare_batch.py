"""The engine alone on a batch's lines: `python -m bench.bare_batch FILE SECONDS`, for bench/batches.py.

Prints the lines that it answers a second, and the processor time in ms that a line costs.

The demo model, as its worker has it: as many rows, prompts by its template, and always more of them than rows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import workers.demo
from scheduler.prompts import PromptFormat
from workers.engine import Engine, Prompt, SamplingParams, StopRule, load_engine
from workers.engine_thread import let_compute_wait, step_back
from workers.model_process import model_card

ROWS = 32
IN_FLIGHT = 64
WARM_LINES = 64


def prompts(path: Path, format: PromptFormat) -> Iterator[Prompt]:
    """Every line as the engine gets it."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            request = json.loads(line)
            text = format.render(request["body"]["messages"], tools=None, add_generation_prompt=True)
            yield Prompt(
                id=request["custom_id"],
                token_ids=format.encode(text, add_special_tokens=False),
                sampling=SamplingParams(temperature=request["body"]["temperature"]),
                stop=StopRule(max_tokens=request["body"]["max_tokens"]),
            )


def answer(engine: Engine, waiting: Iterator[Prompt], *, lines: float, until_s: float) -> int:
    """Step until so many lines are answered, or until a time; how many are."""
    answered = 0
    while answered < lines and time.monotonic() < until_s:
        stats = engine.stats()
        for prompt in islice(waiting, max(0, IN_FLIGHT - stats.running - len(stats.prefilling) - stats.waiting)):
            engine.submit(prompt)
        answered += sum(chunk.finish_reason is not None for chunk in engine.step())
    return answered


def main() -> None:
    """A few lines first warm up. It gives way to other programs as a worker does."""
    path, seconds = Path(sys.argv[1]), float(sys.argv[2])
    step_back()
    engine, info = load_engine(str(Path(workers.demo.__file__).parent), max_sequences=ROWS)
    let_compute_wait()
    card = model_card("demo", info, engine.stats().backend, engine.context_tokens)
    waiting = prompts(path, PromptFormat(card, info.tokenizer_json))
    answer(engine, waiting, lines=WARM_LINES, until_s=float("inf"))
    began_s, used_s = time.monotonic(), time.process_time()
    answered = answer(engine, waiting, lines=float("inf"), until_s=began_s + seconds)
    print(answered / (time.monotonic() - began_s), 1000 * (time.process_time() - used_s) / answered)


if __name__ == "__main__":
    main()
