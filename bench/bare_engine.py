"""The engine loop alone, for bench/serving.py: `python -m bench.bare_engine MODEL STREAMS` prints tokens per second."""

from __future__ import annotations

import random
import sys
import time

from workers.engine import Prompt, SamplingParams, StopRule, load_engine

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 128


def prompts(streams: int, round_name: str) -> list[list[int]]:
    """Random token ids, the same for the bare loop and the served one; others in each round: nothing is cached."""
    chooser = random.Random(round_name)
    return [[chooser.randrange(100, 1000) for _ in range(PROMPT_TOKENS)] for _ in range(streams)]


def main() -> None:
    """Submit all prompts at once and step to the end; a short round first warms up."""
    model, streams = sys.argv[1], int(sys.argv[2])
    engine = load_engine(model, max_sequences=32).engine
    sampling = SamplingParams(temperature=0)
    elapsed_s = 0.0
    for round_name, length in (("warm", 4), ("timed", OUTPUT_TOKENS)):
        began_s = time.monotonic()
        for index, ids in enumerate(prompts(streams, round_name)):
            stop = StopRule(max_tokens=length, ignore_eos=True)
            engine.submit(Prompt(id=f"{round_name}{index}", token_ids=tuple(ids), sampling=sampling, stop=stop))
        while engine.has_work:
            engine.step()
        elapsed_s = time.monotonic() - began_s
    print(streams * OUTPUT_TOKENS / elapsed_s)


if __name__ == "__main__":
    main()
