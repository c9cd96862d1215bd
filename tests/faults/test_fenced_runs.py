"""A worker that lost its jobs and gets them back: what its engine still says of the earlier run is dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.farm.conftest import Farm
from tests.farm.streams import Answer, ask

BODY = ask("Tell me a story.", temperature=1.1, seed=8)


@pytest.fixture(scope="module")
def fenced(start_farm: Callable[..., Farm]) -> Farm:
    """A farm whose only worker is declared dead while it works."""
    return start_farm(failpoints=True)


def test_a_worker_that_gets_its_own_job_back_goes_on_where_it_was(fenced: Farm, eventually: Callable[..., Any]) -> None:
    """F5: the second claim comes while the engine still runs the first one."""
    undisturbed = Answer(fenced.url, BODY).read()
    fenced.fail_at("hang 15")
    with Answer(fenced.url, BODY) as answer:
        eventually(fenced.has_failed)
        assert fenced.declare_dead() == [answer.job_id]
        eventually(lambda: fenced.get(f"/v1/jobs/{answer.job_id}")["attempts"] == 2)
        fenced.go_on()
        assert answer.read() == undisturbed
