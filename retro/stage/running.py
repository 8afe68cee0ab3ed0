"""A stage as one value, and the function that runs it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retro.artifacts import digest_path, git_revision, versions, write_atomically, write_json
from retro.config import RunConfig
from retro.config.extras import require
from retro.config.view import Leaf, declared, view_of
from retro.envs import deciding_options
from retro.layout import RunFolder
from retro.stage.manifest import MANIFEST, Plan, compare, recorded
from retro.stage.work import Work

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger(__name__)

Keys = Sequence[str] | Callable[[RunConfig], Sequence[str]]
"""Dotted keys of the config, or a function of it if one key decides which others are read."""


class NothingToLearnError(ValueError):
    """The buffer holds nothing that the stage could learn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A step of a run: what decides its result, and the function that makes it.

    ``inputs`` and ``run`` get a view of the config. It has the keys that are declared (``keys``, ``not_deciding``) or
    marked ``Speed``; any other raises :class:`~retro.config.view.UndeclaredKeyError`.
    """

    name: str
    folder: str
    """The name of its folder in the run folder."""
    reads: tuple[str, ...]
    """The stages whose outputs it reads. When one of them runs, this stage runs after it."""
    keys: Keys
    """The keys that decide the result, besides the seed and the inputs."""
    inputs: Callable[[RunConfig], Mapping[str, str]]
    """The digest of each thing that the stage reads. Raises a ``ConfigError`` where one is missing."""
    run: Callable[[RunConfig, Work], None]
    """Makes the outputs. If the stage ``trains``, every process of a launch calls it, otherwise only rank 0."""
    not_deciding: Keys = ()
    """Further keys that it reads, which do not decide the result: keys that say where an input is (its digest decides),
    and keys that are only checked."""
    trains: bool = False
    """It trains the model, whose dtype must allow that."""
    packages: tuple[str, ...] = ()
    """The import names of the packages that it needs of the extra ``train``."""
    applies: Callable[[RunConfig], bool] = lambda config: True
    """Whether a run of this config has the stage."""
    optional: Callable[[RunConfig], bool] = lambda config: False
    """Whether a run goes on without this stage if it raises :class:`NothingToLearnError`."""

    def require_packages(self) -> None:
        """Raises ConfigError if one of ``packages`` is not installed."""
        require(f"the stage {self.name}", "train", self.packages)

    def view(self, config: RunConfig) -> RunConfig:
        """``config`` as the stage may read it."""
        return view_of(config, self.name, ["seed", *_listed(self.keys, config), *_listed(self.not_deciding, config)])

    def deciding(self, config: RunConfig) -> list[Leaf]:
        """The keys that decide the result, with their values. Of an environment's options, it has only those that
        decide what is played."""
        name = config.environment.name
        return [
            replace(leaf, value=deciding_options(name, leaf.value)) if leaf.key == "environment.options" else leaf
            for leaf in declared(config, ["seed", *_listed(self.keys, config)])
        ]


def plan_stage(stage: Stage, config: RunConfig) -> Plan:
    """What :func:`run_stage` would do; no weights are loaded. Raises ConfigError if an input is missing."""
    return compare(config.run_dir / stage.folder, stage.deciding(config), stage.inputs(stage.view(config)))


def run_stage(stage: Stage, config: RunConfig) -> Path:
    """Bring a stage up to date and return its folder: skip it, resume it, or run it anew.

    The manifest says ``running`` while the stage runs and ``complete`` after it. An exception leaves it at ``running``,
    so that the same command resumes.
    """
    stage.require_packages()
    view, folder, leaves = stage.view(config), config.run_dir / stage.folder, stage.deciding(config)
    inputs = stage.inputs(view)
    processes = _processes(config)
    plan = compare(folder, leaves, inputs)
    logger.info("%s: %s (%s)", stage.name, plan.action, plan.why)
    if plan.action == "up to date":
        return folder
    work = Work(stage.name, folder, plan, inputs, processes.is_main_process, config)
    processes.wait_for_everyone()  # every process has planned from what is on disk before rank 0 changes it
    manifest: dict[str, Any] = {}
    if work.main:
        if plan.action == "run":
            work.replaced = _set_aside(folder, RunFolder(config.run_dir).replaced)
            work.cut_metrics(None)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(RunFolder(config.run_dir).config, config.dump())
        manifest = {
            "stage": stage.name,
            "status": "running",
            "config": recorded(leaves),
            "inputs": dict(inputs),
            "outputs": {},
            "seed": config.seed,
            "git": git_revision(),
            "versions": versions(),
            "processes": processes.num_processes,
            "seconds": work.seconds_before,
        }
        write_json(folder / MANIFEST, manifest)
    processes.wait_for_everyone()
    try:
        if stage.trains or work.main:
            stage.run(view, work)
    finally:
        work.close_trackers()
    processes.wait_for_everyone()  # no process is still writing
    if work.main:
        outputs = {
            key: {"path": path, "digest": digest_path(folder / path)} for key, path in sorted(work.outputs.items())
        }
        manifest |= {"status": "complete", "outputs": outputs, "seconds": round(work.seconds, 3)}
        write_json(folder / MANIFEST, manifest)
    processes.wait_for_everyone()  # the next stage of any process finds this one complete
    return folder


def _listed(keys: Keys, config: RunConfig) -> Sequence[str]:
    return keys(config) if callable(keys) else keys


def _processes(config: RunConfig) -> PartialState:
    from accelerate import PartialState  # here: the CLI imports this module, and torch takes seconds

    from retro.models.loading import resolve_device
    from retro.models.threads import limit_threads

    device = resolve_device(config.device)
    limit_threads(config, device)
    # with cpu=False, accelerate would not join CPU processes, and each would be rank 0
    return PartialState(cpu=device.type == "cpu")


def _set_aside(folder: Path, replaced: Path) -> Path | None:
    """Move what is in ``folder`` into ``replaced``; return where it is now, or None if there was nothing."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    replaced.mkdir(parents=True, exist_ok=True)
    number = 1
    while (replaced / f"{folder.name}-{number}").exists():
        number += 1
    target = replaced / f"{folder.name}-{number}"
    folder.rename(target)
    logger.info("%s: the previous outputs are in %s", folder.name, target)
    return target
