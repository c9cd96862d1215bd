"""Bodies: JSON requests read strictly, validation errors told by dotted path, JSON responses written by orjson."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from api.errors import ApiError, InvalidParameter

Model = TypeVar("Model", bound=BaseModel)


class JsonResponse(Response):
    """A JSON response written by orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Serialize with orjson."""
        return orjson.dumps(content)


class JsonRequest(Request):
    """A request whose body must be JSON in UTF-8 without NUL characters in any string."""

    async def json(self) -> Any:
        """The parsed body. Raises orjson.JSONDecodeError (a json.JSONDecodeError) and InvalidParameter."""
        raw = await self.body()
        parsed = orjson.loads(raw)
        if b"\\u0000" in raw:
            refuse_nul(parsed)
        return parsed


class JsonRoute(APIRoute):
    """A route whose endpoint reads its body through JsonRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the request before FastAPI reads it."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(JsonRequest(request.scope, request.receive))

        return handle


def validated(model: type[Model], body: Any, prefix: str) -> Model:
    """Validate a body that came inside another one. Raises ApiError with the path below `prefix`."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise invalid_body(error.errors(), prefix) from error


def invalid_body(errors: Sequence[Any], prefix: str = "") -> ApiError:
    """Pydantic's errors as one 400: the first one's path and text, and how many more there are."""
    first: Mapping[str, Any] = errors[0]
    if first["type"] == "json_invalid":
        reason = first["ctx"]["error"]
        return ApiError(400, f"The body is not valid JSON: {reason} (at byte {first['loc'][-1]}).", code="invalid_json")
    path = [part for part in first["loc"] if not str(part).startswith("-")]
    if path and path[0] in ("body", "query", "path", "header"):
        path = path[1:]
    param = ".".join([*filter(None, [prefix]), *map(str, path)]) or None
    if param is None:
        return ApiError(400, "The body must be a JSON object.", code="invalid_json")
    text = str(first["msg"]).removeprefix("Value error, ")
    more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
    return ApiError(400, f"Invalid {param!r}: {text}.{more}".replace("..", "."), param=param)


def refuse_nul(value: Any, path: tuple[str, ...] = ()) -> None:
    """Raise InvalidParameter for the first string (or key) that holds a NUL character."""
    if isinstance(value, str):
        if "\0" in value:
            raise InvalidParameter(".".join(path), "NUL characters are not allowed in text.")
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_nul(key, path)
            refuse_nul(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_nul(item, (*path, str(index)))
