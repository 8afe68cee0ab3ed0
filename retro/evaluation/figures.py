"""The plots: success by attempt, success over training steps, and a stage's learning curves."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from retro.evaluation.results import Results
from retro.evaluation.roles import Description, Role, base_group, is_plain

matplotlib.rcParams["svg.hashsalt"] = "retro"  # the same figure gives the same bytes

# Okabe & Ito's palette: distinguishable with every common colour vision deficiency, and on paper by its markers.
_GREY, _BLACK, _LINES = "#8a8a8a", "#222222", "#e6e6e6"
_OF_ROLE = {
    Role.SINGLE: (_GREY, "."),
    Role.RETRY: (_GREY, "x"),
    Role.CONTROL: ("#5f5f5f", "s"),
    Role.VAGUE: (_GREY, "v"),
    Role.SHUFFLED: ("#CC79A7", "D"),
    Role.UNTRAINED: ("#E69F00", "^"),
    Role.IMITATION: ("#56B4E9", "v"),
    Role.CEILING: (_BLACK, "*"),
}
_OF_POLICY = {"ppo-rm": ("#009E73", "P"), "ppo-env": ("#0072B2", "o"), "ppo-mix": ("#D55E00", "X")}
_FURTHER = ("#D55E00", "#7B4FA3", "#8C6D1F", "#A0522D", "#2F6F6F")
_BEST_OF = {4: "--", 8: ":"}
_OF_TRAINING = ("#56B4E9", "#0072B2", "#009E73", "#D55E00")


class ArmStyle(NamedTuple):
    colour: str
    marker: str
    line: str


def arm_styles(arms: Mapping[str, Description]) -> dict[str, ArmStyle]:
    """How each arm is drawn: arms that differ in samplers or advice alone share a colour and differ in their dashes.

    The first arm of a role and this run's own policy have fixed colours; others take the next free colour.
    """
    looks: dict[str, tuple[str, str]] = {}
    free = cycle(_FURTHER)
    styles = {}
    for name, arm in arms.items():
        group = base_group(arm)
        if group not in looks:
            policy = arm["parts"]["policy"]
            own = _OF_POLICY.get(policy["name"]) if policy["stage"] else None
            fixed = _OF_ROLE.get(Role(arm["role"]), own)
            looks[group] = fixed if fixed and fixed not in looks.values() else (next(free), "h")
        sampler = arm["parts"]["sampler"]
        line = "-" if is_plain(arm) else _BEST_OF.get(sampler.get("n", 0), "-.")
        styles[name] = ArmStyle(*looks[group], line)
    return styles


def success_by_trial(results: Results) -> Figure:
    """Left: cumulative success by attempt. Right: the last attempt with its 95 % intervals, the best arm on top."""
    styles = arm_styles(results["arms"])
    figure = Figure(figsize=(11.5, max(4.8, 1.6 + 0.27 * len(styles))), layout="constrained")
    curves, last = figure.subplots(1, 2, width_ratios=(1.45, 1))
    attempts = range(1, results["attempts"] + 1)
    ends: list[tuple[float, str, str]] = []
    for name, arm in results["arms"].items():
        style = styles[name]
        values = arm["success_by_trial"]
        low, high = ([interval[side] for interval in arm["ci95"]] for side in (0, 1))
        curves.fill_between(attempts, low, high, color=style.colour, alpha=0.07, linewidth=0)
        curves.plot(attempts, values, style.line, color=style.colour, marker=style.marker, markersize=5, linewidth=1.6)
        ends.append((values[-1], name, style.colour))
    seeds = max(arm["seeds"] for arm in results["arms"].values())
    title = f"success by attempt · {results['tasks']} held-out tasks" + (f", {seeds} seeds" if seeds > 1 else "")
    curves.set_title(title, loc="left", fontsize=10)
    curves.set_xticks(list(attempts))
    curves.set_xlabel("attempt")
    curves.set_ylabel("tasks solved so far")
    top = min(1.02, 0.03 + max(high for arm in results["arms"].values() for _, high in arm["ci95"]))
    curves.set_ylim(0, top)
    curves.set_xlim(0.9, results["attempts"] + 0.05)
    _label_ends(curves, results["attempts"], ends, gap=0.034 * top * 4.8 / figure.get_figheight())
    _last_attempt(last, results, styles)
    for axes, lines in ((curves, "y"), (last, "x")):
        _plain(axes, axis=lines, color=_LINES, linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def checkpoint_series(arms: Mapping[str, Description]) -> list[list[str]]:
    """The arms that differ only in the step of their checkpoint, a list for each training, ordered by step."""
    found: dict[str, list[str]] = {}
    for name, arm in arms.items():
        policy = arm["parts"]["policy"]
        if policy["step"] is not None and is_plain(arm):
            alike = {**arm["parts"], "policy": policy["name"]}
            found.setdefault(json.dumps(alike, sort_keys=True), []).append(name)
    return [sorted(names, key=lambda name: _step(arms[name])) for names in found.values()]


def success_by_step(results: Results, series: Sequence[Sequence[str]]) -> Figure:
    """Success at the last attempt by training step, a curve for each of ``series`` (:func:`checkpoint_series`)."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes: Axes = figure.subplots()
    arms = results["arms"]
    for names, colour in zip(series, cycle(_OF_TRAINING), strict=False):
        values = [arms[name]["success_by_trial"][-1] for name in names]
        intervals = [arms[name]["ci95"][-1] for name in names]
        bars = [[abs(value - end[side]) for value, end in zip(values, intervals, strict=True)] for side in (0, 1)]
        at = [_step(arms[name]) for name in names]
        axes.errorbar(at, values, yerr=bars, color=colour, marker="o", capsize=3, linewidth=1.6)
        label = arms[names[-1]]["parts"]["policy"]["name"]
        axes.annotate(label, (at[-1], values[-1]), xytext=(8, 0), textcoords="offset points", color=colour, va="center")
    axes.set_xlabel("training step")
    axes.set_ylabel(f"tasks solved after {results['attempts']} attempts")
    _plain(axes, axis="y", color=_LINES, linewidth=0.8)
    return figure


