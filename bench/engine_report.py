"""What came out: a measured ratio against its goal, as a row of a markdown table, in a JSON file and in a picture."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HEADER = """\
| scenario | model | ratio | goal | reached | runs | by CPU time | outputs | |
|---|---|---:|---:|---|---:|---:|---|---|"""
ROW_PIXELS, LABEL_PIXELS, BAR_PIXELS, MARGIN_PIXELS = 22, 300, 420, 130
DECADES = 1.0  # the picture shows a tenth of the goal to ten times the goal


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on the ratio: the least for speed-ups, the most for costs."""

    bound: float
    at_least: bool = True

    def margin(self, ratio: float) -> float:
        """How far the ratio is on the right side: 1 at the goal, above when it is surpassed."""
        return ratio / self.bound if self.at_least else self.bound / max(ratio, 1e-9)

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One figure. `runs` are the ratios that `ratio` is the median of; `cpu_ratio` is the same by CPU time.

    `outputs` says whether the sides' greedy outputs agree, empty where nothing was compared.
    """

    scenario: str
    model: str
    goal: Goal | None
    runs: list[float]
    cpu_ratio: float | None = None
    outputs: str = ""
    detail: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(self.runs)

    @property
    def reached(self) -> bool:
        """Whether the goal is met, by wrong outputs never."""
        return (self.goal is None or self.goal.margin(self.ratio) >= 1) and "MISMATCH" not in self.outputs

    @property
    def key(self) -> str:
        return f"{self.scenario}/{self.model}"

    def row(self) -> str:
        verdict = "" if self.goal is None else "yes" if self.reached else "**no**"
        spread = f"{len(self.runs)}: {min(self.runs):.3g}-{max(self.runs):.3g}"
        cpu = "" if self.cpu_ratio is None else f"{self.cpu_ratio:.3f}"
        goal = self.goal or ""
        cells = (self.scenario, self.model, f"{self.ratio:.3f}", goal, verdict, spread, cpu, self.outputs, self.detail)
        return f"| {' | '.join(map(str, cells))} |"

    def entry(self) -> dict[str, Any]:
        """The row as JSON."""
        fields = asdict(self) | {"goal": str(self.goal or ""), "ratio": self.ratio, "reached": self.reached}
        return fields | {"margin": None if self.goal is None else self.goal.margin(self.ratio)}


def save(folder: Path, results: Iterable[Result], measured: Mapping[str, str]) -> None:
    """Write engine.json and engine.svg; rows of earlier runs that were not measured again stay.

    `measured`: when and with what, noted in each entry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "engine.json"
    entries: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    entries |= {result.key: result.entry() | dict(measured) for result in results}
    path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    (folder / "engine.svg").write_text(picture(entries))


def picture(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """An SVG: for each row with a goal a bar from the goal (the line) to the ratio, to the right when surpassed."""
    rows = [(key, entry) for key, entry in entries.items() if entry["margin"] is not None]
    width, height = LABEL_PIXELS + BAR_PIXELS + MARGIN_PIXELS, (len(rows) + 2) * ROW_PIXELS
    middle = LABEL_PIXELS + BAR_PIXELS / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{middle}" y="15" text-anchor="middle">goal</text>',
    ]
    for index, (key, entry) in enumerate(rows):
        y = (index + 1) * ROW_PIXELS
        reach = max(-1.0, min(1.0, math.log10(max(entry["margin"], 1e-9)) / DECADES)) * BAR_PIXELS / 2
        colour = "#2a7f4f" if entry["reached"] else "#c0392b"
        parts += [
            f'<text x="{LABEL_PIXELS - 8}" y="{y + 14}" text-anchor="end">{escape(key)}</text>',
            f'<rect x="{min(middle, middle + reach):.1f}" y="{y + 3}" width="{abs(reach):.1f}" '
            f'height="{ROW_PIXELS - 7}" fill="{colour}"/>',
            f'<text x="{LABEL_PIXELS + BAR_PIXELS + 6}" y="{y + 14}">{entry["ratio"]:.3g} '
            f"({escape(entry['goal'])})</text>",
        ]
    line = f'<line x1="{middle}" x2="{middle}" y1="20" y2="{height - ROW_PIXELS + 4}" stroke="black"/>'
    return "\n".join([*parts, line, "</svg>", ""])
