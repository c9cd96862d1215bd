"""Which runner an engine gets, and what it says about it."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import RotatingKVCache
from tokenizers import Tokenizer

from tests.workers.engine.architectures import load
from workers.engine import (
    DraftRefused,
    Engine,
    EngineBackend,
    Grammar,
    GrammarKind,
    InvalidPrompt,
    LoadedModel,
    ModelNotFound,
    PagedOptions,
    StoreOptions,
    UnsupportedModel,
    load_engine,
    load_model,
    make_engine,
)
from workers.engine.choosing import spare_memory_bytes
from workers.engine.vocabulary import Vocabulary

import mlx.core as mx  # isort: skip

Make = Callable[..., Any]


def open_engine(loaded: LoadedModel, backend: str, draft: LoadedModel | None = None, **options: Any) -> Engine:
    return make_engine(
        loaded,
        max_sequences=4,
        max_waiting=9,
        prefill_step_tokens=64,
        backend=EngineBackend(backend),
        paged=PagedOptions(**options),
        draft=draft,
    )


@pytest.mark.parametrize(
    ("asked", "got"), [("auto", "paged"), ("paged", "paged"), ("batch", "batch"), ("serial", "serial")]
)
def test_an_engine_says_what_computes_its_sequences(
    loaded: LoadedModel, prompt: Make, run: Make, asked: str, got: str
) -> None:
    engine = open_engine(loaded, asked, kv_blocks=50)
    assert engine.backend.startswith(f"{got}: ")
    output = run(engine, [prompt("p", max_tokens=5)])["p"]
    assert len(output.token_ids) == 5
    assert engine.stats().backend == got


def test_a_paged_engine_says_how_large_its_cache_is(loaded: LoadedModel) -> None:
    engine = open_engine(loaded, "paged", kv_blocks=50, block_tokens=8)
    assert "50 blocks of 8 tokens" in engine.backend
    assert "2 direct" in engine.backend
    stats = engine.stats()
    assert (stats.total_blocks, stats.used_blocks, stats.kv_bytes) == (50, 0, 0)
    assert engine.context_tokens == 256 == loaded.info.context_tokens
    assert open_engine(loaded, "paged", kv_blocks=10).context_tokens == 160


def test_a_model_that_cannot_be_paged_goes_to_the_next_back_end_and_says_why(model_folder: Path) -> None:
    loaded = load_model(str(model_folder))
    loaded.model.make_cache = lambda: [RotatingKVCache(max_size=64, keep=4) for _ in loaded.model.layers]  # type: ignore[no-untyped-call]
    engine = open_engine(loaded, "auto")
    assert engine.backend.startswith("batch: ")
    assert "not paged: a layer asks for a RotatingKVCache that keeps its first tokens" in engine.backend
    with pytest.raises(UnsupportedModel, match="not paged"):
        open_engine(loaded, "paged")


def test_bytes_are_turned_into_blocks(loaded: LoadedModel) -> None:
    engine = open_engine(loaded, "paged", kv_bytes=1 << 20)
    block_bytes = 2 * 2 * 16 * 16 * 2 * 4  # layers, keys and values, tokens, width, heads, float32
    assert engine.stats().total_blocks == (1 << 20) // block_bytes
    assert open_engine(loaded, "paged").stats().total_blocks == 4 * 256 // 16


def test_8_bits_hold_more_tokens_in_the_same_bytes_and_are_said(loaded: LoadedModel, prompt: Make) -> None:
    plain, rounded = (open_engine(loaded, "paged", kv_bytes=1 << 20, kv_bits=bits) for bits in (None, 8))
    assert "; keys and values in 8 bits; layers: 2 direct" in rounded.backend
    assert "bits" not in plain.backend
    block_bytes = 2 * 2 * 16 * 2 * (16 + 4)  # layers, keys and values, tokens, heads, codes and a scale
    assert rounded.stats().total_blocks == (1 << 20) // block_bytes > 3 * plain.stats().total_blocks
    rounded.submit(prompt("p", max_tokens=9))
    while not rounded.stats().kv_bytes:
        rounded.step()
    assert rounded.stats().kv_bytes == rounded.stats().used_blocks * block_bytes


def test_only_a_paged_engine_obeys_grammars(loaded: LoadedModel, prompt: Make, run: Make) -> None:
    asked = prompt("p", ignore_eos=False, max_tokens=40, grammar=Grammar(GrammarKind.REGEX, "[ab]{9}"))
    engine = open_engine(loaded, "batch")
    with pytest.raises(InvalidPrompt, match="cannot follow a grammar"):
        engine.submit(asked)
    assert set(run(open_engine(loaded, "paged", kv_blocks=50), [asked])["p"].text) <= {"a", "b"}


def test_a_prompt_that_a_process_has_read_is_found_by_the_next_one(
    model_folder: Path, prompt: Make, run: Make, tmp_path: Path
) -> None:
    """But not with other weights."""
    rng = random.Random(3)
    asked = prompt("p", token_ids=tuple(rng.randrange(250) for _ in range(100)), max_tokens=4)
    store = StoreOptions(folder=tmp_path / "store", max_bytes=1 << 26)
    said, hits = [], []
    for folder in (model_folder, model_folder):
        engine = load_engine(str(folder), paged=PagedOptions(kv_blocks=50, store=store)).engine
        said.append(run(engine, [asked])["p"].token_ids)
        engine.close()
        hits.append(engine.stats().disk_hit_blocks_total)
    assert said[0] == said[1]
    assert hits == [0, 6]


def test_other_weights_find_nothing(
    model_folder: Path, new_model: Make, prompt: Make, run: Make, tmp_path: Path
) -> None:
    store = StoreOptions(folder=tmp_path / "store", max_bytes=1 << 26)
    other = new_model(tmp_path / "other", rope_theta=20_000.0)
    for folder in (model_folder, other):
        loaded = load_model(str(folder))
        engine = open_engine(loaded, "paged", kv_blocks=50, store=store)
        run(engine, [prompt("p", token_ids=(5,) * 100, max_tokens=2)])
        engine.close()
        assert engine.stats().disk_hit_blocks_total == 0


def test_a_node_keeps_most_of_its_memory() -> None:
    assert 1 << 28 < spare_memory_bytes() < 1 << 42


def test_a_draft_model_is_named_and_its_memory_is_counted(loaded: LoadedModel) -> None:
    engine = open_engine(loaded, "auto", loaded, kv_bytes=1 << 20)
    assert f"draft model {loaded.info.path.name}" in engine.backend
    assert engine.stats().total_blocks == open_engine(loaded, "auto", kv_bytes=1 << 20).stats().total_blocks // 2


def test_a_draft_model_with_other_tokens_is_refused_and_both_are_named(
    loaded: LoadedModel, tokenizer: Tokenizer
) -> None:
    more, other = (Tokenizer.from_str(tokenizer.to_str()) for _ in range(2))
    more.add_tokens(["farm"])
    other = Tokenizer.from_str(tokenizer.to_str().replace("<|im_start|>", "<|im_begin|>"))
    for changed, why in ((more, "vocabularies of different sizes"), (other, "different tokens: .*im_start.*im_begin")):
        info = replace(loaded.info, path=Path("/models/small"))
        draft = LoadedModel(model=loaded.model, vocabulary=Vocabulary(changed), info=info)
        with pytest.raises(DraftRefused, match=why) as refused:
            open_engine(loaded, "auto", draft)
        assert str(loaded.info.path) in str(refused.value)
        assert "/models/small" in str(refused.value)


def test_logits_may_be_padded_otherwise_but_not_end_before_the_tokens(
    loaded: LoadedModel, prompt: Make, run: Make
) -> None:
    """Models of one family pad their vocabularies to different widths."""
    wider, narrower = (resized(loaded, loaded.info.vocab_size + more) for more in (16, -8))
    asked = [prompt(str(i), max_tokens=30, temperature=i % 2, seed=i) for i in range(4)]
    for target, draft in ((loaded, wider), (wider, loaded)):
        plain, drafted = (run(open_engine(target, "auto", used), asked) for used in (None, draft))
        assert {id: each.token_ids for id, each in plain.items()} == {
            id: each.token_ids for id, each in drafted.items()
        }
    with pytest.raises(DraftRefused, match="logits end before"):
        open_engine(loaded, "auto", narrower)


def resized(loaded: LoadedModel, vocab_size: int) -> LoadedModel:
    """The same model with rows of its embeddings added, which are never drawn, or taken away."""
    whole: Any = loaded.model
    network: Any = type(whole)(replace(whole.args, vocab_size=vocab_size))
    weights = dict(tree_flatten(whole.parameters()))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weight = weights[name]
        weights[name] = mx.concatenate([weight, mx.zeros((16, weight.shape[1]))])[:vocab_size]
    network.load_weights(list(weights.items()))
    return replace(loaded, model=network, info=replace(loaded.info, vocab_size=vocab_size))


@pytest.mark.parametrize("backend", ["batch", "serial"])
def test_only_the_paged_back_end_has_use_for_a_draft_model(loaded: LoadedModel, backend: str) -> None:
    with pytest.raises(DraftRefused, match=f"the {backend} back end has no use for one"):
        open_engine(loaded, backend, loaded)


def test_what_cannot_be_paged_or_rewound_has_no_draft_model_and_is_none(loaded: LoadedModel) -> None:
    for name, why in (
        ("mamba", "recurrent state cannot be rewound"),
        ("llama4", "asks for a ChunkedKVCache"),
    ):
        with pytest.raises(DraftRefused, match=f"cannot have the draft model.*({why})"):
            open_engine(load(name), "auto", load("llama"))
        with pytest.raises(DraftRefused, match=f"cannot be a draft model.*({why})"):
            open_engine(load("llama"), "auto", load(name))
    with pytest.raises(DraftRefused, match="speculation is turned off"):
        open_engine(loaded, "auto", loaded, speculates=False)


def test_a_draft_model_is_found_like_a_model(model_folder: Path) -> None:
    opened = load_engine(str(model_folder), draft_model=str(model_folder), paged=PagedOptions(kv_blocks=20))
    assert "draft model" in opened.engine.backend
    with pytest.raises(ModelNotFound):
        load_engine(str(model_folder), draft_model="/nowhere")
