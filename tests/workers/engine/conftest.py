"""Tiny random models, written as loadable folders, and what the engine's tests do with them."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.models import llama, qwen3
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from workers.engine import (
    Chunk,
    Engine,
    EngineBackend,
    FinishReason,
    LoadedModel,
    PagedOptions,
    Prompt,
    SamplingParams,
    StopRule,
    load_model,
    make_engine,
)

SPECIAL = ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|tool_call_start|>")
MARKS = ("<think>", "</think>")
TOOLS = "<tool_call> tool_call.name"  # by which mlx-lm recognises a template with JSON tool calls
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
ARCHITECTURES: dict[str, Any] = {"qwen3": qwen3, "llama": llama}


def byte_tokenizer() -> Tokenizer:
    """One token per byte (ids 0 to 255 in the alphabet's order), a few merges, four special tokens, two marks."""
    vocabulary = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("ð", "Ł"), ("i", "n")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False) for token in MARKS])
    return tokenizer


def _mixing_weight(name: str, weight: mx.array) -> mx.array:
    """Random weights under which the next token depends on the whole context; plain ones make models echo."""
    if weight.ndim < 2:
        return weight
    if "embed" in name or "lm_head" in name:
        return mx.random.normal(weight.shape, scale=0.5)
    gain = 3.0 if "v_proj" in name or "o_proj" in name else 2.0
    return mx.random.normal(weight.shape, scale=gain / float(weight.shape[-1]) ** 0.5)


def write_model(folder: Path, architecture: str = "qwen3", **changes: Any) -> Path:
    tokenizer = byte_tokenizer()
    size = tokenizer.get_vocab_size()
    config: dict[str, Any] = {**TINY, "model_type": architecture, "vocab_size": size, **changes}
    module = ARCHITECTURES[architecture]
    network = module.Model(module.ModelArgs.from_dict(config))
    mx.random.seed(11)
    weights = tree_map_with_path(_mixing_weight, network.parameters())
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(weights)), metadata={"format": "mlx"})
    config["eos_token_id"] = tokenizer.token_to_id("<|im_end|>")
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}{# " + TOOLS + " #}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@dataclass
class Output:
    """Everything that one sequence emitted."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    last: Chunk | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        return None if self.last is None else self.last.finish_reason


def collect(outputs: dict[str, Output], chunks: Iterable[Chunk]) -> dict[str, Output]:
    for chunk in chunks:
        output = outputs.setdefault(chunk.prompt_id, Output())
        assert output.last is None, "a sequence spoke after its last chunk"
        output.token_ids += chunk.token_ids
        output.text += chunk.text
        output.logprobs += chunk.logprobs or ()
        if chunk.finish_reason is not None:
            output.last = chunk
    return outputs


def run_engine(engine: Engine, prompts: Iterable[Prompt]) -> dict[str, Output]:
    """Submit all at once and step until nothing is left."""
    for prompt in prompts:
        engine.submit(prompt)
    outputs: dict[str, Output] = {}
    while engine.has_work:
        collect(outputs, engine.step())
    return outputs


def build_prompt(id: str = "p", text: str = "the rain in", **changes: Any) -> Prompt:
    """A greedy prompt that ends by length only; `changes` go to whichever part has a field of that name.

    `token_ids` are the prompt's, `stop_ids` the stop rule's.
    """
    token_ids = changes.pop("token_ids", None) or tuple(byte_tokenizer().encode(text).ids)
    stopping = {"max_tokens": 24, "ignore_eos": True, "token_ids": changes.pop("stop_ids", ())}
    parts: dict[type, dict[str, Any]] = {SamplingParams: {"temperature": 0.0}, StopRule: stopping, Prompt: {}}
    for name, value in changes.items():
        owner = next((part for part in (SamplingParams, StopRule) if name in part.__slots__), Prompt)
        parts[owner][name] = value
    sampling, stop = SamplingParams(**parts[SamplingParams]), StopRule(**parts[StopRule])
    return Prompt(id=id, token_ids=token_ids, sampling=sampling, stop=stop, **parts[Prompt])


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "qwen3")


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> LoadedModel:
    return load_model(str(model_folder))


@pytest.fixture(scope="session", params=["qwen3", "llama"])
def each_loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = write_model(tmp_path_factory.mktemp("models") / request.param, request.param)
    return load_model(str(folder))


@pytest.fixture(params=[EngineBackend.PAGED, EngineBackend.BATCH])
def fresh(request: pytest.FixtureRequest) -> Callable[..., Engine]:
    """Makes engines of either kind; `fresh(loaded, rows)`."""

    def build(loaded: LoadedModel, rows: int = 8, *, waiting: int = 100, step_tokens: int = 16) -> Engine:
        return make_engine(
            loaded,
            max_sequences=rows,
            max_waiting=waiting,
            prefill_step_tokens=step_tokens,
            backend=request.param,
            paged=PagedOptions(kv_blocks=160),
        )

    return build


@pytest.fixture
def engine(loaded: LoadedModel, fresh: Callable[..., Engine]) -> Engine:
    return fresh(loaded)


@pytest.fixture(scope="session")
def prompt() -> Callable[..., Prompt]:
    return build_prompt


@pytest.fixture(scope="session")
def run() -> Callable[[Engine, Iterable[Prompt]], dict[str, Output]]:
    return run_engine


@pytest.fixture(scope="session")
def gather() -> Callable[[dict[str, Output], Iterable[Chunk]], dict[str, Output]]:
    return collect


@pytest.fixture(scope="session")
def new_model() -> Callable[..., Path]:
    return write_model
