"""``report.html``: one self-contained page about an evaluation, made without models or network."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from retro.artifacts import write_atomically
from retro.evaluation.records import Record, chains, latest, read_records
from retro.evaluation.results import SCOPE, Comparison, Results
from retro.evaluation.table import best_learned_arm
from retro.layout import BEST, RunFolder
from retro.reading import UnreadableError, parse_json, read_json, read_lines
from retro.retrospective.reward_files import facts_file
from retro.types import Reflection, to_json

logger = logging.getLogger(__name__)

BROWSED_TASKS = 60
"""Tasks in the page's episode browser; ``episodes.jsonl`` has all of them."""
_METRICS_SHOWN = 16
_NO_CURVE = ("stage", "step", "seconds")
_BOUNDS = ("_low", "_high")
"""Metrics whose names end so are the ends of an interval and have no curve of their own."""
_RESULTS_BYTES = 2**28
"""The largest ``results.json`` that is read: it has a line a task, an arm and a seed."""


class NothingMeasuredError(ValueError):
    """The run folder has no evaluation to report."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of an evaluation."""

    run: Path
    evaluation: Path

    @property
    def results(self) -> Path:
        return self.evaluation / "results.json"

    @property
    def episodes(self) -> Path:
        return self.evaluation / "episodes.jsonl"

    @property
    def plot(self) -> Path:
        return self.evaluation / "success_by_trial.png"

    @property
    def page(self) -> Path:
        return self.evaluation / "report.html"


def rebuild_report(run_dir: Path, evaluation: Path | None = None) -> Path:
    """Draw a run's plot and page anew from ``results.json``, ``episodes.jsonl``, ``metrics.jsonl``; return the page.

    Raises:
        NothingMeasuredError: if the run has not been evaluated.
    """
    from retro.evaluation.figures import save_png, success_by_trial  # here: planning a run imports this module

    paths = Paths(run_dir, evaluation or RunFolder(run_dir).evaluation)
    results = read_results(paths.results)
    records = latest(read_records(paths.episodes)) if paths.episodes.is_file() else []
    save_png(success_by_trial(results), paths.plot)
    write_atomically(paths.page, render(paths, results, records))
    return paths.page


def read_results(path: Path) -> Results:
    """``results.json`` as it was written.

    Raises:
        NothingMeasuredError: if the file does not exist, holds something else, or is of an earlier version.
        UnreadableError: if it is damaged.
    """
    if not path.is_file():
        raise NothingMeasuredError(
            f"{path}: no such file; evaluate the run first: retro evaluate {path.parent.parent}/config.yaml"
        )
    results = read_json(path, _RESULTS_BYTES)
    if not isinstance(results, dict) or not isinstance(results.get("arms"), dict):
        raise NothingMeasuredError(f"{path}: no results of an evaluation; evaluate the run again")
    if not all(isinstance(arm, dict) and "parts" in arm for arm in results["arms"].values()):
        raise NothingMeasuredError(
            f"{path}: an earlier version wrote it, which did not keep the parts of an arm; evaluate the run again: "
            f"retro evaluate {path.parent.parent}/config.yaml"
        )
    return cast(Results, results)


