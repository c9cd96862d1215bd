"""A model process dies at the worst moments of a job: the client reads the undisturbed answer, the job ends once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.farm.conftest import Farm
from tests.farm.streams import Answer, ask

BODY = ask("Tell me a story.", temperature=1.1, seed=8, max_tokens=60)


@pytest.fixture(scope="module")
def dying(start_farm: Callable[..., Farm]) -> Farm:
    """A farm whose only worker dies where it is told."""
    return start_farm(failpoints=True)


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ("prefill", ["submitted", "claimed", "requeued", "claimed", "finished"]),
        ("before finish", ["submitted", "claimed", "requeued", "claimed", "finished"]),
        ("after finish", ["submitted", "claimed", "finished"]),
    ],
)
def test_a_death_around_a_jobs_first_and_last_moment_changes_nothing(
    dying: Farm, eventually: Callable[..., Any], point: str, told: list[str]
) -> None:
    """F2, F3, F4."""
    undisturbed = Answer(dying.url, BODY).read()
    dying.fail_at(point)
    answer = Answer(dying.url, BODY)
    assert answer.read() == undisturbed
    eventually(dying.has_failed)
    assert len(set(answer.ids)) == len(answer.ids)
    query = f"SELECT type FROM job_events WHERE job_id = '{answer.job_id}' ORDER BY ms, seq"
    eventually(lambda: [row["type"] for row in dying.query(query)] == told)
    assert Answer(dying.url, BODY).read() == undisturbed  # by the next process; and nothing was run again meanwhile
    assert [row["type"] for row in dying.query(query)] == told
