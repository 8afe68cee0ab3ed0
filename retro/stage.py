"""What every stage of a run shares: is it up to date, where it writes, what it records, its lines in ``metrics.jsonl``.

A stage is up to date when the hash of its own part of the config (with the run's seed) and the digests of its inputs
equal those in its manifest ``stage.json``, and its outputs are still there. An interrupted one with the same hash and
inputs resumes; anything else runs anew in a clean folder, the old one being moved to ``replaced/``, never deleted.
Rank 0 alone writes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retro.artifacts import digest_path, finite, git_revision, versions, write_atomically, write_json
from retro.config import ConfigError, RunConfig, deciding
from retro.envs import deciding_options
from retro.reading import DATA_BYTES, UnreadableError, parse_json, read_json, read_lines

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

logger = logging.getLogger(__name__)

MANIFEST = "stage.json"
_MAPPINGS = ("config", "inputs", "outputs")
"""What a manifest holds mappings of."""
FOLDERS = {"evaluate": "evaluation"}
"""Stages whose folder is not called as they are."""
TRACKERS = {"wandb": "wandb", "tensorboard": "tensorboard"}
"""Tracker → the package that it needs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage would do now, and why."""

    action: Literal["up to date", "resume", "run"]
    why: str


@dataclass
class Stage:
    """One stage at work: its folder, and its lines in the run's ``metrics.jsonl``."""

    name: str
    folder: Path
    plan: Plan
    main: bool
    """Whether this process writes (rank 0)."""
    metrics_path: Path
    seconds_before: float = 0.0
    """Wall time of the interrupted runs that this one resumes."""
    started: float = field(default_factory=time.monotonic)
    outputs: dict[str, str] = field(default_factory=dict)
    accelerator: Accelerator | None = None
    """Set by :func:`open_trackers`: logged lines also go to its trackers."""

    @property
    def up_to_date(self) -> bool:
        """There is nothing to do: return at once."""
        return self.plan.action == "up to date"

    @property
    def resumed(self) -> bool:
        """An interrupted run of the same stage left its checkpoints in the folder."""
        return self.plan.action == "resume"

    @property
    def seconds(self) -> float:
        """Wall time so far, over all resumes."""
        return self.seconds_before + time.monotonic() - self.started

    def log(self, step: int, **metrics: Any) -> None:
        """Append a line to ``metrics.jsonl`` (rank 0); what is not finite becomes null. Trackers get the numbers."""
        if self.main:
            line = {"stage": self.name, "step": step, "seconds": round(self.seconds, 3), **metrics}
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(line), allow_nan=False) + "\n")
        if self.accelerator is not None:
            numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
            self.accelerator.log({f"{self.name}/{key}": value for key, value in numbers.items()}, step=step)

    def cut_metrics(self, step: int | None) -> None:
        """Drop this stage's lines after ``step`` (None: all of them), as resuming from that step's checkpoint needs."""
        if not self.main or not self.metrics_path.is_file():
            return
        kept = [
            line
            for line in _lines(self.metrics_path)
            if line["stage"] != self.name or (step is not None and line["step"] <= step)
        ]
        write_atomically(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept))

    def output(self, name: str, path: Path) -> Path:
        """Declare an output; its digest goes into the manifest when the stage completes."""
        self.outputs[name] = os.path.relpath(path, self.folder)
        return path


def stage_folder(config: RunConfig, name: str) -> Path:
    return config.run_dir / FOLDERS.get(name, name)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a stage's folder, or None where there is none that can be read."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = read_json(path, DATA_BYTES)
    except UnreadableError as error:
        logger.warning("%s: the stage counts as not run", error)
        return None
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(key, {}), dict) for key in _MAPPINGS):
        logger.warning("%s: no manifest of a stage, which counts as not run", path)
        return None
    return manifest


def plan_stage(config: RunConfig, name: str, inputs: Mapping[str, str], sections: Sequence[str]) -> Plan:
    """What :func:`open_stage` would do. ``sections``: dotted keys of the config that the stage reads."""
    folder = stage_folder(config, name)
    manifest = read_manifest(folder)
    if manifest is None:
        return Plan("run", "not run yet")
    part = config_part(config, sections)
    changes = _changes("config", manifest.get("config", {}), _flat(part))
    if manifest.get("config_hash") != _hash(part) and not changes:
        changes = ["config"]
    changes += _changes("input", manifest.get("inputs", {}), inputs)
    if changes:
        return Plan("run", "changed: " + ", ".join(changes))
    if manifest.get("status") != "complete":
        return Plan("resume", "was interrupted")
    missing = [output["path"] for output in manifest["outputs"].values() if not (folder / output["path"]).exists()]
    if missing:
        return Plan("run", "missing: " + ", ".join(missing))
    return Plan("up to date", "same config and inputs")


