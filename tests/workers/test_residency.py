"""What a node keeps in memory, decided on a simulated clock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from workers.residency import Delay, Phase, Resident, Why, decide, fit

TURN_S, LOAD_S, DRAIN_S, STEP_S = 5.0, 2.0, 3.0, 0.5


def loaded(name: str, needs: int = 1, **parts: Any) -> Resident:
    return Resident(name=name, needs_bytes=needs, phase=Phase.LOADED, **{"ready_s": 0.0, "used_s": 0.0} | parts)


def asked(name: str, since_s: float, needs: int = 1, **parts: Any) -> Resident:
    return Resident(name=name, needs_bytes=needs, waiting_since_s=since_s, **parts)


@dataclass
class Machine:
    """A node on a simulated clock: loading takes LOAD_S, a job `job_s`, and who leaves gets DRAIN_S at most."""

    budget: int
    models: dict[str, Resident]
    job_s: float
    now_s: float = 0.0
    queues: dict[str, list[float]] = field(default_factory=dict)
    running: dict[str, tuple[float, float]] = field(default_factory=dict)
    until_s: dict[str, float] = field(default_factory=dict)
    longest_without_s: float = 0.0
    evicted: list[tuple[str, Why]] = field(default_factory=list)

    def step(self) -> None:
        """Move everything to now, then decide."""
        for name in self.models:
            self._move(name)
        plan = decide(list(self.models.values()), budget_bytes=self.budget, now_s=self.now_s, turn_s=TURN_S)
        for name, why in plan.evict.items():
            self.models[name] = replace(self.models[name], phase=Phase.LEAVING)
            self.until_s[name] = self.now_s + DRAIN_S
            self.evicted.append((name, why))
        for name in plan.load:
            self.models[name] = replace(self.models[name], phase=Phase.LOADING)
            self.until_s[name] = self.now_s + LOAD_S
        self.now_s += STEP_S

    @property
    def used(self) -> int:
        return sum(model.needs_bytes for model in self.models.values() if model.phase is not Phase.ABSENT)

    def _move(self, name: str) -> None:
        model, queue, now_s = self.models[name], self.queues.setdefault(name, []), self.now_s
        job = self.running.get(name)
        if job and now_s >= job[1]:
            del self.running[name]
            model = replace(model, used_s=now_s)
        if model.phase is Phase.LOADING and now_s >= self.until_s[name]:
            model = replace(model, phase=Phase.LOADED, ready_s=now_s, used_s=now_s)
        if model.phase is Phase.LEAVING and (name not in self.running or now_s >= self.until_s[name]):
            if handed_back := self.running.pop(name, None):
                queue.insert(0, handed_back[0])
            model = replace(model, phase=Phase.ABSENT, left_s=now_s)
        if model.phase is Phase.LOADED and name not in self.running and queue:
            self.running[name] = (queue.pop(0), now_s + self.job_s)
            model = replace(model, used_s=now_s)
        waits = queue and model.phase is not Phase.LEAVING
        self.models[name] = replace(
            model, jobs=int(name in self.running), waiting_since_s=min(queue) if waits else None
        )
        if queue and model.phase is Phase.ABSENT:
            self.longest_without_s = max(self.longest_without_s, now_s - max(min(queue), model.left_s))


ARRIVALS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=25)


def run(machine: Machine, arrivals: Sequence[tuple[int, int, int]]) -> None:
    """Let jobs arrive (at, model, how many) and run until all have ended, always within the budget."""
    pending = sorted(arrivals)
    names = list(machine.models)
    jobs = sum(count for *_, count in arrivals)
    end_s = 60 + jobs * (machine.job_s + TURN_S + LOAD_S + 2 * DRAIN_S + 5)
    while pending or any(machine.queues.values()) or machine.running:
        while pending and pending[0][0] <= machine.now_s:
            at, which, count = pending.pop(0)
            machine.queues.setdefault(names[which % len(names)], []).extend([float(at)] * count)
        machine.step()
        assert machine.used <= machine.budget
        assert machine.now_s < end_s, "a job was never served"


@given(
    budget=st.integers(6, 12),
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    arrivals=ARRIVALS,
    job_s=st.sampled_from([0.5, 1.0, 2.5]),
)
def test_every_job_is_served_and_no_model_waits_longer_than_a_turn_of_each_other(
    budget: int, sizes: list[int], arrivals: list[tuple[int, int, int]], job_s: float
) -> None:
    machine = Machine(
        budget, {f"m{i}": Resident(name=f"m{i}", needs_bytes=size) for i, size in enumerate(sizes)}, job_s
    )
    run(machine, arrivals)
    assert machine.longest_without_s <= len(sizes) * (TURN_S + DRAIN_S + LOAD_S + 3 * STEP_S)


@given(arrivals=ARRIVALS, job_s=st.sampled_from([0.5, 2.5]))
def test_a_pinned_model_never_leaves_and_the_others_share_the_rest(
    arrivals: list[tuple[int, int, int]], job_s: float
) -> None:
    models = {f"m{i}": Resident(name=f"m{i}", needs_bytes=2) for i in range(4)}
    models["m0"] = replace(models["m0"], pinned=True, phase=Phase.LOADED, ready_s=0.0, used_s=0.0)
    machine = Machine(4, models, job_s)
    run(machine, arrivals)
    assert machine.models["m0"].phase is Phase.LOADED
    assert "m0" not in [name for name, _ in machine.evicted]


def test_two_models_that_never_rest_take_turns() -> None:
    machine = Machine(1, {name: Resident(name=name, needs_bytes=1) for name in "ab"}, 0.5)
    turns: list[str] = []
    while machine.now_s < 100:
        for name in "ab":
            machine.queues[name] = [0.0] * 10  # a backlog that only grows
        machine.step()
        here = [name for name, model in machine.models.items() if model.phase is Phase.LOADED]
        turns += [name for name in here if turns[-1:] != [name]]
    assert len(turns) >= 100 / (TURN_S + LOAD_S + DRAIN_S) - 1
    assert all(before != after for before, after in itertools.pairwise(turns))


def test_the_idle_model_that_was_used_least_recently_goes() -> None:
    models = [loaded("old", used_s=1), loaded("older", used_s=0), loaded("busy", jobs=1), asked("new", 5)]
    plan = decide(models, budget_bytes=3, now_s=5, turn_s=TURN_S)
    assert plan.evict == {"older": Why.ROOM}
    assert plan.load == ()
    assert plan.waits == {"new": Delay.ROOM}


def test_nobody_goes_who_is_not_needed() -> None:
    models = [loaded("small", used_s=0), loaded("large", 4, used_s=1), asked("new", 5, 4)]
    assert decide(models, budget_bytes=5, now_s=5, turn_s=TURN_S).evict == {"large": Why.ROOM}


def test_nobody_goes_in_vain() -> None:
    models = [loaded("idle"), loaded("busy", jobs=1, ready_s=4), asked("new", 5, 2)]
    plan = decide(models, budget_bytes=2, now_s=5, turn_s=TURN_S)
    assert (plan.evict, plan.waits) == ({}, {"new": Delay.TURN})


def test_a_busy_model_goes_when_its_turn_is_over() -> None:
    models = [loaded("busy", jobs=1, ready_s=0, waiting_since_s=0.0), asked("new", 4)]
    assert decide(models, budget_bytes=1, now_s=TURN_S - 0.1, turn_s=TURN_S).evict == {}
    assert decide(models, budget_bytes=1, now_s=TURN_S, turn_s=TURN_S).evict == {"busy": Why.TURN}


def test_room_that_was_promised_is_not_given_to_one_who_came_later() -> None:
    models = [loaded("busy", 6, jobs=1, ready_s=4), asked("first", 4, 8), asked("second", 5, 4)]
    plan = decide(models, budget_bytes=10, now_s=5, turn_s=TURN_S)
    assert (plan.load, plan.evict) == ((), {})


def test_what_fits_is_loaded_at_once() -> None:
    models = [loaded("busy", 6, jobs=1), asked("first", 4, 4), asked("second", 5, 4)]
    plan = decide(models, budget_bytes=10, now_s=5, turn_s=TURN_S)
    assert (plan.load, plan.waits) == (("first",), {"second": Delay.ROOM if plan.evict else Delay.TURN})


def test_a_model_that_is_leaving_takes_memory_until_it_has_gone() -> None:
    models = [Resident(name="leaving", needs_bytes=1, phase=Phase.LEAVING), asked("new", 0)]
    plan = decide(models, budget_bytes=1, now_s=1, turn_s=TURN_S)
    assert (plan.load, plan.evict, plan.waits) == ((), {}, {"new": Delay.ROOM})


def test_a_model_that_pins_leave_no_room_for_waits_and_nobody_goes_for_it() -> None:
    models = [loaded("pinned", 3, pinned=True), loaded("idle"), asked("large", 0, 2), asked("small", 1, 1)]
    plan = decide(models, budget_bytes=4, now_s=1, turn_s=TURN_S)
    assert plan.waits["large"] is Delay.PINNED
    assert plan.evict == {"idle": Why.ROOM}  # for the small one


def test_a_model_is_given_up_when_it_was_idle_for_as_long_as_it_was_to_be_kept() -> None:
    def gone(**parts: Any) -> list[str]:
        return list(decide([loaded("m", used_s=10, **parts)], budget_bytes=1, now_s=15, turn_s=TURN_S).evict)

    assert gone(kept_idle_s=5.0) == gone(kept_idle_s=0.0) == ["m"]
    assert gone(kept_idle_s=5.1) == gone(kept_idle_s=math.inf) == []
    assert gone(kept_idle_s=0.0, jobs=1) == gone(kept_idle_s=0.0, pinned=True) == []
    assert gone(kept_idle_s=0.0, waiting_since_s=14.0) == []


def test_models_that_have_grown_beyond_the_budget_leave_when_they_are_idle() -> None:
    models = [loaded("a", 3, used_s=1), loaded("b", 3, used_s=2), loaded("c", 3, jobs=1)]
    assert decide(models, budget_bytes=6, now_s=3, turn_s=TURN_S).evict == {"a": Why.GROWN}


def test_preloading_takes_free_room_only() -> None:
    models = [loaded("idle", 2), Resident(name="a", needs_bytes=2, preload=True), asked("wanted", 1)]
    assert decide(models, budget_bytes=4, now_s=1, turn_s=TURN_S).load == ("wanted",)
    assert decide(models, budget_bytes=5, now_s=1, turn_s=TURN_S).load == ("wanted", "a")


def test_will_it_fit_names_those_who_would_have_to_go() -> None:
    models = [loaded("old", 2, used_s=0), loaded("new", 2, used_s=9), loaded("kept", 2, pinned=True), asked("m", 0, 3)]
    assert fit(models, "m", budget_bytes=9).would_evict == ()
    assert fit(models, "m", budget_bytes=7).would_evict == ("old",)
    assert fit(models, "m", budget_bytes=6).would_evict == ("old", "new")
    assert "pinned" in fit(models, "m", budget_bytes=4).why_not
    assert "budget" in fit(models, "m", budget_bytes=2).why_not
    assert fit(models, "old", budget_bytes=2).why_not == ""