def render(paths: Paths, results: Results, records: list[Record]) -> str:
    """The page's HTML. The texts of models and environments are escaped; scripts receive them as JSON data."""
    from retro.evaluation import figures
    from retro.evaluation.figures import to_svg

    environment = Environment(
        loader=PackageLoader("retro.evaluation", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = lambda value: f"{100 * value:.1f}"
    environment.filters["p_value"] = lambda value: f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"
    environment.filters["options"] = _options
    checkpoints = figures.checkpoint_series(results["arms"])
    run = RunFolder(paths.run)
    metrics = _stage_metrics(run.metrics)
    reward = _json_object(facts_file(run.reward))
    bins = reward.get("test", {}).get("reliability", [])
    by_step = sum(map(len, checkpoints)) > 1
    return environment.get_template("report.html.j2").render(
        name=paths.run.resolve().name,
        results=results,
        scope=SCOPE,
        several=any(arm["seeds"] > 1 for arm in results["arms"].values()),
        best=best_learned_arm(results),
        comparisons=_by_pair(results["comparisons"]),
        curves=_image(to_svg(figures.success_by_trial(results))),
        step_curves=_image(to_svg(figures.success_by_step(results, checkpoints))) if by_step else None,
        learning={stage: _image(to_svg(figures.learning_curves(series))) for stage, series in metrics.items()},
        best_checkpoint=_json_object(run.policy / BEST / "state.json"),
        reward=_flat_numbers(reward),
        calibration=_image(to_svg(figures.reliability_diagram(bins))) if bins else None,
        browser=_script_json(browser_data(results, records)),
        stylesheet=_own_file("report.css"),
        script=_own_file("report.js"),
    )


def browser_data(results: Results, records: list[Record]) -> dict[str, Any]:
    """What the page's episode browser shows: tasks spread evenly over the evaluation's, with every arm's chain."""
    of_arms = {arm: chains([record for record in records if record.arm == arm]) for arm in results["arms"]}
    kinds = {record.episode.task.id: record.episode.task.kind for record in records}
    ids = sorted(kinds)
    shown = ids if len(ids) <= BROWSED_TASKS else [ids[i * len(ids) // BROWSED_TASKS] for i in range(BROWSED_TASKS)]
    return {
        "total": len(ids),
        "tasks": [{"id": task, "kind": kinds[task]} for task in shown],
        "arms": {
            arm: {task: [_browsed(record) for record in of_arm[task]] for task in shown if task in of_arm}
            for arm, of_arm in of_arms.items()
            if of_arm
        },
    }


def _options(section: Mapping[str, Any]) -> str:
    """``best_of, n: 8`` of a section with a kind."""
    further = (f"{key}: {value}" for key, value in section.items() if key != "kind")
    return ", ".join([str(section["kind"]), *further])


def _by_pair(comparisons: list[Comparison]) -> list[dict[str, Any]]:
    """A row for each pair, which holds the p-value of each test under the test's name."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for comparison in comparisons:
        row = rows.setdefault((comparison["a"], comparison["b"], comparison["trial"]), {**comparison, "p_values": {}})
        row["p_values"][comparison["test"]] = comparison["p_value"]
    return list(rows.values())


def _browsed(record: Record) -> dict[str, Any]:
    episode = record.episode
    return {
        "trial": episode.trial,
        "return": episode.return_,
        "success": episode.success,
        "stop": str(episode.stop),
        "opening": episode.trajectory.opening,
        "steps": [[step.thought, step.action, step.observation] for step in episode.trajectory.steps],
        "reflection": _reflected(episode.reflection) if episode.reflection else None,
        "recalled": list(zip(episode.recalled.ids, episode.recalled.entries, strict=True)),
        "candidates": [_reflected(candidate) for candidate in record.candidates],
    }


def _reflected(reflection: Reflection) -> dict[str, Any]:
    value: dict[str, Any] = to_json(reflection)
    return {key: value[key] for key in ("text", "source", "score", "index")}


def _own_file(name: str) -> Markup:
    return Markup(resources.files("retro.evaluation").joinpath(name).read_text(encoding="utf-8"))


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element that holds it, whatever a model wrote."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _image(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _stage_metrics(path: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Stage → metric → (step, value) points, of the numeric metrics that change; the evaluation's own are left out."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    if not path.is_file():
        return found
    for _, line in read_lines(path):
        try:
            logged = parse_json(line)
        except UnreadableError:  # a kill in the middle of a write: only the last line of a stage can be torn
            logger.warning("%s: a torn line is left out of the learning curves", path)
            continue
        if logged["stage"] == "evaluate":
            continue
        series = found.setdefault(logged["stage"], {})
        for key, value in logged.items():
            if key not in _NO_CURVE and isinstance(value, (int, float)) and not isinstance(value, bool):
                series.setdefault(key, []).append((logged["step"], value))
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for stage, series in found.items():
        for name, points in series.items():
            changes = len({value for _, value in points}) > 1
            if changes and not name.startswith("best_") and not name.endswith(_BOUNDS):
                curves.setdefault(stage, {})[name] = points
    return {stage: dict(list(series.items())[:_METRICS_SHOWN]) for stage, series in curves.items()}


def _json_object(path: Path) -> Mapping[str, Any]:
    """The JSON object that a stage wrote to ``path``; empty if the file does not exist."""
    if not path.is_file():
        return {}
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _flat_numbers(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Rows (name, value) of nested figures; a list of numbers is one value."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(item, Mapping) and {"value", "ci95"} == item.keys():
            interval = f" ({_number(item['ci95'][0])} to {_number(item['ci95'][1])})" if item["ci95"] else ""
            rows.append((name, "undefined" if item["value"] is None else _number(item["value"]) + interval))
        elif isinstance(item, Mapping):
            rows += _flat_numbers(item, f"{name} · ")
        elif isinstance(item, list):
            if all(isinstance(entry, (int, float)) for entry in item):
                rows.append((name, ", ".join(map(_number, item))))
        elif item is not None:
            rows.append((name, _number(item)))
    return rows


def _number(value: Any) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
