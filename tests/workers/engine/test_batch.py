"""The runners beneath the engine: recurrent architectures, the serial fallback, and mlx-lm's habits we rely on."""

import random
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map_with_path
from mlx_lm.generate import generate_step
from mlx_lm.models import jamba, mamba

from workers.engine import LoadedModel, Prompt, SamplingParams, StopRule
from workers.engine.batch import BatchRunner, is_batchable
from workers.engine.engine import SequenceEngine
from workers.engine.sequence import Limits, Sequence
from workers.engine.serial import SerialRunner
from workers.engine.text import TextStream

VOCAB = 100
MAMBA = {
    "model_type": "mamba",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "state_size": 8,
    "num_hidden_layers": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 8,
}
JAMBA = {
    "model_type": "jamba",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_layer_offset": 1,
    "attn_layer_period": 2,
    "expert_layer_offset": 1,
    "expert_layer_period": 2,
    "mamba_d_conv": 4,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_dt_rank": 8,
    "mamba_proj_bias": False,
    "mamba_conv_bias": True,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


def recurrent(module: Any, config: dict[str, Any]) -> Any:
    def weight(name: str, old: mx.array) -> mx.array:
        if old.ndim < 2 or "A_log" in name or "conv" in name:
            return old
        return mx.random.normal(old.shape, scale=0.5 if "embed" in name else 2 / float(old.shape[-1]) ** 0.5)

    mx.random.seed(3)
    network = module.Model(module.ModelArgs.from_dict(config))
    network.update(tree_map_with_path(weight, network.parameters()))
    network.eval()
    return network


def greedy(id: str, ids: list[int]) -> Sequence:
    stop = StopRule(max_tokens=100, ignore_eos=True)
    prompt = Prompt(id=id, token_ids=tuple(ids), sampling=SamplingParams(temperature=0), stop=stop)
    return Sequence(prompt, Limits(VOCAB, None, frozenset()), lambda stops: TextStream(Silent(), stops))


class Silent:
    """A detokenizer for rows whose text nobody reads."""

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def batch_runner(loaded: LoadedModel, rows: int) -> BatchRunner:
    return BatchRunner(loaded.model, vocab_size=loaded.info.vocab_size, capacity=rows, prefill_step_tokens=16)


def serial_runner(loaded: LoadedModel) -> SerialRunner:
    return SerialRunner(loaded.model, vocab_size=loaded.info.vocab_size, prefill_step_tokens=16)


@pytest.mark.parametrize(("module", "config"), [(mamba, MAMBA), (jamba, JAMBA)])
def test_recurrent_models_say_in_a_batch_what_they_say_alone(module: Any, config: dict[str, Any]) -> None:
    network = recurrent(module, config)
    assert is_batchable(network, config["model_type"])
    rng = random.Random(2)
    prompts = {str(i): [rng.randrange(VOCAB) for _ in range(length)] for i, length in enumerate((1, 3, 8, 9, 20))}
    expected = {id: [int(t) for t, _ in generate_step(mx.array(p), network, max_tokens=8)] for id, p in prompts.items()}
    runner = BatchRunner(network, vocab_size=VOCAB, capacity=8, prefill_step_tokens=8)
    for id, ids in prompts.items():
        runner.insert(greedy(id, ids))
    said: dict[str, list[int]] = {id: [] for id in prompts}
    while any(len(tokens) < 8 for tokens in said.values()):
        for token in runner.step():
            said[token.row_id].append(token.token)
        runner.remove([id for id, tokens in said.items() if len(tokens) == 8])
    assert said == expected
    assert len({tuple(tokens) for tokens in expected.values()}) == len(prompts)


def test_the_serial_runner_says_what_the_batch_says(loaded: LoadedModel, prompt: Any, run: Any) -> None:
    prompts = [
        prompt("greedy", max_tokens=9),
        prompt("drawn", temperature=1.0, seed=4, logprobs=2, max_tokens=9),
        prompt("shaped", "the thin", temperature=0.8, top_k=9, frequency_penalty=0.5, logit_bias=((40, 2.0),)),
        prompt("long", "in the attic " * 9, strings=("e",), temperature=1.0, min_tokens=4),
    ]
    serial = SequenceEngine(loaded, serial_runner(loaded), max_waiting=9)
    batch = SequenceEngine(loaded, batch_runner(loaded, 4), max_waiting=9)
    one_by_one, together = run(serial, prompts), run(batch, prompts)
    for id, output in one_by_one.items():
        assert (output.token_ids, output.text) == (together[id].token_ids, together[id].text)
        assert [p.token_id for p in output.logprobs] == [p.token_id for p in together[id].logprobs]
    assert serial.stats().kv_bytes == 0


def test_a_serial_row_can_be_cancelled_and_makes_room(loaded: LoadedModel, prompt: Any) -> None:
    engine = SequenceEngine(loaded, serial_runner(loaded), max_waiting=9)
    engine.submit(prompt("first"))
    engine.submit(prompt("second", max_tokens=2))
    assert [chunk.prompt_id for chunk in engine.step()] == ["first"]
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    engine.cancel("first")
    assert {chunk.prompt_id for chunk in engine.step()} == {"first", "second"}


@pytest.mark.parametrize("model_type", ["llama4", "longcat_flash_ngram"])
def test_architectures_that_are_wrong_in_batches_are_not_batched(loaded: LoadedModel, model_type: str) -> None:
    assert is_batchable(loaded.model, "qwen3")
    assert not is_batchable(loaded.model, model_type)


def test_the_generator_holds_no_wired_memory(loaded: LoadedModel) -> None:
    runner = batch_runner(loaded, 2)
    assert runner._generator._old_wired_limit is None
