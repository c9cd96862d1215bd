"""Which of several machines loads a model: one, the one where it takes least, another one when that dies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scheduler.placement import Effort, falls_to, holders, offers
from tests.workers.test_residency import DRAIN_S, LOAD_S, STEP_S, TURN_S, Machine
from workers.residency import Phase, Resident

NEVER_S = 1e9


def row(model: str, state: str = "available", needs: int = 1, **parts: Any) -> dict[str, Any]:
    """A model on an agent's board."""
    facts = {"pinned": False, "jobs": 0, "waiting": 0, "waits_for": None, "turn_left_s": None}
    return {"model": model, "state": state, "needs_bytes": needs} | facts | parts


def agent(name: str, budget: int, *models: dict[str, Any]) -> dict[str, Any]:
    """An agent's row."""
    return {"agent": name, "budget_bytes": budget, "models": list(models)}


def chosen(*agents: dict[str, Any], wait_s: float = 0.0, copy_after_s: float = NEVER_S) -> str | None:
    return falls_to(agents, "m", oldest_wait_s=wait_s, copy_after_s=copy_after_s)


def test_free_memory_goes_before_memory_that_others_have_to_give_up() -> None:
    idle = agent("idle", 2, row("m"), row("x", "loaded", 2))
    busy = agent("busy", 2, row("m"), row("x", "loaded", 2, jobs=1, turn_left_s=3.0))
    later = agent("later", 2, row("m"), row("x", "loading", 2))
    free = agent("free", 1, row("m"))
    assert [offer.effort for offer in offers([later, busy, free, idle], "m")] == list(Effort)
    assert chosen(later, busy, idle, free) == "free"
    assert chosen(later, busy, idle) == "idle"
    assert chosen(later, busy) == "busy"
    assert chosen(later) == "later"


def test_of_two_with_free_memory_the_one_with_more_left_takes_it() -> None:
    assert chosen(agent("small", 4, row("m")), agent("large", 8, row("m"))) == "large"
    assert chosen(agent("small", 4, row("m")), agent("large", 8, row("m"), row("x", "loaded", 6))) == "small"


def test_who_would_evict_less_or_whose_turn_ends_first_takes_it() -> None:
    heavy = agent("heavy", 4, row("m"), row("x", "loaded", 4))
    light = agent("light", 4, row("m"), row("x", "loaded", 2), row("y", "loaded", 2))
    assert chosen(heavy, light) == "light"
    soon, late = (
        agent(name, 1, row("m"), row("x", "loaded", jobs=1, turn_left_s=left_s))
        for name, left_s in (("soon", 1.0), ("late", 7.0))
    )
    assert chosen(late, soon) == "soon"


def test_room_that_was_promised_to_another_model_is_not_offered_again() -> None:
    promised = agent("promised", 2, row("m"), row("x", "waiting", 2, waits_for="room"))
    assert offers([promised], "m")[0].effort is Effort.LATER


def test_who_cannot_load_it_is_not_asked() -> None:
    small = agent("small", 1, row("m", needs=2))
    pinned = agent("pinned", 2, row("m"), row("x", "loaded", 2, pinned=True))
    failed = agent("failed", 9, row("m", "failed"))
    without = agent("without", 9, row("x"))
    assert chosen(small, pinned, failed, without) is None
    assert chosen(small, pinned, failed, without, agent("can", 1, row("m"), row("x", "loaded"))) == "can"


def test_a_model_that_somebody_has_is_loaded_again_only_for_long_waits_and_into_free_memory() -> None:
    has = agent("has", 1, row("m", "loaded", jobs=1, waiting=9))
    free = agent("free", 1, row("m"))
    idle = agent("idle", 1, row("m"), row("x", "loaded"))
    assert holders([has, free], "m") == ["has"]
    assert chosen(has, free, wait_s=9.9, copy_after_s=10.0) is None
    assert chosen(has, free, wait_s=10.0, copy_after_s=10.0) == "free"
    assert chosen(has, idle, wait_s=99.0, copy_after_s=10.0) is None
    loading = agent("loading", 1, row("m", "loading"))
    assert chosen(has, loading, free, wait_s=99.0, copy_after_s=10.0) is None


ROWS = st.builds(
    row,
    model=st.sampled_from("abcm"),
    state=st.sampled_from(["available", "loaded", "loading", "leaving", "failed", "waiting"]),
    needs=st.integers(1, 4),
    pinned=st.booleans(),
    jobs=st.integers(0, 1),
    waits_for=st.sampled_from([None, "room", "turn"]),
    turn_left_s=st.floats(0, 9),
)
BOARDS = st.lists(
    st.tuples(st.integers(1, 8), st.lists(ROWS, max_size=4, unique_by=lambda row: row["model"])), max_size=5
).map(lambda boards: [agent(f"a{index}", budget, *rows) for index, (budget, rows) in enumerate(boards)])


@given(board=BOARDS, order=st.randoms(use_true_random=False), wait_s=st.floats(0, 20))
def test_every_agent_gets_the_same_answer_from_the_same_rows(board: list[Any], order: Any, wait_s: float) -> None:
    shuffled = order.sample(board, len(board))
    assert chosen(*shuffled, wait_s=wait_s, copy_after_s=10.0) == chosen(*board, wait_s=wait_s, copy_after_s=10.0)
    assert offers(shuffled, "m") == offers(board, "m")


