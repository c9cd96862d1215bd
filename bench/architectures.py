"""Which back end serves each architecture that mlx-lm ships, and whether it then says what mlx-lm says alone?

Each architecture is built tiny, with random weights, in a process of its own under a memory limit, because some crash.
Prompts of unlike lengths that partly share a beginning join while others decode, over a small cache.

    python -m bench.architectures [--write docs/architectures.md] [--only NAME ...]
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from workers.engine import BLAS, Engine, LoadedModel, Prompt, SamplingParams, StopRule, make_engine

from bench.reference import Reference  # isort: skip
from bench.tiny_configs import ARCHITECTURES, VOCABULARY  # isort: skip
from bench.tiny_models import load_tiny  # isort: skip
from mlx_lm.utils import MODEL_REMAPPING  # isort: skip
from workers.engine.batch import BatchRunner  # isort: skip
from workers.engine.choosing import PagedOptions  # isort: skip
from workers.engine.engine import SequenceEngine  # isort: skip
from workers.engine.runner import Runner  # isort: skip
from workers.engine.serial import SerialRunner  # isort: skip

MEMORY_LIMIT_BYTES = 12 << 30
TIME_LIMIT_S = 300
PROMPTS = 8
OUTPUT_TOKENS = 10
ROWS = 4
CHUNK_TOKENS = 16
COLUMNS = ("served", "layers", "equal", "batched", "remark")
# Cells in the order in which they become known, and what stands there when the process ended before.
STAGES = {"alone": "", "served": "refused", "equal": "fails", "batched": "fails"}
REMARK_CHARS = 110
HEADER = """# Architectures

Made by `python -m bench.architectures --write docs/architectures.md`; do not edit. mlx-lm {version}, on {blas}.

All {total} architectures that mlx-lm ships, as tiny models with random weights. *Back end* is what `auto`
chooses. *Layers* are how the paged back end keeps their past: direct (attention reads the pool), gathered (the model's
own attention gets a contiguous copy), window (sliding, old blocks are given back), state (recurrent). *Equal* counts
the prompts, joining while others decode, whose greedy tokens are those of mlx-lm's `generate_step` alone; a tie is two
tokens whose logits are proven to differ by less than a thousandth of their standard deviation. *Batched* is the same
for mlx-lm's `BatchGenerator`, with recurrent models' prompts read one at a time.

| architecture | back end | layers | equal | batched | remark |
|---|---|---|---|---|---|
"""


def prompts() -> Iterator[Prompt]:
    """Greedy prompts of 1 to 47 tokens; every other one begins like the first."""
    dice = random.Random(5)
    base = [dice.randrange(1, VOCABULARY) for _ in range(40)]
    for index in range(PROMPTS):
        shared = base[: dice.choice((8, 16, 24, 33))] if index % 2 else []
        own = [dice.randrange(1, VOCABULARY) for _ in range((1, 3, 7, 14)[index // 2])]
        stop = StopRule(max_tokens=OUTPUT_TOKENS, ignore_eos=True)
        greedy = SamplingParams(temperature=0.0)
        yield Prompt(id=str(index), token_ids=(*shared, *own), sampling=greedy, stop=stop)


def equal_answers(engine: Engine, reference: Reference) -> str:
    """How many prompts got the reference's tokens, as a text."""
    said: dict[str, list[int]] = {}
    coming, ties = list(prompts()), reference.ties
    while coming or engine.has_work:
        if coming:
            engine.submit(coming.pop())
        for chunk in engine.step():
            said.setdefault(chunk.prompt_id, []).extend(chunk.token_ids)
    right = [p for p in prompts() if len(said[p.id]) == OUTPUT_TOKENS and not reference.differences(p, said[p.id])]
    tied = reference.ties - ties
    return f"{len(right)}/{PROMPTS}" + (f" ({tied} tied)" if tied else "")


def open_with(loaded: LoadedModel, runner: Runner) -> Engine:
    return SequenceEngine(loaded, runner, max_waiting=PROMPTS)


def survey_one(architecture: str) -> Iterator[dict[str, str]]:
    """The cells of one row, as they become known, in the process that may crash."""
    loaded = load_tiny(architecture)
    reference = Reference(loaded)
    answers = {tuple(reference.tokens(prompt)) for prompt in prompts()}
    yield {"alone": f"only {len(answers)} different answers" if len(answers) < PROMPTS else ""}
    serial = open_with(
        loaded, SerialRunner(loaded.model, vocab_size=loaded.info.vocab_size, prefill_step_tokens=CHUNK_TOKENS)
    )
    equal = equal_answers(serial, reference)
    if not equal.startswith(f"{PROMPTS}/"):
        yield {"alone": f"mlx-lm alone, but reading in chunks: {equal}"}
    engine = make_engine(
        loaded,
        max_sequences=ROWS,
        max_waiting=PROMPTS,
        prefill_step_tokens=CHUNK_TOKENS,
        paged=PagedOptions(block_tokens=8, kv_blocks=60),
    )
    why, *reasons = engine.backend.split("; not ")
    served, _, why = why.partition(": ")
    yield {"served": served, "layers": why.partition("layers: ")[2]}
    if reasons:
        reason = reasons[0].split("; ")[0]
        yield {"remark": f"not {reason}"[:REMARK_CHARS].replace("|", "/")}
    yield {"equal": equal_answers(engine, reference)}
    batch = open_with(
        loaded,
        BatchRunner(loaded.model, vocab_size=loaded.info.vocab_size, capacity=ROWS, prefill_step_tokens=CHUNK_TOKENS),
    )
    yield {"batched": equal_answers(batch, reference)}


def survey(architecture: str) -> dict[str, str]:
    """One row of the table, from a process of its own."""
    command = [sys.executable, "-m", "bench.architectures", "--child", architecture]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"architecture": architecture, "remark": f"no end after {TIME_LIMIT_S} s"}
    row = {"architecture": architecture}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            row |= json.loads(line)
    stage = next((name for name in STAGES if name not in row), None)
    if stage is not None:
        row[stage] = STAGES[stage]
    ended = last_words(done) if done.returncode and stage != "batched" else ""
    row["remark"] = "; ".join(filter(None, (row.get("alone"), row.get("remark"), ended)))
    return row


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended early, short enough for a table."""
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line and not line.startswith(("{", " "))]
    return lines[-1][:REMARK_CHARS].replace("|", "/") if lines else f"exit code {done.returncode}"


def table(rows: list[dict[str, str]]) -> str:
    lines = ["| " + " | ".join([row["architecture"], *(row.get(name, "") for name in COLUMNS)]) + " |" for row in rows]
    text = HEADER.format(version=metadata.version("mlx-lm"), blas=BLAS, total=len(rows))
    served = Counter((row.get("served") or "none").split(" ")[0] for row in rows)
    also = ", ".join(f"{name} as {module}" for name, module in sorted(MODEL_REMAPPING.items()))
    counts = ", ".join(f"{count} {name}" for name, count in served.most_common())
    return text + "\n".join(lines) + f"\n\nServed by: {counts}. Model types that mlx-lm loads as another: {also}.\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, help="where the table goes, instead of only to the terminal")
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES, metavar="NAME")
    parser.add_argument("--child", choices=ARCHITECTURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
        for cells in survey_one(arguments.child):
            print(json.dumps(cells), flush=True)
        return 0
    rows = []
    for name in arguments.only:
        rows.append(survey(name))
        print(" | ".join(f"{key}: {value}" for key, value in rows[-1].items() if value), flush=True)
    if arguments.write:
        arguments.write.write_text(table(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
