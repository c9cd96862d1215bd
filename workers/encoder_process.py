"""`python -m workers.encoder_process`: the model process of a model that embeds texts or scores pairs of them.

`workers.model_process` becomes this one when the model's files (or FARM_TASK) say so; everything but the engine is its.
"""

from __future__ import annotations

import sys
from functools import partial

from workers.encoder import load_encoder
from workers.engine import UnsupportedModel
from workers.model_process import ENCODER_PROCESS, asked_task, model_source, refused, run, settled

ROWS = 4096
"""Inputs in hand: enough for full forwards, and for a large request not to keep the small ones out."""


def main() -> None:
    """Serve until a stop signal."""
    settings = settled(ENCODER_PROCESS)
    if settings.adapters or settings.draft_model or settings.kv_bits:
        what = "no adapters, draft model or KV bits for it"
        sys.exit(refused(UnsupportedModel(f"{settings.model} does not generate: {what}")))
    load = partial(load_encoder, model_source(settings), task=asked_task(settings))
    run(settings, load, rows=ROWS)


if __name__ == "__main__":
    main()
