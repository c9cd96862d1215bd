"""The tiny models themselves: a comparison over them proves nothing unless every token of the context matters."""

import ast
import importlib.util
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.tiny_configs import ARCHITECTURES as SURVEYED
from tests.workers.engine.architectures import ARCHITECTURES, load, reference
from workers.engine import Prompt

Make = Callable[..., Prompt]
PROMPT_TOKENS = 24


def random_ids(seed: int, count: int = PROMPT_TOKENS) -> tuple[int, ...]:
    dice = random.Random(seed)
    return tuple(dice.randrange(1, 160) for _ in range(count))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_different_prompts_get_different_answers_that_are_no_echo(name: str, prompt: Make) -> None:
    answers = [reference(name).tokens(prompt(token_ids=random_ids(seed), max_tokens=10)) for seed in range(3)]
    assert len({tuple(answer[:4]) for answer in answers}) == 3
    assert sum(len(set(answer)) for answer in answers) >= 10


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_another_first_token_and_another_middle_token_change_the_answer(name: str, prompt: Make) -> None:
    changed = {0: 0, PROMPT_TOKENS // 2: 0}
    for seed in range(4):
        ids = random_ids(seed)
        answer = reference(name).tokens(prompt(token_ids=ids, max_tokens=10))
        for at in changed:
            other = (*ids[:at], ids[at] % 159 + 1, *ids[at + 1 :])
            changed[at] += reference(name).tokens(prompt(token_ids=other, max_tokens=10)) != answer
    assert min(changed.values()) >= 3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_wrong_token_is_no_tie(name: str, prompt: Make) -> None:
    asked = prompt(token_ids=random_ids(1), max_tokens=6)
    said = reference(name).tokens(asked)
    assert reference(name).differences(asked, said) == []
    wrong = [*said[:3], (said[3] + 1) % 160, *said[4:]]
    assert reference(name).differences(asked, wrong) != []
    assert reference(name).differences(asked, [*said, 5]) != []


def test_a_tie_is_proven_by_the_scores_of_its_tokens(prompt: Make) -> None:
    asked = prompt(token_ids=random_ids(2), max_tokens=4)
    said = reference("llama").tokens(asked)
    assert reference("llama").is_tie(asked, tuple(said[:2]), said[2])
    network = load("llama").model
    rows = network.lm_head.weight
    other = (said[2] + 1) % 160
    try:  # two tokens with all but the same row of the output layer are a tie wherever one of them wins
        network.lm_head.weight = rows.at[other].add(rows[said[2]] * (1 + 1e-7) - rows[other])
        assert reference("llama").is_tie(asked, tuple(said[:2]), other)
        assert not reference("llama").is_tie(asked, tuple(said[:2]), (other + 1) % 160)
    finally:
        network.lm_head.weight = rows


def test_a_seeded_answer_is_the_same_again_and_another_seed_gives_another(prompt: Make) -> None:
    asked = [prompt(token_ids=random_ids(3), max_tokens=8, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    answers = [reference("qwen3").tokens(each) for each in asked]
    assert answers[0] == answers[1] != answers[2]


def test_a_resumed_answer_goes_on_as_the_whole_one(prompt: Make) -> None:
    asked = prompt(token_ids=random_ids(4), max_tokens=9, temperature=0.9, seed=5, frequency_penalty=0.5)
    whole = reference("glm4").tokens(asked)
    cut = prompt(
        token_ids=asked.token_ids, max_tokens=9, temperature=0.9, seed=5, frequency_penalty=0.5,
        resume_ids=tuple(whole[:4]),
    )  # fmt: skip
    assert reference("glm4").tokens(cut) == whole


def test_the_survey_of_architectures_names_all_that_mlx_lm_has() -> None:
    found = importlib.util.find_spec("mlx_lm.models")
    assert found is not None
    assert found.origin is not None
    shipped = set()
    for file in Path(found.origin).parent.glob("*.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        names = {node.name for node in body if isinstance(node, ast.ClassDef)}
        names |= {each.asname or each.name for node in body if isinstance(node, ast.ImportFrom) for each in node.names}
        if {"Model", "ModelArgs"} <= names:
            shipped.add(file.stem)
    assert len(shipped) > 100
    assert set(SURVEYED) == shipped
