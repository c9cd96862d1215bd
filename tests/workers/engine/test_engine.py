"""The engine over tiny random models: what a row says must not depend on who shares its batch."""

import random
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from tokenizers import Tokenizer

import workers
from workers.engine import (
    Chunk,
    Engine,
    EngineClosed,
    EngineFull,
    Fault,
    FinishReason,
    InvalidPrompt,
    LoadedModel,
    Prompt,
    load_model,
)
from workers.engine import load_engine as load_there
from workers.engine.batch import BatchRunner
from workers.engine.engine import SequenceEngine

Run = Callable[[Engine, Iterable[Prompt]], dict[str, Any]]
Make = Callable[..., Prompt]
Fresh = Callable[..., Engine]
TEXTS = ("the rain in", "a", "an inner thing that is then read in the attic by the thin thane", "Zebra! 12", "in in in")


def greedy_alone(loaded: LoadedModel, prompt: Prompt) -> list[int]:
    """mlx-lm's own single-sequence loop."""
    steps = generate_step(mx.array(prompt.token_ids), loaded.model, max_tokens=prompt.stop.max_tokens)
    return [int(token) for token, _ in steps]


def mixed_prompts(make: Make, count: int, seed: int) -> list[Prompt]:
    """Prompts of all lengths with all kinds of parameters."""
    rng = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.2, "top_k": 12, "min_p": 0.02},
        {"temperature": 0.7, "repetition_penalty": 1.3, "logprobs": 3},
        {"presence_penalty": 0.7, "frequency_penalty": 0.4},
        {"temperature": 1.0, "strings": ("e", "th")},
        {"logit_bias": ((40, 4.0), (41, -100.0)), "logprobs": 0},
        {"temperature": 1.0, "ignore_eos": False, "min_tokens": 3},
    ]
    prompts = []
    for index in range(count):
        changes = dict(kinds[index % len(kinds)])
        text = rng.choice(TEXTS) * rng.choice((1, 1, 3))
        prompts.append(make(f"r{index}", text, max_tokens=rng.randint(3, 30), seed=rng.getrandbits(64), **changes))
    return prompts


def one_by_one(engine: Engine, prompts: list[Prompt], run: Run) -> dict[str, Any]:
    return {p.id: run(engine, [p])[p.id] for p in prompts}


def test_greedy_rows_say_what_mlx_lm_says_alone(each_loaded: LoadedModel, prompt: Make, fresh: Fresh, run: Run) -> None:
    prompts = [prompt(str(index), text, max_tokens=20) for index, text in enumerate(TEXTS)]
    outputs = run(fresh(each_loaded), prompts)
    expected = {p.id: greedy_alone(each_loaded, p) for p in prompts}
    assert {id: output.token_ids for id, output in outputs.items()} == expected
    assert len({tuple(ids[:5]) for ids in expected.values()}) == len(TEXTS), "the comparison could not notice a swap"
    assert all(len(set(ids)) > 4 for ids in expected.values()), "the model only echoes: nothing is proven"


def test_the_comparison_notices_a_context_that_differs_in_one_early_token(
    loaded: LoadedModel, prompt: Make, fresh: Fresh, run: Run
) -> None:
    ids = prompt("p", TEXTS[2]).token_ids
    changed = (ids[0] + 1, *ids[1:])
    outputs = run(fresh(loaded), [prompt("a", token_ids=ids), prompt("b", token_ids=changed)])
    assert outputs["a"].token_ids != outputs["b"].token_ids


