"""``report.html``: one self-contained page about an evaluation, made without models or network."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from markupsafe import Markup

from retro.artifacts import write_atomically
from retro.evaluation.pages import image, own_file, stage_parts, template
from retro.evaluation.records import Record, chains, latest, read_records
from retro.evaluation.results import SCOPE, Comparison, Results
from retro.evaluation.table import best_learned_arm
from retro.layout import RunFolder
from retro.reading import read_json
from retro.types import Reflection, to_json

logger = logging.getLogger(__name__)

BROWSED_TASKS = 60
"""Tasks in the page's episode browser; ``episodes.jsonl`` has all of them."""
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

    checkpoints = figures.checkpoint_series(results["arms"])
    by_step = sum(map(len, checkpoints)) > 1
    return template("report.html.j2").render(
        name=paths.run.resolve().name,
        results=results,
        scope=SCOPE,
        several=any(arm["seeds"] > 1 for arm in results["arms"].values()),
        best=best_learned_arm(results),
        comparisons=_by_pair(results["comparisons"]),
        curves=image(to_svg(figures.success_by_trial(results))),
        step_curves=image(to_svg(figures.success_by_step(results, checkpoints))) if by_step else None,
        browser=_script_json(browser_data(results, records)),
        script=own_file("report.js"),
        **stage_parts(RunFolder(paths.run)),
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


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element that holds it, whatever a model wrote."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
