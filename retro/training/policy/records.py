"""What the policy stage records of its rollouts: ``rollouts/step-N.jsonl``, ``samples.jsonl``, trackers' tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate import Accelerator

from retro.artifacts import finite, write_atomically
from retro.ratings import delta_return
from retro.reading import parse_json, read_lines
from retro.training.policy.groups import Group

SAMPLES_FILE = "samples.jsonl"
COLUMNS = ("step", "prompt", "reflection", "score", "gain", "model_score")

Row = dict[str, Any]
"""One response as a line of ``rollouts/step-N.jsonl``."""


def rows_of(step: int, group: Group, sampler_gaps: Sequence[float | None]) -> list[Row]:
    """The rows of a scored group. ``score`` is the reward; ``gain`` is the true ΔG, where the response was retried.

    Args:
        sampler_gaps: one for each response (:attr:`Batch.sampler_gaps`); None where the algorithm does not recompute
            log-probabilities.
    """
    episode = group.context.episode
    gains = delta_return(group.retry_returns, group.failed_return)
    controls = {"control_return": fmean(group.control_returns)} if group.controls else {}
    return [
        {
            "step": step,
            "place": group.slot,
            "turn": group.turn,
            "index": response.index,
            "environment": episode.task.environment,
            "task": episode.task.id,
            "episode": episode.id,
            "trial": episode.trial,
            "return": episode.return_,
            "reflection": response.text,
            "finish_reason": response.finish_reason,
            "tokens": len(response.ids),
            "score": group.rewards[index],
            "gain": gains[index] if gains else None,
            "retry_return": group.retries[index].return_ if group.retries else None,
            "retry_success": group.retries[index].success if group.retries else None,
            "model_score": group.model_scores[index] if group.model_scores else None,
            **controls,
            "sampler_gap": sampler_gaps[index],
        }
        for index, response in enumerate(group.responses)
    ]


def write_rollouts(folder: Path, step: int, rows: Sequence[Row]) -> None:
    """Write ``rollouts/step-N.jsonl`` completely or not at all; a step that a resumed run repeats is replaced."""
    write_atomically(folder / "rollouts" / f"step-{step}.jsonl", "".join(_line(row) for row in rows))


def mean_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Means over a step's responses; what was not gathered is left out.

    ``sampler_gap`` is the mean over tokens, and ``sampler_gap_max`` that of the worst response. If a chain has further
    turns, ``turns`` is the mean length of chains, and ``chain_return`` and ``chain_success`` are what they ended with.
    """
    if not rows:
        return {}
    metrics = {}
    for key in ("score", "gain", "retry_return", "retry_success", "control_return", "model_score"):
        values = [float(row[key]) for row in rows if row.get(key) is not None]
        if values:
            metrics[key] = sum(values) / len(values)
    if any(row["turn"] > 1 for row in rows):
        last = {(row["place"], row["index"]): row for row in sorted(rows, key=lambda row: row["turn"])}.values()
        metrics["turns"] = len(rows) / len(last)
        for key in ("return", "success"):
            metrics[f"chain_{key}"] = fmean(float(row[f"retry_{key}"]) for row in last)
    mean = metrics["score"]
    metrics["score_std"] = (sum((row["score"] - mean) ** 2 for row in rows) / len(rows)) ** 0.5
    metrics["missing_end"] = sum(row["finish_reason"] == "length" for row in rows) / len(rows)
    if all(row["sampler_gap"] is not None for row in rows):
        tokens = sum(row["tokens"] for row in rows)
        metrics["sampler_gap"] = sum(row["sampler_gap"] * row["tokens"] for row in rows) / tokens
        metrics["sampler_gap_max"] = max(row["sampler_gap"] for row in rows)
    return metrics


def cut_samples(folder: Path, step: int) -> None:
    """Drop the samples after ``step``, from whose checkpoint the run resumes."""
    path = folder / SAMPLES_FILE
    if path.is_file():
        whole = [line for _, line in read_lines(path) if line.endswith(b"\n")]  # a kill may leave half a line
        write_atomically(path, b"".join(line for line in whole if parse_json(line)["step"] <= step).decode())


def show_samples(
    folder: Path,
    accelerator: Accelerator | None,
    step: int,
    rows: Sequence[Row],
    prompts: Mapping[tuple[int, str], str],
) -> None:
    """Append the groups whose slots and failed episodes are in ``prompts`` to ``samples.jsonl``, and to W&B's and
    TensorBoard's tables."""
    shown = [
        {key: prompts[row["place"], row["episode"]] if key == "prompt" else row[key] for key in COLUMNS}
        for row in rows
        if (row["place"], row["episode"]) in prompts
    ]
    with (folder / SAMPLES_FILE).open("a", encoding="utf-8") as file:
        file.writelines(_line(row) for row in shown)
    data = [[row[key] for key in COLUMNS] for row in shown]
    for tracker in accelerator.trackers if accelerator else ():
        if tracker.name == "wandb":
            tracker.log_table("ppo/samples", columns=list(COLUMNS), data=data, step=step)
        elif tracker.name == "tensorboard":
            text = "\n\n".join(f"{row['score']:.3f}: {row['reflection']}" for row in shown)
            tracker.tracker.add_text("ppo/samples", text, global_step=step)


def _line(row: Row) -> str:
    return json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n"
