"""Who serves a request: the routing rules' decision, held against what is served at this moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.call import Call
from api.draft import Draft
from api.node import Node
from scheduler.errors import ModelFailed, UnknownModel
from scheduler.models import ModelCard, Served
from scheduler.routing.choice import Route, choose
from scheduler.routing.decision import recorded
from scheduler.routing.rules import Asked, Target

FAILED = "failed"
"""The state of a model's card that its node agent has given up."""

OPEN = "circuit open"
"""The state of a provider's model that is not asked for a while, because it has failed again and again."""

UNABLE = frozenset({FAILED, OPEN})
"""States that are a reason to take the next target."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A route and the first of its targets that can serve. `passed_over`: those before it, each with the reason.

    `others` can serve as well, should that one fail.
    """

    asked: Asked
    route: Route
    target: Target
    card: ModelCard
    adapter: str | None
    passed_over: Sequence[dict[str, str]] = ()
    others: Sequence[Served] = ()

    def record(self) -> dict[str, Any]:
        """The decision as it is kept with the job."""
        return recorded(self.asked, self.route, self.target, self.passed_over)


async def serving(node: Node, asked: Asked) -> Serving:
    """Decide, and pass over targets that nobody serves, that have failed, or whose circuit is open.

    Where no target is left, the refusal of the first one stands. Raises UnknownModel, ModelFailed, QueueUnavailable.
    """
    route = choose(node.rules.current, asked)
    passed_over: list[dict[str, str]] = []
    able: list[tuple[Target, Served]] = []
    last_resort: Serving | None = None
    refusal: UnknownModel | ModelFailed | None = None
    for target in route.targets:
        found = await _served(node, target)
        if isinstance(found, Served) and found.card.state not in UNABLE:
            able.append((target, found))
            continue
        if isinstance(found, Served):
            reason = found.card.state
            last_resort = last_resort or Serving(asked, route, target, *found, tuple(passed_over))
        else:
            reason, refusal = "not served", refusal or found
        if not able:
            passed_over.append({"model": target.model, "reason": reason})
    if able:
        (first, (card, adapter)), *others = able
        return Serving(asked, route, first, card, adapter, tuple(passed_over), [served for _, served in others])
    if last_resort is not None:
        return last_resort  # its queue says why it has failed
    assert refusal is not None  # a route has targets
    raise refusal


async def _served(node: Node, target: Target) -> Served | UnknownModel | ModelFailed:
    """Who serves a target, or why nobody does."""
    try:
        return await node.catalog.find(target.model)
    except UnknownModel as error:
        reason = node.places.failed(target.model)
        return ModelFailed(target.model, reason) if reason else error


def asked_of(draft: Draft, call: Call) -> Asked:
    """What the rules look at. Raises Forbidden for a model or a lane that the caller's key may not use."""
    call.caller.require_model(draft.model)
    outline = draft.outline(call.session)
    return Asked(
        model=draft.model,
        lane=call.caller.lane(call.lane, draft.lane),
        tenant=call.caller.tenant,
        key=call.caller.key_id,
        prompt_tokens=outline.prompt_tokens,
        has_tools=outline.has_tools,
        has_images=outline.has_images,
        hour=hour_of(time.time()),
        session=outline.session,
        request_id=call.request_id,
    )


def hour_of(moment_s: float) -> int:
    """The hour of the day, UTC."""
    return int(moment_s // 3600 % 24)
