"""Rows of a model that sees come and go at any time; what is wrong with one of them is no other's matter."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bench.tiny_models import load_tiny
from scheduler.image_tokens import ImageRule
from tests.pictures import picture, png_of_size
from tests.workers.vision.conftest import marked
from tests.workers.vision.test_equality import TOKENS, prompt, run
from workers.engine import (
    Engine,
    Fault,
    FinishReason,
    Grammar,
    GrammarKind,
    InvalidPrompt,
    LoadedEngine,
    SamplingParams,
    StopRule,
    UnsupportedModel,
    make_engine,
)
from workers.vision import load_seeing
from workers.vision.loading import try_rule
from workers.vision.seeing import Seeing

FAMILY = "qwen2_5_vl"
TEXT = marked(FAMILY, ["See: ", "!"])


@pytest.fixture
def loaded(seeing_folder: Callable[[str], Path]) -> LoadedEngine:
    return load_seeing(str(seeing_folder(FAMILY)), max_sequences=2, step_tokens=8)


def finish(engine: Engine) -> dict[str, tuple[FinishReason, Fault]]:
    ends = {}
    while engine.has_work:
        for chunk in engine.step():
            if chunk.finish_reason is not None:
                ends[chunk.prompt_id] = (chunk.finish_reason, chunk.fault)
    return ends


def test_a_bad_image_fails_its_own_prompt_and_is_the_callers_fault(loaded: LoadedEngine) -> None:
    engine, info = loaded
    good = prompt("a/0", info, TEXT, [picture(1)])
    alone = run(engine, [good])
    for place, data in enumerate([png_of_size(120, 80), picture(1)[:900]]):
        engine.submit(prompt(f"bad/{place}", info, TEXT, [data]))
    text = marked(FAMILY, ["<|vision_start|><|video_pad|> ", ""])
    engine.submit(prompt("bad/2", info, text, [picture(2)]))
    engine.submit(good)
    ends: dict[str, tuple[FinishReason, Fault]] = {}
    tokens: list[int] = []
    while engine.has_work:
        for chunk in engine.step():
            tokens += chunk.token_ids if chunk.prompt_id == "a/0" else ()
            if chunk.finish_reason is not None:
                ends[chunk.prompt_id] = (chunk.finish_reason, chunk.fault)
    assert tokens == alone["a/0"]
    assert ends.pop("a/0")[0] is FinishReason.LENGTH
    assert ends == {f"bad/{place}": (FinishReason.ERROR, Fault.PROMPT) for place in range(3)}


def test_images_that_do_not_belong_to_the_prompt_are_refused(loaded: LoadedEngine) -> None:
    engine, info = loaded
    whole = prompt("a/0", info, TEXT, [picture(1)])
    other = prompt("a/1", info, TEXT, [picture(1, 200, 200)])
    for place, images in enumerate([other.images, (), whole.images * 2]):
        engine.submit(replace(whole, id=f"b/{place}", images=images))
    assert finish(engine) == {f"b/{place}": (FinishReason.ERROR, Fault.PROMPT) for place in range(3)}


def test_rows_are_cancelled_in_line_while_they_are_read_and_while_they_speak(loaded: LoadedEngine) -> None:
    engine, info = loaded
    prompts = [prompt(f"a/{i}", info, TEXT, [picture(i, 200, 100)]) for i in range(4)]
    expected = run(engine, [prompts[0]])
    for each in prompts:
        engine.submit(each)
    assert engine.step() == []
    assert list(engine.stats().prefilling) == ["a/0"]
    engine.cancel("a/3")
    engine.cancel("a/1")
    said: list[int] = []
    cancelled = []
    while engine.has_work:
        for chunk in engine.step():
            said += chunk.token_ids if chunk.prompt_id == "a/0" else ()
            if chunk.finish_reason is FinishReason.CANCELLED:
                cancelled.append(chunk.prompt_id)
            if chunk.prompt_id == "a/2":
                engine.cancel("a/2")
    assert said == expected["a/0"]
    assert sorted(cancelled) == ["a/1", "a/2", "a/3"]
    assert engine.stats().running == engine.stats().waiting == engine.stats().kv_bytes == 0


def test_sampling_is_seeded_and_logprobs_are_of_the_drawn_tokens(loaded: LoadedEngine) -> None:
    engine, info = loaded
    greedy = prompt("a/0", info, TEXT, [picture(1)])
    sampling = SamplingParams(temperature=0.9, seed=5, repetition_penalty=1.3, presence_penalty=0.5)
    for name in ("b/0", "b/1"):
        engine.submit(replace(greedy, id=name, sampling=sampling, logprobs=2))
    drawn: dict[str, list[int]] = {"b/0": [], "b/1": []}
    told: dict[str, list[int]] = {"b/0": [], "b/1": []}
    while engine.has_work:
        for chunk in engine.step():
            told[chunk.prompt_id] += [item.token_id for item in chunk.logprobs or ()]
            drawn[chunk.prompt_id] += chunk.token_ids
    assert drawn == told
    assert drawn["b/0"] == drawn["b/1"] != run(engine, [greedy])["a/0"]
    assert len(drawn["b/0"]) == TOKENS
    [rest] = run(engine, [replace(greedy, id="c/0", sampling=sampling, resume_ids=tuple(drawn["b/0"][:5]))]).values()
    assert drawn["b/0"][5:] == rest


def test_a_mark_of_an_image_that_was_said_stands_for_no_image(loaded: LoadedEngine) -> None:
    engine, info = loaded
    assert info.image_rule is not None
    mark = int(info.image_rule["token_id"])
    whole = prompt("a/0", info, TEXT, [picture(1)])
    rest = run(engine, [replace(whole, resume_ids=(mark,) * 4)])["a/0"]
    again = run(engine, [replace(whole, id="a/1", resume_ids=(mark,) * 4 + tuple(rest[:3]))])["a/1"]
    assert len(rest) == TOKENS - 4
    assert again == rest[3:]


def test_a_grammar_binds_what_is_said_of_an_image(loaded: LoadedEngine) -> None:
    engine, info = loaded
    bound = replace(
        prompt("a/0", info, TEXT, [picture(1)]),
        grammar=Grammar(GrammarKind.REGEX, "[0-9]{4}-(cat|dog)"),
        stop=StopRule(max_tokens=40),
        logprobs=0,
    )
    free = prompt("a/1", info, TEXT, [picture(1)])
    expected = run(engine, [free])["a/1"]
    said = ""
    drawn: list[int] = []
    other: list[int] = []
    engine.submit(bound)
    engine.submit(free)
    while engine.has_work:
        for chunk in engine.step():
            assert chunk.error is None
            if chunk.prompt_id == "a/1":
                other += chunk.token_ids
            else:
                said += chunk.text
                drawn += chunk.token_ids
    assert re.fullmatch("[0-9]{4}-(cat|dog)", said)
    assert other == expected
    resumed = replace(bound, id="a/2", resume_ids=tuple(drawn[:5]))
    assert drawn[:5] + run(engine, [resumed])["a/2"] == drawn


def test_a_text_model_takes_no_images(loaded: LoadedEngine) -> None:
    engine = make_engine(load_tiny("llama"), max_sequences=2, max_waiting=4, prefill_step_tokens=64)
    with pytest.raises(InvalidPrompt, match="takes no images"):
        engine.submit(prompt("a/0", loaded.info, TEXT, [picture(1)]))


def test_a_processor_that_counts_otherwise_is_not_served(seeing_folder: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedModel, match="those that see"):
        load_seeing(str(Path("workers/demo")), max_sequences=1)

    class Odd:
        tokenizer = staticmethod(lambda text, add_special_tokens: type("Ids", (), {"input_ids": [1]}))

        def __call__(self, text: list[str], images: list[Image.Image], add_special_tokens: bool) -> dict[str, object]:
            return {"input_ids": type("Array", (), {"tolist": lambda self: [[2]]})()}

    with pytest.raises(ValueError, match="not known"):
        try_rule(Seeing(None, Odd(), ImageRule(marker="<i>", token="<i>", token_id=1, tokens=2)))
