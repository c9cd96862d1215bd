"""What operators ask of a node agent: load, unload, pin, unpin, and whether a model would fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from scheduler.agents import Action, Order
from scheduler.model_events import ModelEvent
from workers.catalogue import Catalogue, Tell
from workers.residency import Phase, fit
from workers.tenure import Tenure

BY_HAND = "by hand"


class Orders:
    """Carries orders out; `evict` ends a model's process, with the reason; `tell` hears what has changed otherwise."""

    def __init__(
        self, tenures: Mapping[str, Tenure], catalogue: Catalogue, evict: Callable[[Tenure, str], None], tell: Tell
    ) -> None:
        self._tenures = tenures
        self._catalogue = catalogue
        self._evict = evict
        self._tell = tell

    def carry_out(self, order: Order) -> dict[str, Any]:
        """Do it; the answer has `refused` with the reason where it cannot be done."""
        tenure = self._tenures.get(order.model)
        if tenure is None:
            return {"refused": f"{order.model!r} is not in this agent's catalogue"}
        was_pinned = tenure.pinned
        steps: dict[str, Callable[[Tenure], dict[str, Any]]] = {
            Action.FIT: self._fit,
            Action.LOAD: self._load,
            Action.UNLOAD: self._unload,
            Action.PIN: self._pin,
            Action.UNPIN: self._unpin,
        }
        if order.action not in steps:
            return {"refused": f"this agent does not know how to {order.action}"}
        answer = steps[order.action](tenure)
        if tenure.pinned is not was_pinned:
            self._tell(ModelEvent.PINNED if tenure.pinned else ModelEvent.UNPINNED, tenure.name, {"by": order.by})
        return {"model": tenure.name, "state": tenure.state, "pinned": tenure.pinned, **answer}

    def _fit(self, tenure: Tenure) -> dict[str, Any]:
        if tenure.description is None:
            return {"refused": tenure.failed}
        models = [other.now(time.monotonic()) for other in self._tenures.values()]
        found = fit(models, tenure.name, budget_bytes=self._catalogue.budget_bytes)
        budget = {"budget_bytes": self._catalogue.budget_bytes}
        return asdict(found) | budget | {"fits": not found.why_not, "measured": tenure.measured_bytes > 0}

    def _load(self, tenure: Tenure) -> dict[str, Any]:
        """Also a model that has failed is tried again."""
        found = self._fit(tenure)
        if why := found.get("refused") or found["why_not"]:
            return {**found, "refused": why}
        tenure.failed = ""
        if tenure.phase in (Phase.ABSENT, Phase.LEAVING):
            tenure.wanted_since_s = time.monotonic()
        return found

    def _unload(self, tenure: Tenure) -> dict[str, Any]:
        if tenure.pinned:
            return {"refused": f"{tenure.name!r} is pinned: unpin it first"}
        tenure.wanted_since_s, tenure.preload = None, False
        self._evict(tenure, BY_HAND)
        return {}

    def _pin(self, tenure: Tenure) -> dict[str, Any]:
        """Loaded as well, if it is not."""
        found = self._load(tenure)
        if "refused" not in found:
            tenure.pinned = True
        return found

    def _unpin(self, tenure: Tenure) -> dict[str, Any]:
        tenure.pinned = False
        return {}
