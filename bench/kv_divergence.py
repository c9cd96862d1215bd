"""How far a model goes astray when its keys and values are kept in 8 bits: greedy tokens, and distributions."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.engine import LoadedModel  # first, because it loads the BLAS that MLX is to use

import mlx.core as mx  # isort: skip
from mlx.nn.layers.base import Module  # isort: skip
from mlx_lm.models.cache import make_prompt_cache  # isort: skip
from workers.engine.paged.rounding import rounded_caches  # isort: skip

TOKENS = 64


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of greedy answers of `TOKENS` tokens: the share of equal ones, prompt by prompt; and the Kullback-Leibler
    divergence in nats of the rounded from the exact next-token distributions, the exact answer being given."""

    equal: list[float]
    mean_kl: float
    most_kl: float


def measure_divergence(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> Divergence:
    equal: list[float] = []
    divergences: list[float] = []
    for prompt in prompts:
        exact, rounded = (_greedy(loaded.model, prompt, make) for make in (make_prompt_cache, rounded_caches))
        equal.append(statistics.mean(a == b for a, b in zip(exact, rounded, strict=True)))
        text = mx.array([[*prompt, *exact]])
        logs = [
            _log_probabilities(loaded.model, text, make)[len(prompt) :] for make in (make_prompt_cache, rounded_caches)
        ]
        divergences += map(float, np.array(mx.sum(mx.exp(logs[0]) * (logs[0] - logs[1]), axis=-1)))
    return Divergence(equal, statistics.mean(divergences), max(divergences))


def _log_probabilities(model: Module, ids: mx.array, make_caches: Callable[[Module], list[Any]]) -> mx.array:
    logits: mx.array = model(ids, cache=make_caches(model))[0].astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _greedy(model: Module, prompt: Sequence[int], make_caches: Callable[[Module], list[Any]]) -> list[int]:
    caches, said, new = make_caches(model), [], mx.array([prompt])
    for _ in range(TOKENS):
        said.append(int(np.array(mx.argmax(model(new, cache=caches)[0, -1]))))
        new = mx.array([[said[-1]]])
    return said
