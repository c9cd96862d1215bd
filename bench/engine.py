"""What does the engine cost over mlx-lm's bare `BatchGenerator` loop? Decode steps of a full batch, both in one run.

Two generators over one model take turns, a few steps each, so that whatever else the machine does hits both. Ratios
are of medians per step; CPU time counts all threads.

    python -m bench.engine [--rows 16] [--steps 96] [--layers 12] [--hidden 768] [--vocab 32000]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.engine import BLAS, LoadedModel, Prompt, SamplingParams, StopRule, load_model, make_engine

from bench.models import build_qwen3  # isort: skip
from mlx_lm.generate import BatchGenerator  # isort: skip
from mlx_lm.sample_utils import make_logits_processors, make_sampler  # isort: skip

PROMPT_TOKENS = 64
TURN_STEPS = 4
WORKLOADS: dict[str, tuple[dict[str, Any], int | None]] = {
    "greedy": ({"temperature": 0.0}, None),
    "temperature 1": ({"temperature": 1.0}, None),
    "top-k 20, top-p 0.95": ({"temperature": 0.7, "top_k": 20, "top_p": 0.95}, None),
    "top-p 0.95": ({"temperature": 0.7, "top_p": 0.95}, None),
    "frequency penalty 0.5": ({"temperature": 1.0, "frequency_penalty": 0.5}, None),
    "greedy, 5 logprobs": ({"temperature": 0.0}, 5),
}


@dataclass
class Samples:
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def take(self, step: Callable[[], object]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(TURN_STEPS):
            step()
        self.wall_s.append((time.perf_counter() - wall) / TURN_STEPS)
        self.cpu_s.append((time.process_time() - cpu) / TURN_STEPS)


def prompt_ids(row: int, vocab: int) -> list[int]:
    return [(row * 7919 + index * 104729) % (vocab - 300) + 300 for index in range(PROMPT_TOKENS)]


def bare_loop(loaded: LoadedModel, rows: int, sampling: dict[str, Any]) -> Callable[[], object]:
    """A decoding `BatchGenerator` with mlx-lm's own samplers, and nothing done with its tokens."""
    generator: Any = BatchGenerator(loaded.model, completion_batch_size=rows, prefill_batch_size=rows)
    temperature, frequency = sampling["temperature"], sampling.get("frequency_penalty", 0.0)
    processors = make_logits_processors(frequency_penalty=frequency, frequency_context_size=1 << 20)
    sampler_args = {"top_p": sampling.get("top_p", 0.0), "top_k": sampling.get("top_k", 0)}
    generator.insert(
        [prompt_ids(row, loaded.info.vocab_size) for row in range(rows)],
        max_tokens=[1 << 20] * rows,
        samplers=[make_sampler(temperature, **sampler_args) for _ in range(rows)],
        logits_processors=[processors] * rows if frequency else None,
    )
    while len(generator.next_generated()) < rows:
        pass
    return generator.next_generated  # type: ignore[no-any-return]


def engine_loop(loaded: LoadedModel, rows: int, sampling: dict[str, Any], logprobs: int | None) -> Callable[[], object]:
    engine = make_engine(loaded, max_sequences=rows, max_waiting=rows, prefill_step_tokens=512)
    stop = StopRule(max_tokens=1 << 20, ignore_eos=True, strings=("\n\nUser:",))
    for row in range(rows):
        ids = tuple(prompt_ids(row, loaded.info.vocab_size))
        params = SamplingParams(seed=row, **sampling)
        engine.submit(Prompt(id=str(row), token_ids=ids, sampling=params, stop=stop, logprobs=logprobs))
    while len(engine.step()) < rows:
        pass
    return engine.step


def measure(loaded: LoadedModel, rows: int, steps: int, sampling: dict[str, Any], logprobs: int | None) -> list[float]:
    """Milliseconds per step of the bare loop and of the engine (CPU time), then the ratios by CPU and by wall time."""
    bare, ours = Samples(), Samples()
    bare_step, engine_step = bare_loop(loaded, rows, sampling), engine_loop(loaded, rows, sampling, logprobs)
    for _ in range(steps // TURN_STEPS):
        bare.take(bare_step)
        ours.take(engine_step)
    bare_cpu, ours_cpu = statistics.median(bare.cpu_s), statistics.median(ours.cpu_s)
    wall = statistics.median(ours.wall_s) / statistics.median(bare.wall_s)
    return [1000 * bare_cpu, 1000 * ours_cpu, ours_cpu / bare_cpu, wall]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 16), ("steps", 96), ("layers", 12), ("hidden", 768), ("vocab", 32000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = build_qwen3(Path(folder), layers=args.layers, hidden=args.hidden, vocab=args.vocab)
        loaded = load_model(str(path))
    millions = loaded.info.parameters / 1e6
    print(f"{millions:.0f} M parameters, {args.rows} rows, {PROMPT_TOKENS} prompt tokens, BLAS: {BLAS}\n")
    print("| sampling | bare ms CPU | engine ms CPU | ratio CPU | ratio wall |\n|---|---:|---:|---:|---:|")
    for name, (sampling, logprobs) in WORKLOADS.items():
        bare, ours, cpu, wall = measure(loaded, args.rows, args.steps, sampling, logprobs)
        print(f"| {name} | {bare:.1f} | {ours:.1f} | {cpu:.3f} | {wall:.3f} |", flush=True)


if __name__ == "__main__":
    main()
