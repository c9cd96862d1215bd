"""Rows with different adapters and without one share a batch; each says what mlx-lm says with its adapter alone."""

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bench.adapters import write_adapter
from bench.tiny_models import load_tiny, tiny_model
from tests.workers.engine.adapted_models import ADAPTED, network_of
from tests.workers.engine.architectures import load, reference
from tests.workers.engine.courses import Make, Sizes, draw_sizes, ids, open_engine, play, prompts, run
from tests.workers.engine.test_equality import RashSpeculation
from workers.engine import EngineBackend, InvalidPrompt, PagedOptions, Prompt, UnsupportedModel, make_engine
from workers.engine.adapters import attach_adapters
from workers.engine.choosing import StoreOptions

EXAMPLES = int(os.environ.get("FARM_TEST_EXAMPLES", "2"))
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
NAMES = (None, "a", "b")
ROOMY = Sizes(rows=8, chunk_tokens=64, block_tokens=8, blocks=200)


def adapted(asked: Sequence[Prompt], dice: random.Random) -> list[Prompt]:
    return [replace(prompt, adapter=dice.choice(NAMES)) for prompt in asked]


@pytest.mark.parametrize("name", ADAPTED)
@settings(max_examples=EXAMPLES, deadline=None, phases=PHASES)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_row_says_what_mlx_lm_says_with_its_adapter_alone(name: str, prompt: Make, seed: int) -> None:
    dice = random.Random(seed)
    sizes = draw_sizes(dice)
    engine = open_engine(name, "paged", sizes)
    course = play(engine, adapted(dice.sample(prompts(prompt), 8), dice), dice)
    assert course.differences(name) == [], sizes
    assert engine.stats().used_blocks == 0


@pytest.mark.parametrize("name", ["adapted llama", "adapted qwen3_moe"])
@settings(max_examples=EXAMPLES, deadline=None, phases=PHASES)
@given(seed=st.integers(0, 2**32 - 1))
def test_guesses_at_coming_tokens_change_nothing(name: str, prompt: Make, seed: int) -> None:
    dice = random.Random(seed)
    engine = open_engine(name, "paged", draw_sizes(dice))
    engine._runner._speculation = RashSpeculation(name, dice)  # type: ignore[attr-defined]
    course = play(engine, adapted(dice.sample(prompts(prompt), 7), dice), dice)
    assert course.differences(name) == []
    assert sum(engine.stats().drafted_tokens_total.values()) > 0


def test_rows_that_lost_their_blocks_go_on_with_their_adapter(prompt: Make) -> None:
    dice = random.Random(3)
    asked = [
        prompt(str(i), token_ids=ids(dice, 20), max_tokens=24, seed=i, temperature=i % 2, adapter=NAMES[i % 3])
        for i in range(6)
    ]
    engine = open_engine("adapted llama", "paged", Sizes(rows=6, chunk_tokens=16, block_tokens=4, blocks=40))
    assert run(engine, asked).differences("adapted llama") == []
    assert engine.stats().preemptions_total > 0


def test_adapters_change_what_is_said(prompt: Make) -> None:
    """Or the comparisons above would prove nothing."""
    asked = prompt(token_ids=ids(random.Random(1), 12))
    said = {tuple(reference("adapted llama").tokens(replace(asked, adapter=name))) for name in NAMES}
    assert len(said) == len(NAMES)


def test_a_prefix_is_shared_by_rows_of_one_adapter_only(prompt: Make) -> None:
    """Without an adapter likewise; twice through all of them, the second time everything is found."""
    base = ids(random.Random(4), 40)
    engine = open_engine("adapted llama", "paged", ROOMY)
    hits = []
    for turn in range(2):
        for name in NAMES:
            before = engine.stats().prefix_hit_tokens_total
            course = run(engine, [prompt(f"{turn}{name}", token_ids=base, max_tokens=8, adapter=name)])
            assert course.differences("adapted llama") == []
            hits.append(engine.stats().prefix_hit_tokens_total - before)
    assert hits == [0, 0, 0, 32, 32, 32]


