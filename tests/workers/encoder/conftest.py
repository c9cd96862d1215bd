"""Tiny encoders, and what the tests do with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.tiny_encoders import write_embedder, write_scorer
from workers.engine import Engine, Prompt, SamplingParams, StopRule


def prompt(prompt_id: str, token_ids: Sequence[int], **changes: Any) -> Prompt:
    """An input."""
    fixed = {"sampling": SamplingParams(), "stop": StopRule(max_tokens=0)}
    return Prompt(id=prompt_id, token_ids=tuple(token_ids), **{**fixed, **changes})


def vectors(engine: Engine, inputs: Sequence[Sequence[int]], **changes: Any) -> np.ndarray:
    """All inputs at once, as one request."""
    for index, token_ids in enumerate(inputs):
        engine.submit(prompt(f"r/{index}", token_ids, **changes))
    answers: dict[str, np.ndarray] = {}
    while engine.has_work:
        for chunk in engine.step():
            assert chunk.vector is not None, chunk.error
            answers[chunk.prompt_id] = np.frombuffer(chunk.vector, "<f4")
    return np.array([answers[f"r/{index}"] for index in range(len(inputs))])


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model that embeds."""
    root, made = tmp_path_factory.mktemp("embedders"), dict[str, Path]()
    return lambda kind: made.setdefault(kind, write_embedder(root / kind, kind, pooling=None))


@pytest.fixture(scope="session")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny cross-encoder."""
    root, made = tmp_path_factory.mktemp("scorers"), dict[str, Path]()
    return lambda kind: made.setdefault(kind, write_scorer(root / kind, kind))
