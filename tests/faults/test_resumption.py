"""Deaths at several moments of several kinds of answers, in real processes; for every moment: tests/workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.farm.conftest import Farm
from tests.farm.streams import Answer, ask

TOOL = {
    "type": "function",
    "function": {
        "name": "get_forecast",
        "parameters": {
            "type": "object",
            "properties": {"unit": {"enum": ["C", "F"]}, "days": {"type": "array", "items": {"type": "integer"}}},
            "required": ["unit", "days"],
            "additionalProperties": False,
        },
    },
}
CALL = ask("Hello!", temperature=1.3, seed=4, tools=[TOOL], tool_choice="required", max_tokens=80, ignore_eos=False)
THOUGHT = ask(
    "What is 2 + 3?", temperature=0, reasoning_effort="low", guided_choice=["five", "seventeen"], ignore_eos=False
)
STOPPED = ask("Tell me a story.", temperature=1.1, seed=12, stop=["never said", "the end of it"], max_tokens=120)


@pytest.fixture(scope="module")
def dying(start_farm: Callable[..., Farm]) -> Farm:
    """A farm whose model process dies where it is told."""
    return start_farm(failpoints=True, spare_process="true")


@pytest.mark.parametrize(
    ("body", "steps"),
    [(CALL, 3), (CALL, 14), (THOUGHT, 6), (STOPPED, 2), (STOPPED, 60)],
    ids=["call-3", "call-14", "thought-6", "stop-2", "stop-60"],
)
def test_a_client_reads_the_undisturbed_answer_whatever_it_is(dying: Farm, body: dict[str, Any], steps: int) -> None:
    """F18, through HTTP: calls and thoughts are read from the frames of two workers."""
    undisturbed = Answer(dying.url, body).read()
    dying.fail_at(f"SIGKILL {steps}")
    disturbed = Answer(dying.url, body)
    assert disturbed.read() == undisturbed
    assert dying.has_failed()


def test_a_device_without_memory_costs_a_process_and_no_answer(dying: Farm) -> None:
    """F10: the back end's error ends the model process, as every failure of an engine does; its jobs are resumed."""
    undisturbed = Answer(dying.url, STOPPED).read()
    dying.fail_at("memory 20")
    disturbed = Answer(dying.url, STOPPED)
    assert disturbed.read() == undisturbed
    assert dying.get(f"/v1/jobs/{disturbed.job_id}")["attempts"] == 2
