"""What all algorithms of the policy stage share: contexts, roles, rollouts, guard, records, checkpoints."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object

from retro.buffer.views import Context, StoredContexts
from retro.config import PolicySection, RunConfig, build
from retro.layout import BEST, CHECKPOINT, RunFolder
from retro.models.adapters import SharedBase
from retro.models.sharding import launched_pieces
from retro.retrospective.reward_files import RewardFiles
from retro.rl.gradients import over_processes
from retro.stage import Work
from retro.training.checkpoints import checkpoints, new_folder, prune
from retro.training.examples import imitated
from retro.training.policy.groups import Group
from retro.training.policy.guard import (
    Guard,
    PolicyState,
    best_metrics,
    choose_guarded,
    is_current,
    load_state,
    log_best,
    log_measured,
    save_state,
    with_best,
)
from retro.training.policy.imitation import Imitation
from retro.training.policy.models import PolicyModels
from retro.training.policy.records import Row, cut_samples, mean_metrics, rows_of, show_samples, write_rollouts
from retro.training.policy.rollouts import Retries, Rollouts
from retro.types import derive_seed

logger = logging.getLogger(__name__)


def contexts_of_step(count: int, section: PolicySection, seed: int, step: int) -> list[int]:
    """The contexts (of ``count``) in the slots of a step, from 1: epochs over all contexts, each newly shuffled."""
    chosen: list[int] = []
    order: list[int] = []
    shuffled = -1
    for position in range((step - 1) * section.contexts, step * section.contexts):
        if position // count != shuffled:
            shuffled = position // count
            order = list(range(count))
            random.Random(derive_seed(seed, "ppo", "contexts", shuffled)).shuffle(order)
        chosen.append(order[position % count])
    return chosen


class PolicyRun:
    """One run of the stage. An algorithm's ``train`` first calls :meth:`load`, then samples, scores, validates and
    saves through it.

    A step's contexts have slots 0 … contexts − 1 in one seeded order, and process r of n takes the slots r, r + n, ….
    Every draw depends only on (seed, step, slot), so a resumed run repeats an unbroken one, and two processes repeat
    one.

    Args:
        train: the failed episodes to learn from, of an open buffer.
        held_out: the failed episodes of validation tasks, from which the guard chooses some.
    """

    models: PolicyModels
    imitation: Imitation | None = None
    """The SFT set, if the algorithm needs it."""
    rollouts: Rollouts
    state: PolicyState

    def __init__(self, config: RunConfig, work: Work, train: StoredContexts, held_out: StoredContexts) -> None:
        self.config, self.section, self.work, self.train = config, config.ppo, work, train
        self.process = PartialState()
        self.rank, self.processes = self.process.process_index, self.process.num_processes
        self.reduce = over_processes()
        self.accelerator: Accelerator | None = None
        """Set by the algorithm; its trackers show samples."""
        self._guarded = choose_guarded(held_out, self.section.validation_contexts, config.seed)
        self._guard: Guard | None = None
        self._retries: Retries | None = None
        self._loop = asyncio.Runner()  # one for all steps, since runners and rewards may hold connections of its loop
        if self.section.validation_contexts and not self._guarded:
            logger.warning(
                "ppo: the buffer has no failed validation episodes: no guard, the last checkpoint is the best"
            )

    @property
    def device(self) -> torch.device:
        device: torch.device = self.process.device
        return device

    def checkpoint(self, usable: Callable[[int], bool] = lambda step: True) -> Path | None:
        """The last checkpoint of an interrupted run whose step is ``usable``."""
        found = [path for step, path in checkpoints(self.work.folder) if usable(step)] if self.work.resumed else []
        if found and not is_current(found[-1]):
            logger.warning("ppo: %s is of an earlier version and cannot be continued: starts anew", found[-1])
            return None
        return found[-1] if found else None

    def load(
        self,
        needs: Collection[str],
        checkpoint: Path | None,
        kind: type[SharedBase] = SharedBase,
        from_sft: bool = False,
    ) -> None:
        """Load the roles, the actor and the reward terms, and the state of the run.

        Args:
            needs: the algorithm's.
            checkpoint: the checkpoint to continue from; None starts anew.
            kind: the class of the base.
            from_sft: whether the policy starts from the supervised adapter even with a checkpoint, because a trainer
                continues from its own files.
        """
        config, folders = self.config, RunFolder(self.config.run_dir)
        gathered = self.section.needs
        plays = bool(gathered & {"retries", "controls"})
        if plays or self._guarded:  # what it lacks is said before the models are loaded
            environments = {context.episode.task.environment for context in self._guarded}
            if plays:
                environments |= self.train.environments
            self._retries = Retries(config, environments, self.device, self._loop)
        self.models = PolicyModels.load(
            config,
            self.device,
            folders.sft_adapter,
            needs,
            RewardFiles.of_stage(folders.reward) if "reward_model" in gathered else None,
            None if from_sft else checkpoint,
            sharded=launched_pieces("ppo", config.model) is not None,
            kind=kind,
        )
        if "imitation" in needs:
            self.imitation = Imitation(self.models, imitated(config, self.models.encoder), self.rank, self.processes)
        if self._guarded and self._retries:
            self._guard = Guard(config, self._guarded, self.models, self._retries)
        terms = [(build(term, reward_folder=folders.reward), term.weight) for term in self.section.rewards]
        penalty = getattr(self.section, "missing_end_penalty", 0.0)
        turns = getattr(self.section, "turns", 1)
        lag = getattr(self.section, "lag", 0)
        self.rollouts = Rollouts(config, self.models, self._retries, terms, penalty, self._loop, turns, lag)
        self.state = load_state(checkpoint) if checkpoint else PolicyState()
        if checkpoint:
            logger.info("ppo: resumes after step %d", self.state.step)
        self.work.cut_metrics(self.state.step if checkpoint else None)
        if self.work.main:
            cut_samples(self.work.folder, self.state.step if checkpoint else -1)
        self.process.wait_for_everyone()

    def close(self) -> None:
        """Release what retries and rewards hold; the next stage plays with its own."""
        if self._retries is not None:
            self._retries.close()
        self._loop.close()

    def contexts(self, step: int) -> dict[int, Context]:
        """This process's contexts of a step, by slot."""
        chosen = contexts_of_step(len(self.train), self.section, self.config.seed, step)
        return {slot: self.train[chosen[slot]] for slot in range(self.rank, len(chosen), self.processes)}

    def record(
        self,
        step: int,
        sampled: Mapping[int, Context],
        groups: Sequence[Group],
        sampler_gaps: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """Write the scored groups of all processes to files; return their means, for ``metrics.jsonl``.

        Args:
            sampled: this process's contexts; those without a group lost an episode.
            sampler_gaps: one for each response, where they were computed.
        """
        gaps = iter(sampler_gaps) if sampler_gaps is not None else None
        own = [
            row
            for group in groups
            for row in rows_of(step, group, [next(gaps) if gaps else None for _ in group.responses])
        ]
        rows: list[Row] = sorted(gather_object(own), key=lambda row: (row["place"], row["turn"], row["index"]))
        dropped = sum(gather_object([len(sampled) - len({group.slot for group in groups})]))
        if self.work.main:
            write_rollouts(self.work.folder, step, rows)
            prompts = {
                (group.slot, group.context.episode.id): self.models.prompt_text(group.context)
                for group in groups
                if group.slot == 0
            }
            show_samples(self.work.folder, self.accelerator, step, rows, prompts)
        return {**mean_metrics(rows), "responses": len(rows), "dropped_groups": dropped}

    def validate(self, step: int) -> None:
        """Let the guard measure the policy after ``step``, and keep the best policy so far (:func:`with_best`)."""
        last = step == self.section.steps
        measured = self._guard.measure(step, self.rank, self.processes) if self._guard else None
        chosen = with_best(self.state, step, last, measured)
        if chosen is not None:
            self.state = chosen
            self._write(BEST, step)
        if measured is not None:
            self.work.log(step, **measured.metrics, **best_metrics(self.state))
            log_measured(step, measured)
        if last:
            log_best(self.state)

    def due(self, step: int, every: int) -> bool:
        """Whether ``step`` is a multiple of ``every``, or the last step."""
        return step % every == 0 or step == self.section.steps

    def save(self, step: int, beside: Callable[[Path], None] = lambda folder: None) -> None:
        """Write ``checkpoint-N``: the policy after step N in plain PEFT format.

        Args:
            beside: writes what the algorithm needs to continue.
        """
        self.process.wait_for_everyone()  # other processes write parts of a trainer's own checkpoint
        self.state = replace(self.state, step=step)
        self._write(f"{CHECKPOINT}{step}", step, beside)
        if self.work.main:
            prune(self.work.folder, self.section.keep_checkpoints)

    def _write(self, name: str, step: int, beside: Callable[[Path], None] = lambda folder: None) -> None:
        if self.work.main:
            with new_folder(self.work.folder / name) as folder:
                self.models.save(folder)
                beside(folder)
                save_state(replace(self.state, step=step), folder)
        self.process.wait_for_everyone()
