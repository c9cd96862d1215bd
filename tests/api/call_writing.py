"""Calls as models of each format write them, for tests that read them again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Arguments = Mapping[str, Any]


def bare(value: Any) -> str:
    """A value without quotes around it, where it is text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(name: str, arguments: Arguments) -> str:
    return f'\n{{"name": {json.dumps(name)}, "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n'


def _kimi_k2(name: str, arguments: Arguments) -> str:
    body = json.dumps(arguments, ensure_ascii=False)
    return f"<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{body}<|tool_call_end|>"


def _mistral(name: str, arguments: Arguments) -> str:
    return f"{name}[ARGS]{json.dumps(arguments, ensure_ascii=False)}"


def _qwen3_coder(name: str, arguments: Arguments) -> str:
    inner = "".join(f"<parameter={key}>\n{bare(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"\n<function={name}>\n{inner}</function>\n"


def _glm47(name: str, arguments: Arguments, prefix: str = "") -> str:
    inner = "".join(
        f"<{prefix}arg_key>{key}</{prefix}arg_key>\n<{prefix}arg_value>{bare(value)}</{prefix}arg_value>\n"
        for key, value in arguments.items()
    )
    return f"{name}\n{inner}"


def _longcat(name: str, arguments: Arguments) -> str:
    return _glm47(name, arguments, "longcat_")


def _minimax_m2(name: str, arguments: Arguments) -> str:
    inner = "".join(f'<parameter name="{key}">{bare(value)}</parameter>\n' for key, value in arguments.items())
    return f'\n<invoke name="{name}">\n{inner}</invoke>\n'


def _minicpm5(name: str, arguments: Arguments) -> str:
    return f'"{name}">' + "".join(f'<param name="{key}">{bare(value)}</param>' for key, value in arguments.items())


def _muse_spark(name: str, arguments: Arguments) -> str:
    inner = "".join(
        f'<atem:parameter name="{key}">{json.dumps(value)}</atem:parameter>\n' for key, value in arguments.items()
    )
    return f'\n<atem:invoke name="{name}">\n{inner}</atem:invoke>\n'


def _kimi_k3(name: str, arguments: Arguments) -> str:
    types = {str: "string", int: "integer", bool: "boolean", list: "array", dict: "object", type(None): "null"}
    inner = "".join(
        f'<|open|>argument key="{key}" type="{types[type(value)]}"<|sep|>{bare(value)}<|close|>argument<|sep|>'
        for key, value in arguments.items()
    )
    return f'<|open|>call tool="{name}" index="1"<|sep|>{inner}<|close|>call<|sep|>'


def _pythonic(name: str, arguments: Arguments) -> str:
    return f"[{name}({', '.join(f'{key}={json.dumps(value)}' for key, value in arguments.items())})]"


def _gemma(quote: str) -> Callable[[str, Arguments], str]:
    def value(item: Any) -> str:
        if isinstance(item, str):
            return f"{quote}{item}{quote}"
        if isinstance(item, dict):
            return "{" + ",".join(f"{key}:{value(inner)}" for key, inner in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ",".join(map(value, item)) + "]"
        return json.dumps(item)

    return lambda name, arguments: f"call:{name}{value(dict(arguments))}"


WRITE: Mapping[str, Callable[[str, Arguments], str]] = {
    "json_tools": _json,
    "kimi_k2": _kimi_k2,
    "mistral": _mistral,
    "qwen3_coder": _qwen3_coder,
    "glm47": _glm47,
    "laguna": _glm47,
    "longcat": _longcat,
    "minimax_m2": _minimax_m2,
    "minicpm5": _minicpm5,
    "muse_spark": _muse_spark,
    "kimi_k3": _kimi_k3,
    "pythonic": _pythonic,
    "gemma4": _gemma('<|"|>'),
    "function_gemma": _gemma("<escape>"),
}
"""What stands between the markers, by the name of mlx-lm's parser."""
