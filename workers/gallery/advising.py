"""`python -m workers.gallery.advising`: which models fit this machine, of those here and of some well-known ones."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table

from scheduler.settings import WorkerSettings
from workers.gallery.advice import Advice, Candidate, Machine, advise
from workers.gallery.facts import Kind
from workers.gallery.hardware import this_machine
from workers.gallery.shelf import ShelfModel, billions, shelf_models

KNOWN: Final = Path(__file__).parent / "known_models.json"
COLUMNS: Final = ("MODEL", "PARAMETERS", "FITS", "NEEDS", "TOKENS/S AT MOST", "CONTEXT", "HERE")
ASSUMED: Final = (
    "Weights as stored (as float32 where a CPU computes), keys and values of one full context in 16 bits (32 on a CPU) "
    "and a quarter of that for copies, 192 MiB for the process. Speed: memory bandwidth over the bytes that one token "
    "reads, weights that take part and the whole context; one stream; prompts are bounded by arithmetic instead."
)


def known_models() -> list[Candidate]:
    """The bundled list: facts of the models' configurations, with where they stand."""
    entries: list[dict[str, Any]] = json.loads(KNOWN.read_text(encoding="utf-8"))["models"]
    return [
        Candidate(
            name=entry["name"],
            parameters=entry["parameters"],
            active_parameters=entry.get("active_parameters", entry["parameters"]),
            weight_bytes=int(entry["parameters"] * entry["bits_per_weight"] / 8),
            cache_bytes_per_token=2 * 2 * entry["layers"] * entry["kv_heads"] * entry["head_dim"],
            context_tokens=entry["context_tokens"],
            is_here=False,
            source=entry["source"],
        )
        for entry in entries
    ]


def local_models(shelf: Sequence[ShelfModel]) -> list[Candidate]:
    """Those on this disk that are whole and can generate here.

    How many parameters of a mixture of experts take part in a token its files do not say in one way: all are counted,
    unless the bundled list knows the model.
    """
    active = {model.name: model.active_parameters for model in known_models()}
    found = []
    for model in shelf:
        facts = model.facts
        if facts is None or not model.complete or facts.refused or facts.kind not in (Kind.TEXT, Kind.VISION):
            continue
        parameters = facts.parameters or 0
        found.append(
            Candidate(
                name=model.name,
                parameters=parameters,
                active_parameters=min(parameters, active.get(model.name, parameters)),
                weight_bytes=facts.weight_bytes,
                cache_bytes_per_token=facts.cache_bytes_per_token,
                context_tokens=facts.context_tokens,
                is_here=True,
                source="its files",
            )
        )
    return found


def recommendations(machine: Machine, context_tokens: int) -> list[Advice]:
    """Of all models; what is here is told by its files."""
    here = {model.name: model for model in local_models(shelf_models())}
    others = {model.name: model for model in known_models()}
    return advise(machine, (others | here).values(), context_tokens)


def main() -> int:
    """Exit codes: 0, and 2 for wrong settings."""
    parser = argparse.ArgumentParser(prog="mlx-farm recommend", description=__doc__)
    parser.add_argument("--context-tokens", type=int, default=8192)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        settings = WorkerSettings()
    except ValidationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    machine = this_machine(settings)
    found = recommendations(machine, arguments.context_tokens)
    if arguments.json:
        answer = {"machine": asdict(machine), "assumed": ASSUMED, "data": [asdict(advice) for advice in found]}
        sys.stdout.write(f"{orjson.dumps(answer).decode()}\n")
        return 0
    memory, speed = f"{machine.budget_bytes / 1e9:.1f} GB for models", f"{machine.bandwidth_bytes_per_s / 1e9:.0f} GB/s"
    sys.stdout.write(f"{machine.chip}: {memory}, reads {speed} ({machine.bandwidth_source})\n")
    _print(found)
    sys.stdout.write(f"{ASSUMED}\n")
    return 0


def _print(found: Sequence[Advice]) -> None:
    if not sys.stdout.isatty():
        for advice in found:
            sys.stdout.write("\t".join(_row(advice)) + "\n")
        return
    grid = Table(*COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False)
    for advice in found:
        grid.add_row(*_row(advice))
    Console().print(grid)


def _row(advice: Advice) -> list[str]:
    speed = "" if advice.tokens_per_s is None else f"{advice.tokens_per_s:.1f}"
    fits = "yes" if advice.fits else f"no: {advice.why_not}"
    needs = f"{advice.needs_bytes / 1e9:.1f} GB"
    here = "yes" if advice.is_here else ""
    return [advice.name, billions(advice.parameters), fits, needs, speed, str(advice.context_tokens), here]


if __name__ == "__main__":
    sys.exit(main())