def learning_curves(metrics: Mapping[str, Sequence[tuple[float, float]]], columns: int = 4) -> Figure:
    """Small multiples of one stage: metric name → its (step, value) points."""
    rows = -(-len(metrics) // columns)
    width, height = 11.5, 1.75 * rows + 0.2
    figure = Figure(figsize=(width, height))
    # Margins in inches: to measure the labels of so many axes takes longer than to draw them.
    figure.subplots_adjust(0.55 / width, 0.25 / height, 1 - 0.1 / width, 1 - 0.25 / height, wspace=0.26, hspace=0.38)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, points) in zip(grid.flat, metrics.items(), strict=False):
        marker = "." if len(points) < 60 else ""
        axes.plot(
            [x for x, _ in points], [y for _, y in points], color="#0072B2", linewidth=1.2, marker=marker, markersize=4
        )
        axes.set_title(name, fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _plain(axes, color="#eeeeee", linewidth=0.6)
    for axes in list(grid.flat)[len(metrics) :]:
        axes.set_axis_off()
    return figure


def reliability_diagram(bins: Sequence[Mapping[str, float]]) -> Figure:
    """The reward model's predicted probability against the share that came true, by bin; larger bins, larger points."""
    figure = Figure(figsize=(4.4, 3.6), layout="constrained")
    axes: Axes = figure.subplots()
    most = max(row["count"] for row in bins)
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8)
    at, true = [row["probability"] for row in bins], [row["outcome"] for row in bins]
    axes.plot(at, true, color="#0072B2", linewidth=1.2)
    axes.scatter(at, true, s=[12 + 140 * row["count"] / most for row in bins], color="#0072B2", alpha=0.8)
    axes.set_xlabel("predicted probability, test tasks")
    axes.set_ylabel("frequency")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#eeeeee", linewidth=0.6)
    return figure


def to_svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    temporary = path.with_name(path.name + ".part")
    figure.savefig(temporary, format="png", dpi=160)
    temporary.replace(path)


def _step(arm: Description) -> int:
    return arm["parts"]["policy"]["step"] or 0


def _plain(axes: Axes, **grid: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(**grid)


def _last_attempt(axes: Axes, results: Results, styles: Mapping[str, ArmStyle]) -> None:
    ranked = sorted(styles, key=lambda name: results["arms"][name]["success_by_trial"][-1])
    for row, name in enumerate(ranked):
        arm, style = results["arms"][name], styles[name]
        value, (low, high) = arm["success_by_trial"][-1], arm["ci95"][-1]
        axes.plot([low, high], [row, row], color=style.colour, linewidth=2.2, solid_capstyle="round", alpha=0.75)
        axes.plot([value], [row], color=style.colour, marker=style.marker, markersize=7)
        axes.annotate(f"{value:.2f}", (high, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(ranked)), ranked, fontsize=9)
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.set_xlim(left=0)
    axes.margins(x=0.12)
    axes.set_xlabel(f"solved after {results['attempts']} attempts, 95 % interval over tasks")


def _label_ends(axes: Axes, attempts: int, ends: Sequence[tuple[float, str, str]], gap: float) -> None:
    """Write each curve's name at its end. Names that would overlap move up, then back down below the top."""
    ordered = sorted(ends)
    heights: list[float] = []
    for value, _, _ in ordered:
        heights.append(max(value, heights[-1] + gap) if heights else max(value, gap / 2))
    ceiling = axes.get_ylim()[1]
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling - gap / 2 if i == len(heights) - 1 else heights[i + 1] - gap)
    for height, (value, name, colour) in zip(heights, ordered, strict=True):
        axes.annotate(
            name,
            xy=(attempts, value),
            xytext=(attempts + 0.12, height),
            color=colour,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),  # to the name's left edge, so that no line crosses a name
                "color": colour,
                "linewidth": 0.5,
                "alpha": 0.6,
                "shrinkA": 0,
                "shrinkB": 2,
            },
        )
