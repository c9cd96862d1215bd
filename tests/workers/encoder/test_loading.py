"""What a model's files say of its use is done, or the model is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_embeddings.utils import load_model

from bench.tiny_encoders import CONTEXT_TOKENS, write_embedder, write_pooling, write_scorer
from tests.workers.encoder.conftest import vectors
from workers.encoder import load_encoder
from workers.engine import Task, UnsupportedModel, task_of

IDS = (0, 9, 14, 7, 2)


def hidden(folder: Path) -> np.ndarray:
    """The network's output for each token."""
    network = load_model(folder, path_to_repo=str(folder))
    mask = mx.ones((1, len(IDS)), dtype=mx.int32)
    return np.array(network(mx.array([IDS]), attention_mask=mask).last_hidden_state[0])


@pytest.mark.parametrize(
    ("kind", "pooling", "row"),
    [("bert", "cls_token", 0), ("xlm-roberta", "cls_token", 0), ("qwen3", "lasttoken", -1), ("bert", "lasttoken", -1)],
)
def test_one_token_stands_for_the_text_where_the_files_say_so(
    tmp_path: Path, kind: str, pooling: str, row: int
) -> None:
    folder = write_embedder(tmp_path / "model", kind, pooling=pooling)
    [found], *_ = [vectors(load_encoder(str(folder), task=Task.EMBED).engine, [IDS, IDS[:2]])[:1]]
    expected = hidden(folder)[row]
    assert np.allclose(found, expected / np.linalg.norm(expected), atol=2e-6)


def test_the_mean_of_all_tokens_is_taken_where_the_files_say_so(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path / "model", "qwen3", pooling="mean_tokens")
    found = vectors(load_encoder(str(folder), task=Task.EMBED).engine, [IDS, IDS[:2]])[0]
    expected = hidden(folder).mean(axis=0)
    assert np.allclose(found, expected / np.linalg.norm(expected), atol=2e-6)


def test_modernbert_pools_as_its_files_say(tmp_path: Path) -> None:
    found = []
    for pooling in ("mean_tokens", "cls_token"):
        folder = write_embedder(tmp_path / pooling, "modernbert", pooling=pooling)
        found.append(vectors(load_encoder(str(folder), task=Task.EMBED).engine, [IDS])[0])
    assert np.abs(found[0] - found[1]).max() > 0.01


@pytest.mark.parametrize(
    ("pooling", "more", "said"),
    [
        ({"pooling_mode_max_tokens": True}, (), "pooling max_tokens is not done"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (), "is not done"),
        ({"pooling_mode_mean_tokens": True}, ("Dense", "Normalize"), "modules.json names Dense"),
    ],
)
def test_a_model_whose_vectors_would_be_wrong_is_refused(
    tmp_path: Path, pooling: dict[str, Any], more: tuple[str, ...], said: str
) -> None:
    folder = write_embedder(tmp_path / "model", "bert")
    write_pooling(folder, pooling, *more)
    with pytest.raises(UnsupportedModel, match=said):
        load_encoder(str(folder), task=Task.EMBED)


def test_a_classifier_of_several_labels_is_no_cross_encoder(tmp_path: Path) -> None:
    folder = write_scorer(tmp_path / "model", "bert", id2label={"0": "no", "1": "yes"})
    with pytest.raises(UnsupportedModel, match="2 labels"):
        load_encoder(str(folder), task=Task.RERANK)


def test_scores_are_logits_where_the_files_say_so(tmp_path: Path) -> None:
    raw = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    [[logit]] = vectors(load_encoder(str(write_scorer(tmp_path / "a", "bert", **raw)), task=Task.RERANK).engine, [IDS])
    [[score]] = vectors(load_encoder(str(write_scorer(tmp_path / "b", "bert")), task=Task.RERANK).engine, [IDS])
    assert np.isclose(score, 1 / (1 + np.exp(-logit)), atol=1e-6)


def test_what_a_model_is_for_is_seen_in_its_files(tmp_path: Path) -> None:
    assert task_of(write_embedder(tmp_path / "a", "bert", pooling=None)) is Task.EMBED
    assert task_of(write_embedder(tmp_path / "b", "qwen3", pooling="lasttoken")) is Task.EMBED
    assert task_of(write_embedder(tmp_path / "c", "qwen3", pooling=None)) is Task.GENERATE
    assert task_of(write_scorer(tmp_path / "d", "modernbert")) is Task.RERANK


def test_the_longest_input_is_what_the_model_was_made_for(tmp_path: Path) -> None:
    folder = write_embedder(tmp_path / "xlm", "xlm-roberta")
    assert load_encoder(str(folder), task=Task.EMBED).info.context_tokens == CONTEXT_TOKENS
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40}))
    assert load_encoder(str(folder), task=Task.EMBED).info.context_tokens == 40


def test_shorter_vectors_are_allowed_where_the_model_was_trained_for_them(tmp_path: Path) -> None:
    plain = write_embedder(tmp_path / "a", "bert")
    any_number = write_embedder(tmp_path / "b", "bert", is_matryoshka=True)
    some = write_embedder(tmp_path / "c", "bert", matryoshka_dimensions=[8, 16])
    found = [load_encoder(str(folder), task=Task.EMBED).info.short_dimensions for folder in (plain, any_number, some)]
    assert found == [None, (), (8, 16)]


@pytest.mark.parametrize("module", ["workers.encoder", "workers.encoder_process"])
def test_a_fast_blas_is_there_before_mlx_is(module: str) -> None:
    code = f"import sys, {module}; found = list(sys.modules); "
    code += "print(found.index('workers.engine.backend') < found.index('mlx.core'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
