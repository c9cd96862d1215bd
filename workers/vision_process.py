"""`python -m workers.vision_process`: the model process of a model that sees.

`workers.model_process` becomes this one when the model's files say so, unless FARM_VISION is off; everything but the
engine is its.
"""

from __future__ import annotations

import sys
from functools import partial

from workers.engine import UnsupportedModel
from workers.model_process import VISION_PROCESS, model_source, refused, run, settled
from workers.vision import DECODED_AHEAD, load_seeing

ROWS = 8
"""Where nobody says how many: their prompts, images among them, are long and read one after the other."""


def main() -> None:
    """Serve until a stop signal."""
    settings = settled(VISION_PROCESS)
    if settings.adapters or settings.draft_model or settings.kv_bits or settings.engine != "auto":
        reason = "no adapters, draft model, KV bits or choice of an engine for a model that sees"
        sys.exit(refused(UnsupportedModel(f"{settings.model}: {reason}; FARM_VISION=false serves it for text alone")))
    rows = settings.sequences_or(ROWS)
    load = partial(load_seeing, model_source(settings), max_sequences=rows, step_tokens=settings.step_tokens or None)
    run(settings, load, rows=rows, ahead=DECODED_AHEAD)  # the others wait where another worker can take them


if __name__ == "__main__":
    main()
