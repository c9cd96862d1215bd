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
from scheduler.models import ModelCard
from scheduler.routing.choice import Route, choose
from scheduler.routing.decision import recorded
from scheduler.routing.rules import Asked, Target

FAILED = "failed"
"""The state of a model's card that its node agent has given up."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A route and the first of its targets that can serve. `passed_over`: those before it, each with the reason."""

    asked: Asked
    route: Route
    target: Target
    card: ModelCard
    adapter: str | None
    passed_over: Sequence[dict[str, str]] = ()

    def record(self) -> dict[str, Any]:
        """The decision as it is kept with the job."""
        return recorded(self.asked, self.route, self.target, self.passed_over)


async def serving(node: Node, asked: Asked) -> Serving:
    """Decide, and pass over targets that nobody serves or that have failed.

    Where no target is left, the refusal of the first one stands. Raises UnknownModel, ModelFailed, QueueUnavailable.
    """
    route = choose(node.rules.current, asked)
    passed_over: list[dict[str, str]] = []
    last_resort: Serving | None = None
    refusal: UnknownModel | ModelFailed | None = None
    for target in route.targets:
        try:
            card, adapter = await node.catalog.find(target.model)
        except UnknownModel as error:
            reason = node.places.failed(target.model)
            refusal = refusal or (ModelFailed(target.model, reason) if reason else error)
            passed_over.append({"model": target.model, "reason": "not served"})
            continue
        found = Serving(asked, route, target, card, adapter, tuple(passed_over))
        if card.state != FAILED:
            return found
        last_resort = last_resort or found
        passed_over.append({"model": target.model, "reason": "failed"})
    if last_resort is not None:
        return last_resort  # its queue says why it has failed
    assert refusal is not None  # a route has targets
    raise refusal


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
