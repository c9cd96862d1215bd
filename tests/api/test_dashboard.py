"""Grafana's dashboard asks only for metrics and labels that /metrics has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from api.metrics import FarmFigures, Metrics
from scheduler.workers import FIGURES

DASHBOARD = Path(__file__).parents[2] / "docs" / "monitoring" / "grafana" / "dashboard.json"
METRIC = re.compile(r"\bfarm_\w+")
SELECTED = re.compile(r"(?P<metric>farm_\w+)\{(?P<labels>[^}]*)\}")
GROUPED = re.compile(r"by \((?P<labels>[^)]*)\) \((?:rate\()?(?P<metric>farm_\w+)")
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def labels_by_sample() -> dict[str, set[str]]:
    """Every sample of a node that has served something, with its labels."""
    metrics = Metrics()
    metrics.http_requests.labels("GET", "/health", "200").inc()
    metrics.failed.labels("m", "failed").inc()
    metrics.unparsed_calls.labels("m").inc()
    meter = metrics.meter("m")
    meter.frame()
    meter.frame()
    meter.finished("stop", 0)
    drafts = {name: {"ngram": 1} for name in ("drafted_tokens_total", "right_drafts_total")}
    worker = {**dict.fromkeys(FIGURES, 1), "worker": "w", "model": "m", **drafts}
    text = metrics.render(FarmFigures([worker], {"m": {"normal": 1}})).decode()
    return {
        sample.name: set(sample.labels) for family in text_string_to_metric_families(text) for sample in family.samples
    }


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Panel, query, and how its lines are named."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]


def test_every_query_names_metrics_and_labels_that_there_are() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    samples = labels_by_sample()
    asked = list(expressions(dashboard))
    assert len(asked) > 20
    for title, expression, legend in asked:
        names = METRIC.findall(expression)
        assert names, title
        assert set(names) <= set(samples), title
        for found in SELECTED.finditer(expression):
            labels = re.findall(r"(\w+)=", found["labels"])
            assert set(labels) <= samples[found["metric"]], title
        for found in GROUPED.finditer(expression):
            assert set(re.split(r",\s*", found["labels"])) <= samples[found["metric"]], title
        assert set(PLACEHOLDER.findall(legend)) <= set().union(*(samples[name] for name in names)), title
    [model] = dashboard["templating"]["list"]
    name, label = re.findall(r"\((\w+), (\w+)\)", model["query"]["query"])[0]
    assert label in samples[name]


def test_panels_do_not_overlap_and_ask_the_provisioned_source() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not own & cells, panel["title"]
        cells |= own
        assert panel["datasource"]["uid"] == "prometheus"
    source = (DASHBOARD.parent / "datasource.yaml").read_text(encoding="utf-8")
    assert "uid: prometheus" in source
