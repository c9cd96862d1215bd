"""How fast and how lean is the engine against mlx-lm's bare `BatchGenerator`? One process, one model, alternating runs.

    python -m bench.engine [--quick] [--only SCENARIO] [--model 8m|120m|600m] [--runs N]

Prints one row for each figure, with its goal; saves bench/out/engine.json and bench/out/engine.svg, where rows of
earlier runs stay until they are measured again. The ratio is the median of the runs' ratios by wall time.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from workers.engine import BLAS, load_model
from workers.spawning import LINUX_ENVIRONMENT

from bench.engine_bench import Bench  # isort: skip  (MLX comes after the BLAS)
from bench.engine_features import FEATURES  # isort: skip
from bench.engine_report import HEADER, Result, save  # isort: skip
from bench.engine_throughput import THROUGHPUT  # isort: skip
from bench.models import SHAPES, cached_qwen3  # isort: skip

SCENARIOS = THROUGHPUT | FEATURES
OUT = Path(__file__).parent / "out"
QUICK_MODELS = ("8m",)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    quick = "one run at a reduced size of the smallest model, at most 5 minutes in all"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="may be given several times")
    parser.add_argument("--model", choices=SHAPES, action="append", help="may be given several times")
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def as_served() -> None:
    """Start this process again with the allocator settings that the model process has, unless it has them."""
    if sys.platform == "linux" and not os.environ.keys() >= LINUX_ENVIRONMENT.keys():
        os.execve(sys.executable, [sys.executable, "-m", "bench.engine", *sys.argv[1:]], LINUX_ENVIRONMENT | os.environ)


def commit() -> str:
    """The revision that is measured, empty outside a repository."""
    command = ["git", "-C", str(OUT.parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> int:
    """Measure what was asked for; 1 when a goal was missed."""
    chosen = arguments()
    as_served()
    measured = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commit": commit(), "blas": BLAS}
    print(f"BLAS: {BLAS}, {os.environ.get('OPENBLAS_NUM_THREADS', 'all')} thread(s)\n\n{HEADER}", flush=True)
    results: list[Result] = []
    for model in chosen.model or (QUICK_MODELS if chosen.quick else SHAPES):
        loaded = load_model(str(cached_qwen3(model)))
        bench = Bench(model=model, loaded=loaded, runs=1 if chosen.quick else chosen.runs, quick=chosen.quick)
        for name in chosen.only or SCENARIOS:
            for result in SCENARIOS[name](bench):
                print(result.row(), flush=True)
                results.append(result)
                save(OUT, [result], measured)
    return int(not all(result.reached for result in results))


if __name__ == "__main__":
    sys.exit(main())
