"""What the pages about a run share: templates, and what its stages have measured. And the page of an unfinished run."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup

from retro.artifacts import write_atomically
from retro.layout import BEST, RunFolder
from retro.lease import at_work
from retro.reading import UnreadableError, parse_json, read_json, read_lines
from retro.retrospective.reward_files import facts_file
from retro.stage.manifest import MANIFEST, read_manifest

logger = logging.getLogger(__name__)

_METRICS_SHOWN = 16
_NO_CURVE = ("stage", "step", "seconds")
_BOUNDS = ("_low", "_high")
"""Metrics whose names end so are the ends of an interval and have no curve of their own."""


def template(name: str) -> Template:
    """A template of this package; the texts that it shows are escaped."""
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
    return environment.get_template(name)


def stage_parts(run: RunFolder) -> dict[str, Any]:
    """What ``stages.html.j2`` shows: learning curves, the best checkpoint, and the reward model's measurements; and the
    style of all pages."""
    from retro.evaluation import figures
    from retro.evaluation.figures import to_svg

    reward = _json_object(facts_file(run.reward))
    bins = reward.get("test", {}).get("reliability", [])
    metrics = stage_metrics(run.metrics)
    return {
        "stylesheet": own_file("report.css"),
        "learning": {stage: image(to_svg(figures.learning_curves(series))) for stage, series in metrics.items()},
        "best_checkpoint": _json_object(run.policy / BEST / "state.json"),
        "reward": _flat_numbers(reward),
        "calibration": image(to_svg(figures.reliability_diagram(bins))) if bins else None,
    }


def write_progress(run_dir: Path) -> Path:
    """Write the page about a run that has not been evaluated yet, and return its path: the stages that have begun, and
    what they have measured so far."""
    run = RunFolder(run_dir)
    begun = [folder.parent for folder in sorted(run_dir.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)]
    stages = [manifest for folder in begun if (manifest := read_manifest(folder)) is not None]
    page = template("progress.html.j2").render(
        name=run_dir.resolve().name,
        written=time.strftime("%Y-%m-%d %H:%M"),
        at_work=at_work(run.lease),
        stages=stages,
        collected=_flat_numbers(_json_object(run_dir / "collect" / "collect.json")),
        **stage_parts(run),
    )
    write_atomically(run.progress, page)
    return run.progress


def own_file(name: str) -> Markup:
    """A text file of this package, to be put into a page as it is."""
    return Markup(resources.files("retro.evaluation").joinpath(name).read_text(encoding="utf-8"))


def image(svg: bytes) -> str:
    """A picture as the address of an image."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def stage_metrics(path: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
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
            if item and all(isinstance(entry, (int, float)) for entry in item):
                rows.append((name, ", ".join(map(_number, item))))
        elif item is not None:
            rows.append((name, _number(item)))
    return rows


def _number(value: Any) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _options(section: Mapping[str, Any]) -> str:
    """``best_of, n: 8`` of a section with a kind."""
    further = (f"{key}: {value}" for key, value in section.items() if key != "kind")
    return ", ".join([str(section["kind"]), *further])
