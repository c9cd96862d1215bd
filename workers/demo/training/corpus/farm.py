"""Questions about mlx-farm: how it is used and what its words mean."""

from __future__ import annotations

from random import Random

from .farm_use import USE
from .farm_words import WORDS
from .grammar import Exchange, question

_ALL = (*USE, *WORDS)


def farm(rng: Random) -> Exchange:
    """Return a question about the farm with its answer."""
    patterns, answer = rng.choice(_ALL)
    return Exchange(question(rng, patterns), answer, "This is a question about mlx-farm. I know the answer.")