@pytest.mark.parametrize("seed", [1, 2])
def test_a_row_says_the_same_alone_and_in_any_company(
    each_loaded: LoadedModel, prompt: Make, fresh: Fresh, run: Run, seed: int
) -> None:
    prompts = mixed_prompts(prompt, 18, seed)
    alone = one_by_one(fresh(each_loaded, rows=1), prompts, run)
    together = run(fresh(each_loaded), prompts)
    for p in prompts:
        assert together[p.id].token_ids == alone[p.id].token_ids, p
        assert together[p.id].text == alone[p.id].text
        assert together[p.id].last == alone[p.id].last or p.logprobs is not None
        for ours, theirs in zip(together[p.id].logprobs, alone[p.id].logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
            assert {token for token, _ in ours.top} == {token for token, _ in theirs.top}


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_rows_may_join_leave_and_be_cancelled_at_any_step(
    loaded: LoadedModel, prompt: Make, fresh: Fresh, run: Run, gather: Callable[..., dict[str, Any]], seed: int
) -> None:
    rng = random.Random(seed)
    prompts = mixed_prompts(prompt, 24, seed)
    alone = one_by_one(fresh(loaded, rows=1), prompts, run)
    engine, waiting, cancelled = fresh(loaded, rows=5), list(prompts), set()
    outputs: dict[str, Any] = {}
    while waiting or engine.has_work:
        for _ in range(rng.randint(0, 3)):
            if waiting:
                engine.submit(waiting.pop())
        if rng.random() < 0.15:
            victim = rng.choice(prompts).id
            engine.cancel(victim)
            cancelled.add(victim)
        gather(outputs, engine.step())
    assert set(outputs) == set(alone)
    for id, output in outputs.items():
        if output.finish_reason is FinishReason.CANCELLED:
            assert id in cancelled
            assert output.token_ids == alone[id].token_ids[: len(output.token_ids)]
            assert alone[id].text.startswith(output.text) or alone[id].last.stop_string is not None
        else:
            assert (output.token_ids, output.text) == (alone[id].token_ids, alone[id].text)
    assert engine.stats().kv_bytes == 0


@pytest.mark.parametrize("cut", [1, 4, 11])
def test_a_resumed_row_continues_as_if_nothing_had_happened(
    loaded: LoadedModel, prompt: Make, fresh: Fresh, run: Run, cut: int
) -> None:
    prompts = [replace(p, stop=replace(p.stop, max_tokens=25)) for p in mixed_prompts(prompt, 9, 7)]
    whole = run(fresh(loaded), prompts)
    cut_ids = {p.id: tuple(whole[p.id].token_ids[:cut]) for p in prompts}
    again = run(fresh(loaded), [replace(p, resume_ids=cut_ids[p.id]) for p in prompts])
    for p in prompts:
        assert [*cut_ids[p.id], *again[p.id].token_ids] == whole[p.id].token_ids, p
        assert whole[p.id].text.endswith(again[p.id].text)
        assert again[p.id].last.finish_reason == whole[p.id].last.finish_reason
        assert again[p.id].last.stop_string == whole[p.id].last.stop_string


def test_text_before_and_after_a_crash_join_without_gap_or_repeat(
    loaded: LoadedModel, prompt: Make, gather: Callable[..., dict[str, Any]], fresh: Fresh, run: Run
) -> None:
    wanted = prompt("p", TEXTS[2], temperature=1.0, seed=5, max_tokens=30)
    again = fresh(loaded)
    whole = run(again, [wanted])["p"]
    for steps in range(1, 20, 3):
        engine = fresh(loaded)
        outputs: dict[str, Any] = {}
        engine.submit(wanted)
        for _ in range(steps):
            gather(outputs, engine.step())
        before = outputs.get("p")
        ids = () if before is None else tuple(before.token_ids)
        after = run(again, [replace(wanted, resume_ids=ids)])["p"]
        assert ("" if before is None else before.text) + after.text == whole.text


def test_a_row_that_had_finished_before_the_crash_ends_at_once(engine: Engine, prompt: Make) -> None:
    engine.submit(prompt("p", max_tokens=2, resume_ids=(40, 41)))
    assert engine.step() == [Chunk("p", (), "", finish_reason=FinishReason.LENGTH)]
    assert not engine.has_work


def test_the_same_seed_draws_the_same_and_another_seed_does_not(engine: Engine, prompt: Make, run: Run) -> None:
    prompts = [prompt(str(i), temperature=1.0, seed=seed) for i, seed in enumerate((1, 1, 2, -1, 2**63))]
    outputs = run(engine, prompts)
    assert outputs["0"].token_ids == outputs["1"].token_ids
    assert len({tuple(output.token_ids) for output in outputs.values()}) == 4


def test_an_end_token_ends_the_text_and_is_not_in_it(
    loaded: LoadedModel, engine: Engine, prompt: Make, run: Run
) -> None:
    for eos in loaded.info.eos_token_ids:
        push = {"logit_bias": ((eos, 1000.0),), "ignore_eos": False}
        output = run(engine, [prompt(f"e{eos}", **push)])[f"e{eos}"]
        assert (output.token_ids, output.text, output.finish_reason) == ([], "", FinishReason.STOP)
        kept = run(engine, [prompt(f"m{eos}", min_tokens=3, logprobs=1, **push)])[f"m{eos}"]
        assert (len(kept.token_ids), len(kept.logprobs), kept.finish_reason) == (3, 3, FinishReason.STOP)
        ignored = run(engine, [prompt(f"i{eos}", max_tokens=4, logit_bias=((eos, 1000.0),))])[f"i{eos}"]
        assert (ignored.token_ids, ignored.text, ignored.finish_reason) == ([eos] * 4, "", FinishReason.LENGTH)


def test_a_stop_token_of_the_request_ends_it(engine: Engine, prompt: Make, run: Run) -> None:
    free = run(engine, [prompt("free")])["free"].token_ids
    stop = next(token for index, token in enumerate(free) if index > 2 and token not in free[:index])
    output = run(engine, [prompt("p", stop_ids=(stop,))])["p"]
    assert output.token_ids == free[: free.index(stop)]
    assert output.finish_reason is FinishReason.STOP


def test_a_stop_string_is_cut_from_the_text_and_its_tokens_are_counted(engine: Engine, prompt: Make, run: Run) -> None:
    free = run(engine, [prompt("free", temperature=1.0, seed=3, max_tokens=40)])["free"]
    printable = next(free.text[i : i + 2] for i in range(5, len(free.text) - 2) if free.text[i : i + 2].isascii())
    output = run(engine, [prompt("p", temperature=1.0, seed=3, max_tokens=40, strings=(printable,))])["p"]
    assert output.text == free.text.split(printable)[0]
    assert (output.last.finish_reason, output.last.stop_string) == (FinishReason.STOP, printable)
    assert output.token_ids == free.token_ids[: len(output.token_ids)]


def test_logprobs_are_those_of_the_raw_logits(loaded: LoadedModel, engine: Engine, prompt: Make, run: Run) -> None:
    shaped = {"temperature": 0.5, "logit_bias": ((30, 3.0),), "frequency_penalty": 1.0, "seed": 9}
    [wanted] = [prompt("p", max_tokens=6, logprobs=4, **shaped)]
    output = run(engine, [wanted, prompt("other", temperature=1.0)])["p"]
    context = [*wanted.token_ids]
    for token, logprob in zip(output.token_ids, output.logprobs, strict=True):
        logits = loaded.model(mx.array([context]))[0, -1]
        raw = logits - mx.logsumexp(logits)
        expected = sorted(enumerate(raw.tolist()), key=lambda pair: -pair[1])[:4]
        assert logprob.token_id == token
        assert logprob.logprob == pytest.approx(raw[token].item(), abs=1e-3)
        assert [t for t, _ in logprob.top] == [t for t, _ in expected]
        assert [p for _, p in logprob.top] == pytest.approx([p for _, p in expected], abs=1e-3)
        context.append(token)


def test_rows_that_do_not_ask_get_no_logprobs(engine: Engine, prompt: Make) -> None:
    engine.submit(prompt("without", max_tokens=2))
    engine.submit(prompt("chosen", max_tokens=2, logprobs=0))
    chunks = [chunk for _ in range(6) for chunk in engine.step()]
    assert all((chunk.logprobs is None) == (chunk.prompt_id == "without") for chunk in chunks)
    assert all(chunk.logprobs[0].top == () for chunk in chunks if chunk.logprobs)


def test_cancelling_ends_a_row_in_every_stage(loaded: LoadedModel, prompt: Make, fresh: Fresh) -> None:
    engine = fresh(loaded, 2, step_tokens=8)
    for id, text in (("decoding", "a"), ("reading", "in " * 40), ("waiting", "a"), ("untouched", "a")):
        engine.submit(prompt(id, text, max_tokens=60))
    engine.step()
    engine.step()
    stats = engine.stats()
    assert (stats.running, list(stats.prefilling), stats.waiting) == (1, ["reading"], 2)
    done, total = stats.prefilling["reading"]
    assert 0 < done < total
    assert stats.kv_bytes > 0
    for id in ("decoding", "reading", "waiting", "unknown"):
        engine.cancel(id)
    ended = {chunk.prompt_id: chunk.finish_reason for chunk in engine.step() if chunk.finish_reason}
    assert ended == dict.fromkeys(("decoding", "reading", "waiting"), FinishReason.CANCELLED)
    engine.cancel("decoding")
    chunks = [chunk for _ in range(3) for chunk in engine.step()]
    assert {chunk.prompt_id for chunk in chunks} == {"untouched"}


def test_an_id_is_free_again_after_its_last_chunk(engine: Engine, prompt: Make, run: Run) -> None:
    first = run(engine, [prompt("p")])["p"]
    engine.submit(prompt("p"))
    with pytest.raises(InvalidPrompt, match="in use"):
        engine.submit(prompt("p"))
    engine.cancel("p")
    assert [chunk.finish_reason for chunk in engine.step()] == [FinishReason.CANCELLED]
    assert run(engine, [prompt("p")])["p"].token_ids == first.token_ids


def test_the_context_ends_a_row(loaded: LoadedModel, engine: Engine, prompt: Make, run: Run) -> None:
    context = loaded.info.context_tokens or 0
    ids = tuple(index % 200 for index in range(context - 5))
    output = run(engine, [prompt("p", token_ids=ids, max_tokens=100)])["p"]
    assert (len(output.token_ids), output.finish_reason) == (5, FinishReason.LENGTH)
    with pytest.raises(InvalidPrompt, match="context"):
        engine.submit(prompt("q", token_ids=(1,) * context))


def test_a_row_whose_logits_are_not_numbers_fails_alone(
    new_model: Callable[..., Any], tmp_path: Any, loaded: LoadedModel, prompt: Make, fresh: Fresh, run: Run
) -> None:
    poison = 7
    network = loaded.model
    weight = network.model.embed_tokens.weight
    try:
        network.model.embed_tokens.weight = mx.where(mx.arange(weight.shape[0])[:, None] == poison, mx.nan, weight)
        healthy = [prompt(str(i), text, max_tokens=8) for i, text in enumerate(TEXTS)]
        sick = [prompt("bad", token_ids=(40, poison, 41)), prompt("worse", token_ids=(poison,))]
        outputs = run(fresh(loaded), [*healthy, *sick])
    finally:
        network.model.embed_tokens.weight = weight
    failed = {id for id, output in outputs.items() if output.finish_reason is FinishReason.ERROR}
    assert failed == {"bad", "worse"}
    assert "not finite" in outputs["bad"].last.error
    assert outputs["bad"].last.fault is Fault.PASSING
    assert outputs["bad"].token_ids == []
    for p in healthy:
        assert outputs[p.id].token_ids == greedy_alone(loaded, p)


def test_damage_to_one_row_is_seen_in_that_row_and_only_there(loaded: LoadedModel, prompt: Make) -> None:
    """The mutation that proves the comparisons: overwrite the cached keys of one row while it decodes."""
    prompts = [prompt(str(index), text, max_tokens=20) for index, text in enumerate(TEXTS[:3])]
    runner = BatchRunner(loaded.model, vocab_size=loaded.info.vocab_size, capacity=8, prefill_step_tokens=16)
    engine = SequenceEngine(loaded, runner, max_waiting=9)
    for p in prompts:
        engine.submit(p)
    outputs = collect_steps(engine, 6)
    batch = runner._generator._generation_batch
    victim = runner._ids[batch.uids[1]]
    for cache in batch.prompt_cache:
        cache.keys = mx.where(mx.arange(3).reshape(3, 1, 1, 1) == 1, 0.0, cache.keys)
    damaged = collect_steps(engine, 40)
    said = {id: [*outputs[id], *damaged[id]] for id in outputs}
    expected = {p.id: greedy_alone(loaded, p) for p in prompts}
    assert {id for id in said if said[id] != expected[id]} == {victim}


def collect_steps(engine: Engine, steps: int) -> dict[str, list[int]]:
    said: dict[str, list[int]] = {}
    for chunk in (chunk for _ in range(steps) for chunk in engine.step()):
        said.setdefault(chunk.prompt_id, []).extend(chunk.token_ids)
    return said


def test_an_engine_lives_wholly_in_another_thread(model_folder: Any, prompt: Make, run: Run, engine: Engine) -> None:
    from_here = run(engine, mixed_prompts(prompt, 6, 1))
    found: dict[str, Any] = {}

    def work() -> None:
        loaded_there = load_there(str(model_folder))
        found.update(run(loaded_there.engine, mixed_prompts(prompt, 6, 1)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert {id: output.token_ids for id, output in found.items()} == {
        id: output.token_ids for id, output in from_here.items()
    }


def test_a_full_line_and_a_closed_engine_refuse(loaded: LoadedModel, prompt: Make, fresh: Fresh) -> None:
    engine = fresh(loaded, 1, waiting=2)
    engine.submit(prompt("a"))
    engine.submit(prompt("b"))
    with pytest.raises(EngineFull):
        engine.submit(prompt("c"))
    engine.close()
    engine.close()
    assert not engine.has_work
    with pytest.raises(EngineClosed):
        engine.submit(prompt("d"))
    with pytest.raises(EngineClosed):
        engine.step()


def test_totals_count_what_was_read_and_what_was_said(engine: Engine, prompt: Make, run: Run) -> None:
    resumed = prompt("b", token_ids=(1,), max_tokens=5, resume_ids=(9, 8))
    run(engine, [prompt("a", token_ids=(1, 2, 3), max_tokens=4), resumed])
    stats = engine.stats()
    assert (stats.prompt_tokens_total, stats.generated_tokens_total) == (6, 7)
    assert (stats.running, stats.waiting, stats.prefilling, stats.kv_bytes) == (0, 0, {}, 0)
    assert engine.step() == []


def test_text_is_the_decode_of_the_tokens(tokenizer: Tokenizer, engine: Engine, prompt: Make, run: Run) -> None:
    no_special = tuple((token, -100.0) for token in range(262, 266))
    output = run(engine, [prompt("p", temperature=1.5, seed=2, max_tokens=60, logit_bias=no_special)])["p"]
    assert output.text == tokenizer.decode(output.token_ids, skip_special_tokens=False)


def test_the_bundled_model_says_in_a_batch_what_mlx_lm_says_alone(prompt: Make, fresh: Fresh, run: Run) -> None:
    """A trained model, where text repeats and probabilities are peaked, unlike in random ones."""
    demo = load_model(str(Path(workers.__path__[0]) / "demo"))
    encode = demo.vocabulary.tokenizer.encode
    texts = ("Tell me a story", "What is 12 + 30?", "Once upon a time there was", "lane")
    prompts = [prompt(text, token_ids=tuple(encode(text).ids), max_tokens=32) for text in texts]
    outputs = run(fresh(demo), prompts)
    assert {id: output.token_ids for id, output in outputs.items()} == {p.id: greedy_alone(demo, p) for p in prompts}
    assert all(output.text for output in outputs.values())