@dataclass
class Room:
    """Machines on one simulated clock that see each other's rows and share the jobs of every model.

    Rights are kept for LEASE_S, and so are the rows of who has died.
    """

    LEASE_S = 4.0

    machines: dict[str, Machine]
    copy_after_s: float
    backlog: dict[str, list[float]]
    dead: dict[str, float] = field(default_factory=dict)
    rights: dict[str, tuple[str, float]] = field(default_factory=dict)
    last_rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    now_s: float = 0.0
    served: int = 0

    def step(self, order: Sequence[str]) -> None:
        """Every live machine looks at the rows, takes what falls to it, and decides about its memory."""
        self.now_s += STEP_S
        for name in order:
            if name not in self.dead:
                self._one(name, self.machines[name])

    def _one(self, name: str, machine: Machine) -> None:
        machine.now_s = self.now_s
        rows = [row for other in self.machines if (row := self._row(other)) is not None]
        for model, waiting in self.backlog.items():
            here = machine.models[model]
            ours = here.phase is Phase.ABSENT and waiting and self._is_ours(name, model, rows)
            queue = waiting if ours or here.phase is Phase.LOADED else []
            before = len(queue)
            machine.queues[model] = queue
            machine.models[model] = replace(here, waiting_since_s=min(queue) if queue else None)
            assert len(queue) == before
        before = sum(map(len, self.backlog.values()))
        machine.step()
        self.served += before - sum(map(len, self.backlog.values()))
        machine.now_s = self.now_s
        self.last_rows[name] = self._shown(name)

    def _is_ours(self, name: str, model: str, rows: list[dict[str, Any]]) -> bool:
        wait_s = self.now_s - min(self.backlog[model])
        if falls_to(rows, model, oldest_wait_s=wait_s, copy_after_s=self.copy_after_s) != name:
            return False
        holder, until_s = self.rights.get(model, (name, 0.0))
        if holder != name and until_s > self.now_s:
            return False
        self.rights[model] = (name, self.now_s + self.LEASE_S)
        return True

    def _row(self, name: str) -> dict[str, Any] | None:
        if name in self.dead:
            return self.last_rows.get(name) if self.now_s < self.dead[name] + self.LEASE_S else None
        return self._shown(name)

    def _shown(self, name: str) -> dict[str, Any]:
        machine = self.machines[name]
        rows = []
        for model in machine.models.values():
            state = "available" if model.phase is Phase.ABSENT else model.phase.value
            left_s = max(0.0, model.ready_s + TURN_S - self.now_s) if model.phase is Phase.LOADED else None
            facts = {"jobs": model.jobs, "waiting": len(self.backlog[model.name]), "turn_left_s": left_s}
            rows.append(row(model.name, state, model.needs_bytes, **facts))
        return agent(name, machine.budget, *rows)

    def loading(self, model: str) -> list[str]:
        """Live machines that load it."""
        live = (name for name in self.machines if name not in self.dead)
        return [name for name in live if self.machines[name].models[model].phase is Phase.LOADING]

    def has(self, model: str) -> list[str]:
        """Live machines that have it."""
        live = (name for name in self.machines if name not in self.dead)
        return [name for name in live if self.machines[name].models[model].phase is Phase.LOADED]


def machines(sizes: Sequence[int], budgets: Sequence[int], *, copy_after_s: float = NEVER_S) -> Room:
    """A room of machines that all could load the same models."""
    models = {f"m{index}": Resident(name=f"m{index}", needs_bytes=size) for index, size in enumerate(sizes)}
    rooms = {f"a{index}": Machine(budget, dict(models), 1.0) for index, budget in enumerate(budgets)}
    return Room(rooms, copy_after_s, {name: [] for name in models})


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    budgets=st.lists(st.integers(4, 8), min_size=2, max_size=3),
    arrivals=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=20),
    dies_s=st.one_of(st.none(), st.integers(0, 40)),
    order=st.randoms(use_true_random=False),
)
def test_every_model_is_loaded_by_one_machine_at_a_time_and_every_job_served_though_one_dies(
    sizes: list[int], budgets: list[int], arrivals: list[tuple[int, int]], dies_s: int | None, order: Any
) -> None:
    room = machines(sizes, budgets)
    pending = sorted(arrivals)
    end_s = 100 + len(arrivals) * (1 + TURN_S + LOAD_S + 2 * DRAIN_S + 5)
    while pending or any(room.backlog.values()):
        while pending and pending[0][0] <= room.now_s:
            at, which = pending.pop(0)
            room.backlog[f"m{which % len(sizes)}"].append(float(at))
        if dies_s is not None and room.now_s >= dies_s and not room.dead:
            room.dead["a0"] = room.now_s
        room.step(order.sample(list(room.machines), len(room.machines)))
        for model in room.backlog:
            assert len(room.loading(model)) + len(room.has(model)) <= 1
        assert room.now_s < end_s, "a job was never served"


def test_another_machine_takes_over_when_the_chosen_one_dies_while_it_loads() -> None:
    room = machines([1], [8, 4])
    room.backlog["m0"] = [0.0]
    room.step(["a0", "a1"])
    assert room.loading("m0") == ["a0"]
    room.dead["a0"] = died_s = room.now_s
    while not room.has("m0"):
        room.step(["a1"])
    assert died_s + room.LEASE_S <= room.now_s <= died_s + room.LEASE_S + LOAD_S + 3 * STEP_S


def test_long_waits_bring_a_second_copy_onto_another_machine_and_short_ones_do_not() -> None:
    for copy_after_s, copies in ((3.0, ["a0", "a1"]), (NEVER_S, ["a0"])):
        room = machines([1], [2, 1], copy_after_s=copy_after_s)
        room.backlog["m0"] = [0.0] * 40
        while room.now_s < 12:
            room.step(["a0", "a1"])
        assert room.has("m0") == copies