@contextmanager
def open_stage(config: RunConfig, name: str, inputs: Mapping[str, str], sections: Sequence[str]) -> Iterator[Stage]:
    """Plan, prepare the folder, and keep the manifest: ``running`` inside the block, ``complete`` after it.

    The caller returns at once where ``stage.up_to_date``, and continues from its checkpoints where ``stage.resumed``.
    An exception leaves the manifest at ``running``, so that the same command resumes.

    Args:
        inputs: a digest of each thing the stage reads (:func:`digest_path`, the buffer's digest).
        sections: dotted keys of the config that the stage reads (``"model"``, ``"environment.name"``).
    """
    state = _processes(config)
    plan = plan_stage(config, name, inputs, sections)
    folder = stage_folder(config, name)
    stage = Stage(name, folder, plan, state.is_main_process, config.run_dir / "metrics.jsonl")
    if stage.up_to_date:
        logger.info("%s: up to date (%s)", name, plan.why)
        yield stage
        return
    logger.info("%s: %s (%s)", name, plan.action, plan.why)
    if stage.resumed:
        stage.seconds_before = _seconds_so_far(stage)
    state.wait_for_everyone()  # every process has planned from what is on disk before rank 0 changes it
    manifest: dict[str, Any] = {}
    if stage.main:
        if plan.action == "run":
            _set_aside(config, folder)
            stage.cut_metrics(None)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(config.run_dir / "config.yaml", config.dump())
        part = config_part(config, sections)
        manifest = {
            "stage": name,
            "status": "running",
            "config_hash": _hash(part),
            "config": _flat(part),
            "inputs": dict(inputs),
            "outputs": {},
            "seed": config.seed,
            "git": git_revision(),
            "versions": versions(),
            "processes": state.num_processes,
            "seconds": stage.seconds_before,
        }
        write_json(folder / MANIFEST, manifest)
    state.wait_for_everyone()
    try:
        yield stage
    finally:
        _close_trackers(stage)
    state.wait_for_everyone()  # nobody is still writing
    if stage.main:
        outputs = {
            key: {"path": path, "digest": digest_path(folder / path)} for key, path in sorted(stage.outputs.items())
        }
        manifest |= {"status": "complete", "outputs": outputs, "seconds": round(stage.seconds, 3)}
        write_json(folder / MANIFEST, manifest)
    state.wait_for_everyone()  # the next stage of any process finds this one complete


def open_trackers(accelerator: Accelerator, config: RunConfig, stage: Stage) -> None:
    """Start the run's trackers on ``accelerator`` and let ``stage.log`` feed them. W&B is offline without a key.

    Raises:
        ConfigError: if a tracker's package is not installed.
    """
    if not config.trackers:
        return
    for tracker in config.trackers:
        if util.find_spec(TRACKERS[tracker]) is None:
            raise ConfigError(f"trackers: {tracker!r} is missing: pip install {TRACKERS[tracker]}, or trackers=[]")
    if "wandb" in config.trackers and "WANDB_API_KEY" not in os.environ:
        os.environ.setdefault("WANDB_MODE", "offline")
    folder = config.run_dir / "trackers"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.project_configuration.logging_dir = str(folder)
    accelerator.log_with = list(config.trackers)
    flat = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in _flat(config).items()}
    wandb = {"name": f"{config.name}-{stage.name}", "group": config.name, "dir": str(folder)}
    accelerator.init_trackers("retro", config=flat, init_kwargs={"wandb": wandb})
    stage.accelerator = accelerator


def config_part(config: RunConfig, sections: Sequence[str]) -> dict[str, Any]:
    """The seed and the values at the dotted keys ``sections``, as plain JSON: of a whole section, and of an
    environment's options, what decides a result."""
    whole, tree = config.model_dump(mode="json"), deciding(config)
    tree["environment"]["options"] = deciding_options(config.environment.name, tree["environment"]["options"])
    part: dict[str, Any] = {"seed": tree["seed"]}
    for section in sections:
        value, named = tree, whole
        for key in section.split("."):
            named = named[key]
            value = value.get(key, named)
        part[section] = value
    return part


def _processes(config: RunConfig) -> PartialState:
    from accelerate import PartialState  # here: the CLI imports this module, and torch takes seconds

    from retro.models.loading import resolve_device
    from retro.models.threads import limit_threads

    device = resolve_device(config.device)
    limit_threads(config, device)
    # accelerate joins CPU processes only if told that they are: with cpu=False each would take itself for rank 0
    return PartialState(cpu=device.type == "cpu")


def _set_aside(config: RunConfig, folder: Path) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    replaced = config.run_dir / "replaced"
    replaced.mkdir(parents=True, exist_ok=True)
    number = 1
    while (replaced / f"{folder.name}-{number}").exists():
        number += 1
    folder.rename(replaced / f"{folder.name}-{number}")
    logger.info("%s: the previous outputs are in %s", folder.name, replaced / f"{folder.name}-{number}")


def _seconds_so_far(stage: Stage) -> float:
    if not stage.metrics_path.is_file():
        return 0.0
    own = [line for line in _lines(stage.metrics_path) if line["stage"] == stage.name]
    return max((float(line.get("seconds", 0.0)) for line in own), default=0.0)


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for number, text in read_lines(path):
        try:
            lines.append(parse_json(text))
        except UnreadableError:  # a kill in the middle of a write: the resumed stage logs that step again
            logger.warning("%s: line %d is incomplete and is dropped", path, number)
    return lines


def _close_trackers(stage: Stage) -> None:
    # accelerator.end_training() would also destroy the process group, which the next stage still needs
    if stage.accelerator is not None:
        for tracker in stage.accelerator.trackers:
            tracker.finish()
        stage.accelerator.trackers.clear()


def _changes(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [f"{kind} {key}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, RunConfig):
        tree = tree.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _hash(part: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
