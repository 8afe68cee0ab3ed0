"""A running stage: its folder, its lines in the run's ``metrics.jsonl``, its outputs, its trackers."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.artifacts import finite, write_atomically
from retro.config import ConfigError, RunConfig
from retro.config.view import leaves
from retro.layout import RunFolder
from retro.reading import UnreadableError, parse_json, read_lines
from retro.rollout.progress import EVERY_SECONDS, clock
from retro.stage.manifest import Plan, recorded

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass
class Work:
    """What a stage's ``run`` gets besides its view of the config."""

    name: str
    folder: Path
    plan: Plan
    inputs: Mapping[str, str]
    """The digest of each thing that the stage reads."""
    main: bool
    """Whether this process writes (rank 0)."""
    _config: RunConfig = field(repr=False)
    """The whole config, for paths and trackers only: the stage itself reads its view."""
    replaced: Path | None = None
    """Where the former contents of the folder are now, if a run with other values or inputs left some."""
    seconds_before: float = 0.0
    """Wall time of the interrupted runs that this one resumes."""
    started: float = field(default_factory=time.monotonic)
    outputs: dict[str, str] = field(default_factory=dict)
    _accelerator: Accelerator | None = None
    """Logged lines also go to its trackers."""
    _first: tuple[int, float] | None = None
    """The first step whose progress was told, and when."""
    _told: float = field(default_factory=time.monotonic)
    """When progress was told last."""

    def __post_init__(self) -> None:
        if self.resumed:
            own = [line for line in self._lines() if line["stage"] == self.name]
            self.seconds_before = max((float(line.get("seconds", 0.0)) for line in own), default=0.0)

    @property
    def resumed(self) -> bool:
        """An interrupted run of the same stage left its checkpoints in the folder."""
        return self.plan.action == "resume"

    @property
    def seconds(self) -> float:
        """Wall time so far, over all resumes."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def _metrics(self) -> Path:
        return RunFolder(self._config.run_dir).metrics

    def log(self, step: int, **metrics: Any) -> None:
        """Append a line to ``metrics.jsonl`` (on rank 0), with null for numbers that are not finite. Trackers get the
        numbers."""
        if self.main:
            line = {"stage": self.name, "step": step, "seconds": round(self.seconds, 3), **metrics}
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(line), allow_nan=False) + "\n")
        if self._accelerator is not None:
            numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
            self._accelerator.log({f"{self.name}/{key}": value for key, value in numbers.items()}, step=step)

    def progress(self, step: int, steps: int, **figures: float) -> None:
        """Say how far a training is, with its figures and the time left: every ``EVERY_SECONDS``, and after the last
        step."""
        now = time.monotonic()
        self._first = self._first or (step, now)
        if step < steps and now - self._told < EVERY_SECONDS:
            return
        self._told = now
        first, began = self._first
        shown = "".join(f", {name} {value:.3f}" for name, value in figures.items())
        left = f", {clock((now - began) / (step - first) * (steps - step))} left" if first < step < steps else ""
        logger.info("%s: step %d of %d%s%s", self.name, step, steps, shown, left)

    def cut_metrics(self, step: int | None) -> None:
        """Drop this stage's lines after ``step``, to resume from that step's checkpoint; None drops all of them."""
        if not self.main or not self._metrics.is_file():
            return
        kept = [
            line for line in self._lines() if line["stage"] != self.name or (step is not None and line["step"] <= step)
        ]
        write_atomically(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def output(self, name: str, path: Path) -> Path:
        """Declare an output; its digest goes into the manifest when the stage completes."""
        self.outputs[name] = os.path.relpath(path, self.folder)
        return path

    def open_trackers(self, accelerator: Accelerator) -> None:
        """Start the run's trackers on ``accelerator``, for :meth:`log`. W&B is offline without a key.

        Raises:
            ConfigError: if a tracker's package is not installed.
        """
        config = self._config
        if not config.trackers:
            return
        for tracker in config.trackers:
            if util.find_spec(tracker) is None:
                raise ConfigError(f"trackers: {tracker!r} is missing: pip install {tracker}, or trackers=[]")
        if "wandb" in config.trackers and "WANDB_API_KEY" not in os.environ:
            os.environ.setdefault("WANDB_MODE", "offline")
        folder = RunFolder(config.run_dir).trackers
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        accelerator.project_configuration.logging_dir = str(folder)
        accelerator.log_with = list(config.trackers)
        values = recorded(list(leaves(config)))
        shown = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in values.items()}
        wandb = {"name": f"{config.name}-{self.name}", "group": config.name, "dir": str(folder)}
        accelerator.init_trackers("retro", config=shown, init_kwargs={"wandb": wandb})
        self._accelerator = accelerator

    def close_trackers(self) -> None:
        """End the trackers, but keep the process group, which the next stage needs: ``accelerator.end_training()``
        would destroy it."""
        if self._accelerator is not None:
            for tracker in self._accelerator.trackers:
                tracker.finish()
            self._accelerator.trackers.clear()

    def _lines(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        for number, text in read_lines(self._metrics) if self._metrics.is_file() else ():
            try:
                lines.append(parse_json(text))
            except UnreadableError:  # a kill in the middle of a write: the resumed stage logs that step again
                logger.warning("%s: line %d is incomplete and is dropped", self._metrics, number)
        return lines


def with_interval(value: float, interval: Sequence[float] | None) -> str:
    """A number for a line of the log, with its 95 % interval if it has one."""
    return f"{value:.3f}" + (f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
