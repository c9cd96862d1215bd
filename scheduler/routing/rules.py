"""What a routing rule says, and what it may say: one definition for HTTP, SQL and the decision.

Regular expressions are RE2's: their time is linear in the name's length whatever they say, and their programs are
bounded here, one by one and in sum, because the constant of that linear time is the program's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any

import re2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scheduler.errors import InvalidRule
from scheduler.jobs import Lane
from scheduler.parameters import (
    MaxTokens,
    MinP,
    Penalty,
    RepetitionPenalty,
    Temperature,
    TimeoutS,
    TopK,
    TopP,
)
from scheduler.requests import JobRequest

MAX_RULES = 2000
MAX_NAME_CHARS = 256
"""Of models' names, and so of patterns."""

MAX_PROGRAM_SIZE = 500
MAX_PROGRAMS_SIZE = 10_000
"""Instructions of one compiled expression, and of all those of a rule set."""

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
Names = Annotated[tuple[Name, ...], Field(strict=False, max_length=1000)]
LaneName = Annotated[Lane, Field(strict=False)]
Hour = Annotated[int, Field(ge=0, le=23)]


class Match(StrEnum):
    """How a rule's pattern is compared with the model name asked for; a regular expression has to match all of it."""

    EXACT = "exact"
    PREFIX = "prefix"
    REGEX = "regex"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    def as_json(self) -> dict[str, Any]:
        """What was said, without what was left out; `model_validate` is its inverse."""
        return self.model_dump(mode="json", exclude_defaults=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What rules look at. `prompt_tokens` is an estimate (no model is chosen yet); `session` is a digest or empty."""

    model: str
    lane: Lane
    tenant: str = ""
    key: str = ""
    prompt_tokens: int = 0
    has_tools: bool = False
    has_images: bool = False
    hour: int = 0
    session: str = ""
    request_id: str = ""


class Hours(_Part):
    """Hours of the day in UTC, from the beginning of `start` to that of `end`; over midnight where `end` is smaller."""

    start: Hour
    end: Hour

    @model_validator(mode="after")
    def _is_some_time(self) -> Hours:
        if self.start == self.end:
            raise ValueError("start and end are the same hour; leave 'hours' out for the whole day")
        return self

    def hold(self, hour: int) -> bool:
        """Is this hour among them?"""
        if self.start < self.end:
            return self.start <= hour < self.end
        return hour >= self.start or hour < self.end


class Conditions(_Part):
    """All of them must hold; one that is left out always does. Tokens: `min` ≤ estimate < `max`."""

    tenants: Names = ()
    keys: Names = Field((), description="Ids of API keys.")
    lanes: Annotated[tuple[LaneName, ...], Field(strict=False)] = ()
    min_prompt_tokens: int | None = Field(None, ge=1)
    max_prompt_tokens: int | None = Field(None, ge=1, description="Exclusive.")
    tools: bool | None = Field(None, description="Are tools offered?")
    images: bool | None = Field(None, description="Does the prompt hold images?")
    hours: Hours | None = None

    def unmet(self, asked: Asked) -> str | None:
        """The name of the first condition that does not hold, None where all do."""
        if self.tenants and asked.tenant not in self.tenants:
            return "tenants"
        if self.keys and asked.key not in self.keys:
            return "keys"
        if self.lanes and asked.lane not in self.lanes:
            return "lanes"
        return self._unmet_by_content(asked)

    def _unmet_by_content(self, asked: Asked) -> str | None:
        if self.min_prompt_tokens is not None and asked.prompt_tokens < self.min_prompt_tokens:
            return "min_prompt_tokens"
        if self.max_prompt_tokens is not None and asked.prompt_tokens >= self.max_prompt_tokens:
            return "max_prompt_tokens"
        if self.tools is not None and asked.has_tools is not self.tools:
            return "tools"
        if self.images is not None and asked.has_images is not self.images:
            return "images"
        if self.hours is not None and not self.hours.hold(asked.hour):
            return "hours"
        return None


NO_CONDITIONS = Conditions()


class Overrides(_Part):
    """Parameters that a rule sets whatever the request says; `max_tokens` only ever shortens an answer.

    They are those of generation: a request for vectors has none of them, and stays as it is.
    """

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    max_tokens: MaxTokens | None = None

    def on(self, request: JobRequest) -> JobRequest:
        """The request with these parameters in effect."""
        drawn = self.model_dump(exclude_none=True, exclude={"max_tokens"})
        if "top_k" in drawn:
            drawn["top_k"] = max(0, drawn["top_k"])
        stopping = request.stopping
        if self.max_tokens is not None and self.max_tokens < stopping.max_tokens:
            shorter = min(stopping.min_tokens, self.max_tokens)
            stopping = replace(stopping, max_tokens=self.max_tokens, min_tokens=shorter)
        return replace(request, sampling=replace(request.sampling, **drawn), stopping=stopping)


NO_OVERRIDES = Overrides()


class Target(_Part):
    """A model that may serve, one of its adapters, or a provider's model (`provider/model`, or `provider` beside it).

    `weight` is its part among a rule's targets.
    """

    model: Name
    weight: int = Field(1, ge=0, le=1_000_000)
    timeout_s: TimeoutS | None = Field(None, description="A job that somebody waits for has ended by then.")

    @model_validator(mode="before")
    @classmethod
    def _in_one_word(cls, said: Any) -> Any:
        """What is served has one name everywhere."""
        if not isinstance(said, dict) or not isinstance(provider := said.get("provider"), str):
            return said
        return {name: value for name, value in said.items() if name != "provider"} | {
            "model": f"{provider}/{said.get('model', '')}"
        }


class Sticky(StrEnum):
    """Whose requests stay with the target that was drawn for the first of them."""

    SESSION = "session"
    """A session's, where the request names one; others draw one by one."""
    TENANT = "tenant"
    REQUEST = "request"


class Rule(_Part):
    """One rule. `lane` None keeps the lane that the request asked for."""

    name: Name
    match: Annotated[Match, Field(strict=False)]
    pattern: str = Field(max_length=MAX_NAME_CHARS)
    when: Conditions = Conditions()
    targets: Annotated[tuple[Target, ...], Field(strict=False, min_length=1, max_length=16)]
    sticky: Annotated[Sticky, Field(strict=False)] = Sticky.SESSION
    fallback: Annotated[tuple[Target, ...], Field(strict=False, max_length=8)] = ()
    lane: LaneName | None = None
    overrides: Overrides = NO_OVERRIDES
    note: Annotated[str, Field(max_length=1000)] = ""

    @model_validator(mode="after")
    def _can_be_applied(self) -> Rule:
        if not self.pattern and self.match is not Match.PREFIX:
            raise ValueError("the pattern is empty; for all models use match 'prefix' with the pattern ''")
        if self.match is Match.REGEX:
            compiled(self.pattern)
        if not sum(target.weight for target in self.targets):
            raise ValueError("all targets have weight 0")
        models = [target.model for target in self.targets]
        if len(models) != len(set(models)):
            raise ValueError("a model is named twice among the targets")
        return self

    def fits(self, model: str) -> bool:
        """Does the pattern fit this model name? The slow way, rule by rule; index.py has the fast one."""
        if self.match is Match.EXACT:
            return model == self.pattern
        if self.match is Match.PREFIX:
            return model.startswith(self.pattern)
        return compiled(self.pattern).fullmatch(model) is not None


def compiled(pattern: str) -> Any:
    """A pattern that has been checked, compiled. Raises ValueError for one that RE2 refuses or that is too large."""
    try:
        program = re2.compile(pattern, options=re2_options())
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error
        raise ValueError(f"{pattern!r} is no regular expression of RE2: {reason}") from error
    if program.programsize > MAX_PROGRAM_SIZE:
        size = f"{program.programsize} instructions, more than {MAX_PROGRAM_SIZE}"
        raise ValueError(f"{pattern!r} is too large ({size}); say it without counted repetitions, or in several rules")
    return program


def re2_options(max_mem_bytes: int = 64 * 1024) -> Any:
    """RE2's options: bounded memory (half of it is what a program may take), and nothing is written to stderr."""
    options = re2.Options()
    options.max_mem = max_mem_bytes
    options.log_errors = False
    return options


def checked_rules(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Rules that can stand in one set. Raises InvalidRule."""
    if len(rules) > MAX_RULES:
        raise InvalidRule(f"{len(rules)} rules are more than {MAX_RULES}. Say several exact names as one expression.")
    names: set[str] = set()
    for rule in rules:
        if rule.name in names:
            raise InvalidRule(
                f"Two rules have the name {rule.name!r}. Rename one: the record tells them by their names."
            )
        names.add(rule.name)
    patterns = {rule.pattern for rule in rules if rule.match is Match.REGEX}
    size = sum(compiled(pattern).programsize for pattern in patterns)
    if size > MAX_PROGRAMS_SIZE:
        raise InvalidRule(
            f"The regular expressions have {size} instructions together, more than {MAX_PROGRAMS_SIZE}. "
            "Use exact names and prefixes where they do."
        )
    return tuple(rules)


def read_rule(said: Any) -> Rule:
    """A rule from what `as_json` made. Raises InvalidRule, with the place."""
    try:
        return Rule.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidRule(f"A rule cannot be read: {place}: {first['msg']}.") from error
