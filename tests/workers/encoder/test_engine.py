"""What the encoder's engine takes, refuses, cancels and counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.tiny_encoders import CONTEXT_TOKENS, SIZES
from tests.workers.encoder.conftest import prompt, vectors
from workers.encoder import load_encoder
from workers.engine import Engine, EngineClosed, Fault, FinishReason, InvalidPrompt, Task


@pytest.fixture
def engine(embedder: Callable[[str], Path]) -> Engine:
    return load_encoder(str(embedder("bert")), task=Task.EMBED, step_tokens=64).engine


@pytest.mark.parametrize(
    ("token_ids", "dimensions", "said"),
    [
        ((), None, "empty"),
        ((5,) * (CONTEXT_TOKENS + 1), None, f"{CONTEXT_TOKENS + 1} tokens are more than the model's {CONTEXT_TOKENS}"),
        ((5, 10_000), None, "vocabulary"),
        ((5, -1), None, "vocabulary"),
        ((5,), 33, "32 dimensions"),
    ],
)
def test_an_input_that_cannot_be_computed_is_refused(
    engine: Engine, token_ids: tuple[int, ...], dimensions: int | None, said: str
) -> None:
    with pytest.raises(InvalidPrompt, match=said):
        engine.submit(prompt("a/0", token_ids, dimensions=dimensions))
    assert not engine.has_work


def test_the_longest_input_that_is_allowed_is_computed(engine: Engine) -> None:
    assert vectors(engine, [(5,) * CONTEXT_TOKENS]).shape == (1, SIZES["hidden_size"])


def test_fewer_dimensions_are_the_first_ones_with_length_one(engine: Engine) -> None:
    [whole], [short] = vectors(engine, [(0, 9, 2)]), vectors(engine, [(0, 9, 2)], dimensions=8)
    assert short.shape == (8,)
    assert np.allclose(short, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)


def test_a_cancelled_input_says_so_and_the_others_are_computed(engine: Engine) -> None:
    for index in range(3):
        engine.submit(prompt(f"a/{index}", (0, 5 + index, 2)))
    engine.cancel("a/1")
    engine.cancel("nobody/0")
    reasons = {chunk.prompt_id: chunk.finish_reason for chunk in engine.step()}
    assert reasons == {"a/0": FinishReason.STOP, "a/1": FinishReason.CANCELLED, "a/2": FinishReason.STOP}
    assert not engine.has_work


def test_a_step_computes_no_more_tokens_than_it_may_and_counts_them(engine: Engine) -> None:
    for index in range(10):
        engine.submit(prompt(f"a/{index}", (0, *(5 + index,) * 18, 2)))
    assert len(engine.step()) == 3
    stats = engine.stats()
    assert (stats.waiting, stats.prompt_tokens_total, stats.steps_total) == (7, 60, 1)


def test_an_id_is_used_once_and_a_closed_engine_takes_nothing(engine: Engine) -> None:
    engine.submit(prompt("a/0", (0, 5, 2)))
    with pytest.raises(InvalidPrompt, match="in use"):
        engine.submit(prompt("a/0", (0, 5, 2)))
    engine.close()
    with pytest.raises(EngineClosed):
        engine.submit(prompt("a/1", (0, 5, 2)))


def test_numbers_that_are_not_finite_are_an_error_that_may_pass(embedder: Callable[[str], Path]) -> None:
    engine, _ = load_encoder(str(embedder("bert")), task=Task.EMBED)
    network = engine._encoder.network  # type: ignore[attr-defined]
    network.embeddings.LayerNorm.bias = network.embeddings.LayerNorm.bias + float("nan")
    engine.submit(prompt("a/0", (0, 5, 2)))
    [chunk] = engine.step()
    assert (chunk.finish_reason, chunk.fault, chunk.vector) == (FinishReason.ERROR, Fault.PASSING, None)
