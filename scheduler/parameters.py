"""The ranges of a request's parameters, said once: bodies of requests and overrides by routing rules keep to them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag


def _number_or_text(value: Any) -> str:
    return "-text" if isinstance(value, str) else "-number"


Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=-1, description="-1 and 0: off.")]
MinP = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]
MaxTokens = Annotated[int, Field(ge=1)]
TimeoutS = Annotated[float, Field(gt=0, le=30 * 86400.0, allow_inf_nan=False)]
KeepAlive = Annotated[
    Annotated[float, Field(allow_inf_nan=False), Tag("-number")] | Annotated[str, Field(max_length=32), Tag("-text")],
    Discriminator(_number_or_text),
]
