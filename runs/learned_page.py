"""The page and the picture of what trained policies are worth, from docs/results/learned.json; plays nothing.

Values have no unit (each task's page says what they are made of); curves are values on validation scenarios over decisions.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_COLOURS = ("#1f6fb2", "#d1622b", "#3a8f4d", "#8256a8", "#b0882a")
_WIDTH, _HEIGHT, _COLUMNS = 300, 170, 3


def write(result: Mapping[str, Any], folder: Path) -> None:
    """Write learned.md and learned.svg."""
    pages = os.path.relpath(Path(__file__).resolve().parent.parent / "docs" / "environments", folder.resolve())
    (folder / "learned.md").write_text(page(result, pages), encoding="utf-8")
    (folder / "learned.svg").write_text(picture(result["tasks"]), encoding="utf-8")


def figure(estimate: Mapping[str, float] | None, scale: float = 1.0, digits: int = 3) -> str:
    """A figure and its interval."""
    if estimate is None:
        return "no gap"
    return f"{scale * estimate['value']:.{digits}f} ({scale * estimate['low']:.{digits}f} to {scale * estimate['high']:.{digits}f})"


def page(result: Mapping[str, Any], pages: str) -> str:
    """The page as Markdown."""
    tasks = result["tasks"]
    lines = [
        "# What trained policies are worth",
        "",
        f"Made by `{result['made_by']}` with inferencegym {result['version']}; do not edit. {result['scenarios']} test scenarios a task, which nothing was trained,",
        "searched or chosen on. Interquartile means of the episodes' values with 95 % intervals, resampled over training seeds and scenarios.",
        "",
        "| task | algorithm, seeds | learned | best static | best rule | clairvoyant | gap closed from best static, % | from the best of static and rules, % | crashes | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in tasks.items():
        s = one["standing"]
        first = next(iter(one["trainings"].values()))
        cells = [
            f"[{name}]({pages}/tasks/{name}.md)", f"{first['algorithm']}, {s['seeds']}", f"**{figure(s['learned'])}**", figure(s["best_static"]),
            f"{s['rule']} {figure(s['best_rule'])}", f"{s['clairvoyant']['value']:.3f}", figure(s["closed"], 100, 0), figure(s["closed_from_rule"], 100, 0),
            str(sum(t["crashes"] for t in one["trainings"].values())), s["verdict"],
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "*verdict*: against the better of the best static configuration and the best rule. *beats*: the intervals do not overlap. *better on the same scenarios*: they do, but",
        "the differences scenario by scenario lie above 0. *no worse*: the interval of those differences holds 0. The best rule is the one with the best mean on these",
        "test scenarios, which flatters it. Interquartile means leave out rare disasters, so crashed episodes are counted. The clairvoyant planner knows the future; more than 100 % is possible, it is no proven bound.",
        "",
        "![training curves](learned.svg)",
        "",
        "## The policy that ships" if result.get("installed", True) else "## The best on validation",
        "",
        "Of each task's seeds, the one that is best on validation scenarios is `src/inferencegym/policies/weights/TASK.npz`: `inferencegym evaluate --policy learned,best-static --task TASK`."
        if result.get("installed", True)
        else "Of each task's seeds. These do not ship.",
        "",
        "| task | seed | validation | best static there | on test | grade x 100 | above best static, same scenarios | seconds, cold to policy file | settings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in tasks.items():
        t, s = one["trainings"][str(one["chosen_seed"])], one["chosen"]
        cold = t.get("cold_wall_s")
        spent = f"{t['wall_s']:.0f} (learning alone)" if cold is None or t.get("resumed") else f"{cold:.0f}"
        static = "" if t["validation_best_static"] is None else f"{t['validation_best_static']:.3f}"
        lines.append(
            f"| {name} | {one['chosen_seed']} | {t['validation']:.3f} | {static} | {figure(s['learned'])} | {figure(s['grade'], 100, 1)} | {figure(s['over_static'])} | {spent} | `{t['config_digest'][:12]}` |"
        )
    lines += ["", "## Seed by seed", "", "Mean value on the test scenarios.", "", "| task | " + " | ".join(f"seed {i}" for i in range(_most_seeds(tasks))) + " |"]  # fmt: skip
    lines.append("|---" * (1 + _most_seeds(tasks)) + "|")
    for name, one in tasks.items():
        means = [one["trainings"].get(str(i)) for i in range(_most_seeds(tasks))]
        lines.append(f"| {name} | " + " | ".join("" if t is None else f"{sum(t['values']) / len(t['values']):.3f}" for t in means) + " |")  # fmt: skip
    return "\n".join([*lines, ""])


def _most_seeds(tasks: Mapping[str, Any]) -> int:
    return max((int(seed) + 1 for one in tasks.values() for seed in one["trainings"]), default=0)


# --- picture ----------------------------------------------------------------------------------------------------------


def picture(tasks: Mapping[str, Any]) -> str:
    """Training curves: value on validation scenarios over decisions, a line a seed; dashed, the best static configuration there."""
    rows = -(-len(tasks) // _COLUMNS)
    parts = [_curves(name, one["trainings"], i % _COLUMNS * _WIDTH, i // _COLUMNS * _HEIGHT) for i, (name, one) in enumerate(tasks.items())]  # fmt: skip
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_COLUMNS * _WIDTH} {max(rows, 1) * _HEIGHT}" font-family="sans-serif" font-size="10">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _curves(name: str, trainings: Mapping[str, Any], left: float, top: float) -> str:
    bars = [t["validation_best_static"] for t in trainings.values() if t["validation_best_static"] is not None]
    curves = [t["curve"] for t in trainings.values()]
    values = [value for curve in curves for _, value in curve] + bars
    most = max((steps for curve in curves for steps, _ in curve), default=1)
    # What a policy is at its very beginning would squeeze all the rest; it may leave the picture below.
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1]
    span = max(high - low, 1e-3)
    low, high = low - 0.1 * span, high + 0.1 * span
    x0, y0, width, height = left + 42, top + 24, _WIDTH - 56, _HEIGHT - 50

    def at(steps: float, value: float) -> str:
        return f"{x0 + width * steps / most:.1f},{y0 + height * (1 - (max(value, low) - low) / (high - low)):.1f}"

    parts = [
        f'<text x="{left + 42}" y="{top + 15}" font-weight="bold">{html.escape(name)}</text>',
        f'<rect x="{x0}" y="{y0}" width="{width}" height="{height}" fill="none" stroke="#bbb"/>',
        f'<text x="{x0 - 4}" y="{y0 + 8}" text-anchor="end">{high:.3f}</text><text x="{x0 - 4}" y="{y0 + height}" text-anchor="end">{low:.3f}</text>',
        f'<text x="{x0}" y="{y0 + height + 13}">0</text><text x="{x0 + width}" y="{y0 + height + 13}" text-anchor="end">{most:,} decisions</text>',
    ]
    if bars and bars[0] < low:
        parts.append(
            f'<text x="{x0 + width - 4}" y="{y0 + height - 5}" text-anchor="end" fill="#555">best static: {bars[0]:.3f}, far below</text>'
        )
    elif bars:
        start, end = at(0, bars[0]).split(","), at(most, bars[0]).split(",")
        parts.append(f'<line x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}" stroke="#555" stroke-dasharray="4 3"/>')  # fmt: skip
    for i, curve in enumerate(curves):
        points = " ".join(at(steps, value) for steps, value in curve)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_COLOURS[i % len(_COLOURS)]}" stroke-width="1.5"/>')  # fmt: skip
        parts += [_dot(at(steps, value), _COLOURS[i % len(_COLOURS)]) for steps, value in curve]
    return "".join(parts)


def _dot(place: str, colour: str) -> str:
    x, y = place.split(",")
    return f'<circle cx="{x}" cy="{y}" r="1.8" fill="{colour}"/>'


if __name__ == "__main__":
    write(json.loads((ROOT / "docs" / "results" / "learned.json").read_text()), ROOT / "docs" / "results")
