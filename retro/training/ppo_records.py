"""What PPO writes down of its rollouts: ``rollouts/step-N.jsonl``, ``samples.jsonl``, and the trackers' tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from retro.artifacts import finite, write_atomically
from retro.buffer.views import Context
from retro.reading import parse_json, read_lines
from retro.training.ppo_rewards import Response, Worth

SAMPLES_FILE = "samples.jsonl"
COLUMNS = ("step", "prompt", "reflection", "score", "gain", "model_score")

Record = dict[str, Any]


def record(step: int, context: Context, response: Response, worth: Worth, sampler_gap: float) -> Record:
    """One response as a line of ``rollouts/step-N.jsonl``."""
    episode = context.episode
    return {
        "step": step,
        "place": response.place,
        "index": response.index,
        "environment": episode.task.environment,
        "task": episode.task.id,
        "episode": episode.id,
        "trial": episode.trial,
        "return": episode.return_,
        "reflection": response.text,
        "finish_reason": response.finish_reason,
        "tokens": len(response.ids),
        **asdict(worth),
        "sampler_gap": sampler_gap,
    }


def write_rollouts(folder: Path, step: int, records: Sequence[Record]) -> None:
    """``rollouts/step-N.jsonl``, whole or not at all; a step that is done again after a resume replaces its own."""
    write_atomically(folder / "rollouts" / f"step-{step}.jsonl", "".join(_line(row) for row in records))


def mean_metrics(records: Sequence[Record]) -> dict[str, float]:
    """Means over a step's responses; what was not asked is left out.

    ``sampler_gap`` is the mean over tokens, ``sampler_gap_max`` the worst response's: how far the sampler's
    log-probabilities are from those that the training forward gives the same tokens.
    """
    if not records:
        return {}
    metrics = {}
    for key in ("score", "gain", "retry_return", "retry_success", "model_score"):
        values = [float(row[key]) for row in records if row[key] is not None]
        if values:
            metrics[key] = sum(values) / len(values)
    mean = metrics["score"]
    metrics["score_std"] = (sum((row["score"] - mean) ** 2 for row in records) / len(records)) ** 0.5
    metrics["missing_end"] = sum(row["finish_reason"] == "length" for row in records) / len(records)
    tokens = sum(row["tokens"] for row in records)
    metrics["sampler_gap"] = sum(row["sampler_gap"] * row["tokens"] for row in records) / tokens
    metrics["sampler_gap_max"] = max(row["sampler_gap"] for row in records)
    return metrics


def cut_samples(folder: Path, step: int) -> None:
    """Drop the samples after ``step``, as resuming from its checkpoint needs."""
    path = folder / SAMPLES_FILE
    if path.is_file():
        whole = [line for _, line in read_lines(path) if line.endswith(b"\n")]  # a kill may leave half a line
        write_atomically(path, b"".join(line for line in whole if parse_json(line)["step"] <= step).decode())


def show_samples(
    folder: Path, accelerator: Accelerator, step: int, records: Sequence[Record], prompts: Mapping[int, str]
) -> None:
    """The groups at the places in ``prompts``: to ``samples.jsonl``, and as a table to W&B and TensorBoard."""
    rows = [
        {key: prompts[row["place"]] if key == "prompt" else row[key] for key in COLUMNS}
        for row in records
        if row["place"] in prompts
    ]
    with (folder / SAMPLES_FILE).open("a", encoding="utf-8") as file:
        file.writelines(_line(row) for row in rows)
    data = [[row[key] for key in COLUMNS] for row in rows]
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            tracker.log_table("ppo/samples", columns=list(COLUMNS), data=data, step=step)
        elif tracker.name == "tensorboard":
            text = "\n\n".join(f"{row['score']:.3f}: {row['reflection']}" for row in rows)
            tracker.tracker.add_text("ppo/samples", text, global_step=step)


def _line(row: Record) -> str:
    return json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n"
