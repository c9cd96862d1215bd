"""When an agent kills its model process: pure, on times that the test makes up."""

from __future__ import annotations

import pytest

from workers.pulse import PREFILL_TOKEN_S, Watch, step_limit_s


def pulse(stalled_s: float = 0.0, limit_s: float = 10.0) -> bytes:
    return f"PULSE {stalled_s} {limit_s}\n".encode()


def test_a_process_that_loads_is_not_judged() -> None:
    assert Watch(10.0).verdict(1e9) == ""


@pytest.mark.parametrize(("stalled_s", "seen_s", "killed"), [(0.0, 9.0, False), (9.0, 0.5, False), (9.5, 1.0, True)])
def test_a_step_has_its_limit(stalled_s: float, seen_s: float, killed: bool) -> None:
    watch = Watch(10.0)
    watch.heard(pulse(stalled_s), 100.0)
    assert bool(watch.verdict(100.0 + seen_s)) is killed


def test_silence_has_the_same_limit_and_ends_with_the_next_pulse() -> None:
    watch = Watch(10.0)
    watch.heard(pulse(), 100.0)
    assert "no sign of life" in watch.verdict(110.1)
    watch.heard(pulse(), 110.2)
    assert watch.verdict(110.3) == ""


def test_the_limit_grows_with_the_prompt_that_is_read() -> None:
    assert step_limit_s(10.0, 0) == 10.0
    assert step_limit_s(10.0, 1000) == 10.0 + 1000 * PREFILL_TOKEN_S
    watch = Watch(10.0)
    watch.heard(pulse(15.0, step_limit_s(10.0, 1000)), 100.0)
    assert watch.verdict(100.1) == ""
