"""A model that sees says what it says to mlx-vlm alone, token for token, whoever else is being served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from scheduler.image_tokens import ImageRule
from scheduler.images import read_head
from tests.pictures import picture
from tests.workers.vision.conftest import FAMILIES, Alone, marked
from workers.engine import Engine, ModelInfo, Prompt, SamplingParams, StopRule
from workers.vision import load_seeing

CASES: list[tuple[list[str], list[bytes]]] = [
    (["What is this? ", " Say it."], [picture(1)]),
    (["", " and ", " differ: how?"], [picture(2, 200, 60, "JPEG"), picture(3, 33, 170, "WEBP", lossless=True)]),
    (["no image at all"], []),
    (["a", "b"], [picture(4, 5, 5)]),
]
TOKENS = 12


def prompt(name: str, info: ModelInfo, text: str, images: Sequence[bytes], resumed: Sequence[int] = ()) -> Prompt:
    """As the API would write it."""
    assert info.image_rule is not None
    rule = ImageRule.of(info.image_rule)
    written = rule.written(text, [read_head(data).shown_size for data in images])
    assert written is not None
    ids = Tokenizer.from_str(info.tokenizer_json).encode(written, add_special_tokens=False).ids
    stop = StopRule(max_tokens=TOKENS, ignore_eos=True)
    greedy = SamplingParams(temperature=0)
    return Prompt(
        id=name, token_ids=tuple(ids), sampling=greedy, stop=stop, images=tuple(images), resume_ids=tuple(resumed)
    )


def run(engine: Engine, prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """All together; the tokens of each."""
    said: dict[str, list[int]] = {prompt.id: [] for prompt in prompts}
    for each in prompts:
        engine.submit(each)
    while engine.has_work:
        for chunk in engine.step():
            assert chunk.error is None, chunk.error
            said[chunk.prompt_id] += chunk.token_ids
    return said


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_mlx_vlms_own_in_any_company_and_when_resumed(
    family: str, seeing_folder: Callable[[str], Path]
) -> None:
    folder = seeing_folder(family)
    alone = Alone(folder)
    texts = [marked(family, texts) for texts, _ in CASES]
    expected = [alone.tokens(text, images, TOKENS) for text, (_, images) in zip(texts, CASES, strict=True)]
    assert len({tuple(answer) for answer in expected}) == len(CASES)
    engine, info = load_seeing(str(folder), max_sequences=3, step_tokens=16)
    prompts = [prompt(f"a/{i}", info, text, CASES[i][1]) for i, text in enumerate(texts)]
    for i, text in enumerate(texts):
        assert list(prompts[i].token_ids) == alone.prompt(text, CASES[i][1])["input_ids"][0].tolist()
    together = run(engine, prompts)
    assert [together[f"a/{i}"] for i in range(len(CASES))] == expected
    resumed = [
        prompt(f"b/{i}", info, text, CASES[i][1], resumed=expected[i][: 2 * i + 1]) for i, text in enumerate(texts)
    ]
    rest = run(engine, resumed)
    assert [expected[i][: 2 * i + 1] + rest[f"b/{i}"] for i in range(len(CASES))] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_come_and_go_do_not_change_each_other(family: str, seeing_folder: Callable[[str], Path]) -> None:
    engine, info = load_seeing(str(seeing_folder(family)), max_sequences=4, step_tokens=24)
    prompts = []
    for i, tokens in enumerate((30, 3, 21, 1, 14, 26, 8)):
        texts, images = CASES[i % len(CASES)]
        written = prompt(f"a/{i}", info, marked(family, [texts[0] + "?" * 9 * i, *texts[1:]]), images)
        prompts.append(replace(written, stop=StopRule(max_tokens=tokens, ignore_eos=True)))
    alone = {name: said for each in prompts for name, said in run(engine, [each]).items()}
    assert run(engine, prompts) == alone
    assert run(engine, prompts[::-1]) == alone
    assert engine.stats().kv_bytes == 0
