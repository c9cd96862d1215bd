"""The arithmetic behind `python -m bench.engine`: verdicts, files, and what counts as an equal output."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from workers.engine import load_model

from bench.engine_measure import compare  # isort: skip  (MLX comes after the BLAS)
from bench.engine_report import Goal, Result, picture, save  # isort: skip
from bench.engine_sides import FixedLoop, Request, engine_side  # isort: skip
from bench.models import Shape, build_qwen3  # isort: skip

AT_LEAST_TWO = Goal(2.0)
AT_MOST_A_QUARTER = Goal(0.25, at_least=False)
TINY = Shape(hidden=32, layers=2, intermediate=64, heads=2, kv_heads=1, head_dim=16, vocab=300)


def figure(runs: list[float], goal: Goal | None = AT_LEAST_TWO, outputs: str = "") -> Result:
    return Result(scenario="some", model="8m", goal=goal, runs=runs, outputs=outputs)


@pytest.mark.parametrize(
    ("goal", "ratio", "reached"),
    [(AT_LEAST_TWO, 2.0, True), (AT_LEAST_TWO, 1.99, False), (AT_MOST_A_QUARTER, 0.2, True), (None, 0.0, True)],
)
def test_a_goal_is_reached_from_its_right_side(goal: Goal | None, ratio: float, reached: bool) -> None:
    assert figure([ratio], goal).reached is reached


def test_the_ratio_is_the_median_of_the_runs_and_wrong_outputs_never_reach_a_goal() -> None:
    assert figure([1.0, 9.0, 3.0]).ratio == 3.0
    assert not figure([9.0], outputs="15/16 equal, 0 at a tie, logit gap 3.0e-01 MISMATCH").reached


def test_rows_that_were_not_measured_again_stay_in_the_file(tmp_path: Path) -> None:
    save(tmp_path, [figure([1.0])], {"at": "then"})
    other = Result(scenario="other", model="8m", goal=AT_MOST_A_QUARTER, runs=[0.5])
    save(tmp_path, [other], {"at": "now"})
    entries = json.loads((tmp_path / "engine.json").read_text())
    assert {key: entry["at"] for key, entry in entries.items()} == {"some/8m": "then", "other/8m": "now"}
    assert entries["other/8m"]["goal"] == "≤ 0.25"
    assert entries["other/8m"]["margin"] == 0.5


def test_the_picture_is_an_image_with_a_bar_for_each_goal() -> None:
    entries = {"a < b": figure([4.0]).entry(), "c": figure([1.0]).entry(), "no goal": figure([1.0], None).entry()}
    bars = [e for e in ElementTree.fromstring(picture(entries)).iter() if e.tag.endswith("rect") and "y" in e.attrib]
    assert len(bars) == 2


def test_the_engine_and_the_bare_loop_agree_and_a_wrong_token_is_no_tie(tmp_path: Path) -> None:
    loaded = load_model(str(build_qwen3(tmp_path, shape=TINY, context_tokens=128)))
    requests = [Request(prompt_ids=(3, 5 + row, 7), output_tokens=6) for row in range(2)]
    outputs: list[dict[int, list[int]]] = []
    for side in (engine_side(loaded, 2), FixedLoop(loaded.model, capacity_tokens=32)):
        tokens: dict[int, list[int]] = {0: [], 1: []}
        for number, request in enumerate(requests):
            side.submit(number, request)
        while min(map(len, tokens.values())) < 6:
            for number, token in side.step():
                tokens[number].append(token)
        side.close()
        outputs.append(tokens)
    assert str(compare(loaded, requests, *outputs)) == "2/2 equal"
    outputs[0][1][2] = (outputs[0][1][2] + 1) % TINY.vocab
    assert not compare(loaded, requests, *outputs).holds
