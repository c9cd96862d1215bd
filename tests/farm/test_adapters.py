"""Adapters in a real farm: asked for like models, computed beside their model, kept by a job that is resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.adapters import write_adapter
from bench.tiny_models import tiny_model
from scheduler.prompts import PromptFormat
from tests.farm.conftest import Farm
from tests.farm.streams import Answer, post
from tests.farm.test_engines import VOCAB_TOKENS, model_folder
from tests.faults.patching import patched
from workers.engine import Prompt, SamplingParams, StopRule, load_engine
from workers.model_process import model_card

MESSAGES = [{"role": "user", "content": "Tell me a story about rain."}]
GREEDY: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A tiny model and two adapters."""
    path = tmp_path_factory.mktemp("adapted")
    adapters = {
        name: write_adapter(path / name, tiny_model("llama", vocab_size=VOCAB_TOKENS), seed=seed)
        for seed, name in enumerate(("poems", "sql"))
    }
    return model_folder(path / "base", "llama"), adapters


@pytest.fixture(scope="module")
def adapted(farm: Farm, folders: tuple[Path, dict[str, Path]]) -> Farm:
    """The farm with one more worker."""
    model, adapters = folders
    named = ",".join(f"{name}={folder}" for name, folder in adapters.items())
    served = {"FARM_MODEL": str(model), "FARM_MODEL_NAME": "base", "FARM_ADAPTERS": named}
    farm.start("workers", **patched("failpoints", **served))
    return farm


def said_by_engine(model: Path, adapters: dict[str, Path]) -> dict[str | None, str]:
    """What the engine says to the messages, by adapter, without a farm around it."""
    engine, info = load_engine(str(model), max_sequences=4, adapters=adapters)
    card = model_card("base", info, "paged", engine.context_tokens)
    rendered = PromptFormat(card, info.tokenizer_json)
    ids = rendered.encode(rendered.render(MESSAGES, tools=None), add_special_tokens=False)
    stop = StopRule(max_tokens=GREEDY["max_tokens"], ignore_eos=True)
    for name in (None, *adapters):
        prompt = Prompt(id=name or "", token_ids=ids, sampling=SamplingParams(temperature=0.0), stop=stop, adapter=name)
        engine.submit(prompt)
    said: dict[str | None, str] = dict.fromkeys((None, *adapters), "")
    while engine.has_work:
        for chunk in engine.step():
            said[chunk.prompt_id or None] += chunk.text
    engine.close()
    return said


def test_each_name_is_answered_by_its_adapter(adapted: Farm, folders: tuple[Path, dict[str, Path]]) -> None:
    expected = said_by_engine(*folders)
    assert len(set(expected.values())) == 3
    for adapter, text in expected.items():
        asked = GREEDY | {"model": adapter or "base"}
        answer = post(f"{adapted.url}/v1/chat/completions", asked).raise_for_status()
        assert answer.json()["model"] == (adapter or "base")
        assert answer.json()["choices"][0]["message"]["content"] == text


def test_adapters_are_listed_and_recorded(adapted: Farm, eventually: Callable[..., Any]) -> None:
    listed = {model["id"]: model for model in adapted.get("/v1/models")["data"]}
    assert (listed["poems"]["root"], listed["poems"]["parent"], listed["base"]["parent"]) == ("base", "base", None)
    shown = adapted.get("/admin/models/status")["data"]
    assert next(model for model in shown if model["name"] == "base")["adapters"] == ["poems", "sql"]
    asked = GREEDY | {"model": "sql", "max_tokens": 3}
    answer = post(f"{adapted.url}/v1/chat/completions", asked).raise_for_status()
    job_id = answer.headers["farm-job-id"]
    query = f"SELECT model_asked, model, params FROM jobs WHERE id = '{job_id}' AND state = 'finished'"
    [row] = eventually(lambda: adapted.query(query))
    assert (row["model_asked"], row["model"]) == ("sql", "base")
    assert '"adapter": "sql"' in str(row["params"]).replace("'", '"').replace('":"', '": "')


def test_a_job_whose_worker_was_killed_goes_on_with_its_adapter(adapted: Farm) -> None:
    asked = GREEDY | {"model": "poems", "max_tokens": 400, "stream": True}
    undisturbed = Answer(adapted.url, asked).read()
    adapted.fail_at("SIGKILL 10")
    disturbed = Answer(adapted.url, asked)
    assert disturbed.read() == undisturbed
    assert adapted.get(f"/v1/jobs/{disturbed.job_id}")["attempts"] == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"FARM_ADAPTERS": "x=/nowhere/at/all"}, "adapter 'x': /nowhere/at/all cannot be loaded"),
        ({"FARM_ADAPTERS": "base=/nowhere"}, "adapter 'base' has the name of its model"),
    ],
)
def test_a_worker_with_an_adapter_that_cannot_be_served_does_not_start(
    farm: Farm, folders: tuple[Path, dict[str, Path]], settings: dict[str, str], said: str, capfd: Any
) -> None:
    with pytest.raises(RuntimeError, match="did not get ready"):
        farm.start("workers", FARM_MODEL=str(folders[0]), FARM_MODEL_NAME="base", **settings)
    assert said in capfd.readouterr().err