def test_a_prompt_shorter_than_a_block_is_shared_by_rows_of_one_adapter_only(prompt: Make) -> None:
    """Such an end of a prompt is copied from a row that runs."""
    base = ids(random.Random(8), 7)
    engine = open_engine("adapted llama", "paged", ROOMY)
    assert run(engine, [prompt(str(n), token_ids=base, adapter=n) for n in NAMES]).differences("adapted llama") == []
    assert engine.stats().prefix_hit_tokens_total == 0


def test_a_prefix_on_disk_belongs_to_what_an_adapter_holds_and_not_to_its_name(prompt: Make, tmp_path: Path) -> None:
    base = ids(random.Random(5), 40)
    one = write_adapter(tmp_path / "one", network_of("adapted llama"), seed=1)
    two = write_adapter(tmp_path / "two", network_of("adapted llama"), seed=2)
    (tmp_path / "config.json").write_text("{}")
    store = StoreOptions(folder=tmp_path / "blocks", max_bytes=1 << 30)
    plain = load("llama")
    info = replace(plain.info, path=tmp_path)
    said, hits = [], []
    for name, folder in (("x", one), ("x", two), ("y", one)):
        network = network_of("adapted llama")
        loaded = replace(plain, model=network, info=info, adapters=attach_adapters(network, {name: folder}))
        engine = make_engine(
            loaded,
            max_sequences=2,
            max_waiting=4,
            prefill_step_tokens=64,
            backend=EngineBackend.PAGED,
            paged=PagedOptions(block_tokens=8, kv_blocks=40, store=store),
        )
        course = run(engine, [prompt(name, token_ids=base, max_tokens=8, adapter=name)])
        engine.close()
        said.append(course.said[name])
        hits.append(engine.stats().disk_hit_blocks_total)
    assert hits == [0, 0, 4]
    assert said[0] == said[2] != said[1]


def test_one_row_at_a_time_has_adapters_too(prompt: Make) -> None:
    dice = random.Random(6)
    engine = open_engine("adapted llama", "serial", ROOMY)
    assert play(engine, adapted(prompts(prompt)[:6], dice), dice).differences("adapted llama") == []


def test_a_back_end_that_cannot_have_adapters_is_refused(prompt: Make) -> None:
    with pytest.raises(UnsupportedModel, match="not batch: BatchGenerator cannot be told which row has which adapter"):
        open_engine("adapted llama", "batch", ROOMY)


def test_a_model_that_cannot_be_paged_has_its_adapters_one_row_at_a_time(prompt: Make, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, tiny_model("deepseek_v32"), keys=["self_attn.o_proj"])
    plain = load_tiny("deepseek_v32")
    loaded = replace(plain, adapters=attach_adapters(plain.model, {"x": folder}))
    engine = make_engine(loaded, max_sequences=2, max_waiting=4, prefill_step_tokens=64)
    assert engine.backend.startswith("serial:")
    assert "not batch: BatchGenerator cannot be told" in engine.backend
    content = ids(random.Random(7), 12)
    asked = [prompt(n, token_ids=content, adapter=adapter, max_tokens=8) for n, adapter in (("p", None), ("q", "x"))]
    said = run(engine, asked).said
    assert said["p"] != said["q"]


@pytest.mark.parametrize(("name", "known"), [("adapted llama", "'a', 'b'"), ("llama", "")])
@pytest.mark.parametrize("backend", ["paged", "serial"])
def test_an_adapter_that_was_not_loaded_is_refused(name: str, known: str, backend: str, prompt: Make) -> None:
    engine = open_engine(name, backend, ROOMY)
    with pytest.raises(InvalidPrompt, match=rf"no adapter 'c' was loaded \(there are: \[{known}\]\)"):
        engine.submit(prompt(adapter="c"))
    assert not engine.has_work
