"""What LangChain's chat models are asked by the tests, whichever protocol they speak."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from tests.api.scripted_farm import Script, ScriptedWorker, prompt_text

CALL = Script(choices=[["On it.", '<tool_call>{"name": "weather", ', '"arguments": {"city": "Ulm"}}</tool_call>']])


class Place(BaseModel):
    """A place."""

    city: str
    zip_code: int


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Fog in {city}."


async def take_a_turn_with_a_tool(model: BaseChatModel, worker: ScriptedWorker) -> None:
    """A question, the call of a tool, its result, and the answer."""
    worker.script = CALL
    with_tools = model.bind_tools([weather])
    question = HumanMessage("Weather in Ulm?")
    answer = await with_tools.ainvoke([question])
    assert isinstance(answer, AIMessage)
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Ulm"})
    worker.script = Script(choices=[["Foggy."]])
    result = ToolMessage(await weather.ainvoke(call["args"]), tool_call_id=call["id"])
    assert (await with_tools.ainvoke([question, answer, result])).content == "Foggy."
    assert "Fog in Ulm." in prompt_text(worker.requests[-1])


async def stream_a_tool_call(model: BaseChatModel, worker: ScriptedWorker, **bound: Any) -> None:
    """A call whose pieces the client puts together; `bound` goes with the tools."""
    worker.script = CALL
    whole: Any = None
    async for chunk in model.bind_tools([weather], **bound).astream("Weather in Ulm?"):
        whole = chunk if whole is None else whole + chunk
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("weather", {"city": "Ulm"})]


async def ask_for_structured_output(model: BaseChatModel, worker: ScriptedWorker, method: str) -> None:
    """An object of a pydantic class, under a grammar."""
    place = {"city": "Ulm", "zip_code": 89073}
    call = f'<tool_call>\n{{"name": "Place", "arguments": {json.dumps(place)}}}\n</tool_call>'
    worker.script = Script(choices=[[json.dumps(place) if method == "json_schema" else call]])
    answer = await model.with_structured_output(Place, method=method).ainvoke("Where?")
    assert answer == Place(city="Ulm", zip_code=89073)
    assert worker.requests[-1].grammar is not None
