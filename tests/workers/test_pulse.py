"""When an agent kills its model process: pure, on times that the test makes up."""

from __future__ import annotations

import pytest

from workers.pulse import PREFILL_TOKEN_S, Watch, step_limit_s


def pulse(stalled_s: float = 0.0, limit_s: float = 10.0) -> bytes:
    return f"PULSE {stalled_s} {limit_s}\n".encode()


def test_a_process_that_loads_is_not_judged() -> None:
    assert Watch(10.0).verdict(1e9) == ""


def looked_at(watch: Watch, start_s: float, end_s: float) -> str:
    """The agent looks every second until `end_s`; the first reason to kill."""
    reasons = (watch.verdict(start_s + second) for second in range(round(end_s - start_s) + 1))
    return next(filter(None, reasons), "")


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


@pytest.mark.parametrize("stood_still_s", [60.0, 3600.0])
def test_a_machine_that_stood_still_is_no_process_that_hangs(stood_still_s: float) -> None:
    """The agent did not run either: silence, and a step that began before, have the whole limit once more."""
    watch = Watch(10.0)
    assert looked_at(watch, 90.0, 100.0) == ""
    watch.heard(pulse(4.0), 100.0)
    awake_s = 100.0 + stood_still_s
    assert watch.verdict(awake_s) == ""
    watch.heard(pulse(4.0 + stood_still_s), awake_s)
    assert looked_at(watch, awake_s, awake_s + 9.0) == ""
    watch.heard(pulse(13.0 + stood_still_s), awake_s + 9.0)
    assert "engine step" in looked_at(watch, awake_s + 9.0, awake_s + 11.0)


def test_a_process_that_is_still_silent_after_a_standstill_is_killed() -> None:
    watch = Watch(10.0)
    watch.heard(pulse(), 100.0)
    assert looked_at(watch, 100.0, 101.0) == ""
    assert looked_at(watch, 160.0, 170.0) == ""
    assert "no sign of life for 11.0 s" in looked_at(watch, 170.0, 171.0)


def test_an_agent_that_is_a_little_late_still_counts() -> None:
    watch = Watch(10.0)
    watch.heard(pulse(), 100.0)
    assert not any(watch.verdict(100.0 + late_s) for late_s in (0, 2, 4, 6, 8, 10))
    assert watch.verdict(112.0)
