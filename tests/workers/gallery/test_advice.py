"""What fits is what weights, cache and process need, speed at most what memory can bring; better is never worse."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.settings import WorkerSettings
from tests.hub_stand_in import Hub
from tests.workers.gallery.conftest import MODEL
from tests.workers.gallery.test_pulling import pull
from workers.describing import model_budget_bytes
from workers.gallery.advice import Candidate, Machine, advise
from workers.gallery.advising import KNOWN, known_models, recommendations
from workers.gallery.hardware import this_machine

GB = 10**9
MAC = Machine(
    chip="Apple M4 Pro",
    memory_bytes=24 * GB,
    budget_bytes=16 * GB,
    bandwidth_bytes_per_s=273 * GB,
    bandwidth_source="a test",
    computes_float32=False,
    process_bytes=200_000_000,
    copies_share=0.25,
)
MODELS = st.builds(
    Candidate,
    name=st.text("abc", min_size=1, max_size=3),
    parameters=st.integers(1, 10**12),
    active_parameters=st.just(1),
    weight_bytes=st.integers(1, 10**12),
    cache_bytes_per_token=st.none() | st.integers(0, 10**6),
    context_tokens=st.none() | st.integers(1, 10**6),
    is_here=st.booleans(),
    source=st.just("a test"),
)


def model(**changes: Any) -> Candidate:
    """Of 8 billion parameters in 4.5 bits, with 128 KiB of cache per token."""
    made = Candidate(
        name="eight",
        parameters=8 * GB,
        active_parameters=8 * GB,
        weight_bytes=9 * GB // 2,
        cache_bytes_per_token=131072,
        context_tokens=40960,
        is_here=False,
        source="a test",
    )
    return replace(made, **changes)


def test_a_models_needs_and_its_speed_by_hand() -> None:
    [advice] = advise(MAC, [model()], 8192)
    cache_bytes = 8192 * 131072
    assert advice.fits
    assert advice.needs_bytes == 4_500_000_000 + cache_bytes * 5 // 4 + 200_000_000
    assert advice.tokens_per_s == pytest.approx(273e9 / (4.5e9 + cache_bytes))


def test_a_mixture_of_experts_is_as_fast_as_what_a_token_reads_of_it() -> None:
    dense, sparse = model(name="dense"), model(name="sparse", active_parameters=GB)
    by_name = {advice.name: advice for advice in advise(MAC, [dense, sparse], 1)}
    assert by_name["sparse"].needs_bytes == by_name["dense"].needs_bytes
    assert by_name["sparse"].tokens_per_s == pytest.approx(8 * (by_name["dense"].tokens_per_s or 0), rel=0.01)


def test_a_cpu_unpacks_weights_and_cache() -> None:
    [advice] = advise(replace(MAC, computes_float32=True, budget_bytes=64 * GB), [model()], 100)
    assert (advice.weight_bytes, advice.cache_bytes) == (32 * GB, 100 * 2 * 131072)


def test_why_a_model_does_not_fit_is_said() -> None:
    [large] = advise(MAC, [model(weight_bytes=20 * GB)], 10)
    [short] = advise(MAC, [model(context_tokens=2048)], 4096)
    assert (large.fits, "models may take" in large.why_not) == (False, True)
    assert (short.fits, short.why_not) == (False, "its context is 2048 tokens")


def test_what_fits_comes_first_then_what_is_fast_enough_then_the_largest() -> None:
    slow = model(name="slow", parameters=9 * GB, active_parameters=9 * GB)
    models = [model(name="small", parameters=GB), model(name="huge", weight_bytes=99 * GB), model(name="large"), slow]
    slowly = replace(MAC, bandwidth_bytes_per_s=273 * GB)
    assert [advice.name for advice in advise(slowly, models, 8)] == ["slow", "large", "small", "huge"]
    crawling = replace(MAC, bandwidth_bytes_per_s=46 * GB)
    fast = model(name="fast", parameters=GB, active_parameters=GB, weight_bytes=GB)
    assert advise(crawling, [slow, fast], 8192)[0].name == "fast"


@given(st.lists(MODELS, max_size=6), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**6))
def test_more_memory_never_makes_less_fit_and_more_context_never_more(
    models: list[Candidate], context_tokens: int, more_mb: int, more_tokens: int
) -> None:
    def fitting(machine: Machine, tokens: int) -> set[int]:
        return {models.index(m) for m in models if advise(machine, [m], tokens)[0].fits}

    larger = replace(MAC, budget_bytes=MAC.budget_bytes + more_mb * 10**6)
    now = fitting(MAC, context_tokens)
    assert now <= fitting(larger, context_tokens)
    assert fitting(MAC, context_tokens + more_tokens) <= now
    found = advise(MAC, models, context_tokens)
    assert len(found) == len(models)
    assert [advice.fits for advice in found] == sorted((advice.fits for advice in found), reverse=True)


def test_the_bundled_list_is_complete_and_says_where_its_facts_stand() -> None:
    entries = json.loads(KNOWN.read_text(encoding="utf-8"))["models"]
    assert len({entry["name"] for entry in entries}) == len(entries) >= 10
    for entry, known in zip(entries, known_models(), strict=True):
        assert entry["name"].startswith("mlx-community/")
        assert entry["source"].startswith("https://")
        assert 0 < known.active_parameters <= known.parameters
        assert known.weight_bytes < known.parameters


def test_what_is_here_is_recommended_by_its_own_files(hub: Hub) -> None:
    pull()
    budget = 50 * GB
    machine = this_machine(WorkerSettings(model_memory_bytes=budget))
    assert machine.budget_bytes == budget == model_budget_bytes(WorkerSettings(model_memory_bytes=budget))
    assert machine.bandwidth_bytes_per_s > 0
    found = {advice.name: advice for advice in recommendations(machine, 1024)}
    assert found[MODEL].is_here
    assert found[MODEL].fits
    assert found[MODEL].source == "its files"
    assert {known.name for known in known_models()} < set(found)
