"""`python -m workers.describing NAME…`: what models of FARM_MODELS are and need, from their files alone.

A process of its own, because the node agent does not import MLX. Says BUDGET with the bytes that models may take in
all, then a line for each model: MODEL with its card, its tokenizer and its needs, or REFUSED with the reason.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace

from scheduler.process import configure_logs
from scheduler.settings import WorkerSettings
from workers.engine import (
    BLAS,
    ModelError,
    Task,
    UnsupportedModel,
    can_see,
    estimate,
    find_model,
    machine_memory_bytes,
    task_of,
)
from workers.model_process import DEMO_FOLDER, model_card
from workers.words import BUDGET, MODEL, NO_MODEL, say

MEMORY_SHARE = 0.7
"""Of the machine's memory, where the settings do not say how much models may take."""

CACHE_SHARE = 0.25
"""Of the budget, that one model's KV cache may take where the settings do not say."""


def main() -> None:
    """Describe one after the other."""
    settings = WorkerSettings()
    configure_logs(settings.log_level, settings.log_format)
    budget_bytes = model_budget_bytes(settings)
    say(BUDGET, (budget_bytes, BLAS))
    for name in sys.argv[1:]:
        try:
            say(MODEL, {"name": name, **_described(settings, name, settings.models[name], budget_bytes)})
        except ModelError as error:
            say(NO_MODEL, {"name": name, "reason": str(error)})


def model_budget_bytes(settings: WorkerSettings) -> int:
    """What models that are loaded by demand may take in all."""
    return settings.model_memory_bytes or int(MEMORY_SHARE * machine_memory_bytes())


def _described(settings: WorkerSettings, name: str, source: str, budget_bytes: int) -> dict[str, object]:
    """Raises ModelError."""
    folder = find_model(str(DEMO_FOLDER) if source == "demo" else source)
    if (task := task_of(folder)) is not Task.GENERATE:
        raise UnsupportedModel(f"{source} is a model to {task}: it needs a worker of its own (FARM_MODEL={source})")
    if settings.vision and can_see(folder):
        what = "it needs a worker of its own, or FARM_VISION=false to serve text alone"
        raise UnsupportedModel(f"{source} is a model that sees: {what}")
    found = estimate(
        str(folder),
        max_sequences=settings.max_sequences,
        spare_bytes=int(CACHE_SHARE * budget_bytes),
        kv_bytes=settings.kv_cache_bytes or None,
        kv_bits=settings.kv_bits or None,
    )
    card = replace(
        model_card(name, found.info, "not loaded", found.cache_tokens),
        state="available",
        obeys_grammars=True,  # as most engines do; another one fails a job that asks for it
        scores_prompts=True,
    )
    return {
        "card": asdict(card),
        "tokenizer_json": found.info.tokenizer_json,
        "needs_bytes": found.needs_bytes,
        "cache_bytes": found.cache_bytes,
    }


if __name__ == "__main__":
    main()
