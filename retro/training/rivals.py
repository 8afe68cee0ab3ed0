"""Rivals of PPO on the same data: TRL's DPO and GRPO trainers as this stage, so that users can compare.

The buffer, the supervised adapter that the policy starts from and is held to, the tasks of each split, the responses a
step, the guard that chooses ``best`` and the outputs are PPO's. What TRL brings is its trainer: loss, optimiser, loop.
A step is ``contexts`` × ``group`` responses and ``epochs`` × ``minibatches`` optimiser steps, as in PPO; TRL counts the
latter, ``metrics.jsonl`` the former.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from retro.buffer.views import Context
from retro.config import RunConfig
from retro.layout import BEST, CHECKPOINT, RunFolder
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead
from retro.models.loading import resolve_device
from retro.retrospective.reward_files import RewardFiles
from retro.retrospective.reward_model import RewardModel
from retro.stage import Work
from retro.training.algorithms.dpo import DpoOptions
from retro.training.algorithms.grpo import GrpoOptions
from retro.training.checkpoints import checkpoints, new_folder, prune
from retro.training.ppo_checkpoint import PpoState, load_state, save_state
from retro.training.ppo_guard import Guard, best_metrics, choose_guarded, log_best, with_best
from retro.training.ppo_models import PpoModels
from retro.training.ppo_records import cut_samples
from retro.training.ppo_rewards import Retries, ScoreTransform, score_kind
from retro.types import derive_seed

logger = logging.getLogger(__name__)

TRAINED = "default"
"""What TRL calls the adapter that it trains; it copies it to ``ref``, its frozen reference, before the first step."""
KEPT_CHECKPOINTS = 2
"""Of TRL's own: the last may have been cut by a kill; the one before is whole."""


class LentBase(SharedBase):
    """The shared base while TRL trains its policy.

    TRL looks for the policy under a name of its own and expects it switched on whenever its trainer runs; a role here
    is switched off when it is left. So a role gives the model back as it was lent.
    """

    casts_inputs = True

    @contextmanager
    def role(self, name: str | None, train: bool = False) -> Iterator[nn.Module]:
        training = self.model.training
        try:
            with super().role(TRAINED if name == "policy" else name, train) as model:
                yield model
        finally:
            if TRAINED in self.roles:  # not yet while the base is tested
                self.lend(training)

    def lend(self, training: bool) -> None:
        """The policy switched on, and trainable alone."""
        peft = self._require(TRAINED)
        peft.base_model.enable_adapter_layers()
        peft.set_adapter(TRAINED)
        peft.train(training)


class Rival:
    """What both rivals share: models, guard, checkpoints, and the state that a resumed run needs."""

    def __init__(
        self,
        options: DpoOptions | GrpoOptions,
        config: RunConfig,
        work: Work,
        train: Sequence[Context],
        held_out: Sequence[Context],
    ) -> None:
        self.config, self.section, self.work, self.train = config, options, work, train
        self.process = PartialState()
        self.updates = self.section.epochs * self.section.minibatches
        """Optimiser steps a step."""
        device = self.process.device
        guarded = choose_guarded(held_out, self.section.validation_contexts, config.seed)
        if self.section.validation_contexts and not guarded:
            logger.warning("ppo: the buffer has no failed validation episodes: no guard, the last is the best")
        run = RunFolder(config.run_dir)
        reward = run.reward if "reward_model" in options.needs else None
        self.base = cast(LentBase, LentBase.load(config.model, device))
        self.base.load_role(TRAINED, run.sft_adapter, trainable=True)
        budget, files = self.section.token_budget, RewardFiles.of_stage(reward) if reward else None
        model = RewardModel.load(self.base, files, budget) if files else None
        self.models = PpoModels(config, self.base, ScalarHead(self.base.hidden_size, zero=True), model)
        self.retries: Retries | None = None
        plays = "retries" in options.needs
        if guarded or plays:
            played = [*guarded, *(train if plays else ())]
            self.retries = Retries(config, {context.episode.task.environment for context in played}, device)
        self.guard = Guard(config, guarded, self.models, self.retries) if guarded and self.retries else None

        self.resumed_from = self._last_checkpoint() if work.resumed else None
        if self.resumed_from is None:
            self.transform = ScoreTransform.load(score_kind(options), reward) if reward else ScoreTransform("sigmoid")
            self.state = PpoState(0, self.section.kl.coefficient, self.transform.mean, self.transform.std)
        else:
            self.state = load_state(self.resumed_from)
            self.transform = ScoreTransform(score_kind(options), self.state.score_mean, self.state.score_std)
            logger.info("ppo: resumes after step %d", self.state.step)
        work.cut_metrics(self.state.step if self.resumed_from else None)
        if work.main:
            cut_samples(work.folder, self.state.step if self.resumed_from else -1)
        self.process.wait_for_everyone()

    @property
    def trainer_folder(self) -> Path:
        """TRL's own checkpoints: adapter, optimiser, schedule, generators."""
        return self.work.folder / "checkpoints"

    def _last_checkpoint(self) -> Path | None:
        # Ours is written after TRL's of the same step: where ours is, that one is whole.
        both = [path for step, path in checkpoints(self.work.folder) if self._trainers(step).is_dir()]
        return both[-1] if both else None

    def _trainers(self, step: int) -> Path:
        return self.trainer_folder / f"checkpoint-{step * self.updates}"

    def close(self) -> None:
        """Give back what the retries' environments hold."""
        if self.retries is not None:
            self.retries.close()

    def arguments(self, microbatch: int, accumulation: int) -> dict[str, Any]:
        """What both of TRL's configs are made with: every argument whose default would decide something.

        Args:
            microbatch: rows in one forward pass of one process.
            accumulation: forward passes in one optimiser step.
        """
        section, device = self.section, resolve_device(self.config.device)
        return {
            "output_dir": str(self.trainer_folder),
            "per_device_train_batch_size": microbatch,
            "per_device_eval_batch_size": microbatch,
            "gradient_accumulation_steps": accumulation,
            "max_steps": section.steps * self.updates,
            "learning_rate": section.learning_rate,
            "lr_scheduler_type": "linear" if section.schedule == "linear" else "constant_with_warmup",
            "warmup_steps": section.warmup_steps * self.updates,
            "weight_decay": section.weight_decay,
            "max_grad_norm": section.max_grad_norm,
            "disable_dropout": True,  # as PPO: policy and reference are compared, and begin as equals
            "optim": "adamw_torch",
            "adam_beta1": section.adam.beta1,
            "adam_beta2": section.adam.beta2,
            "adam_epsilon": section.adam.epsilon,
            "beta": section.kl.coefficient,
            "bf16": self.config.model.dtype == "bfloat16" and device.type == "cuda",
            "fp16": False,
            "use_cpu": device.type == "cpu",
            "gradient_checkpointing": self.config.model.gradient_checkpointing,
            "seed": derive_seed(self.config.seed, "ppo", section.algorithm) % 2**32,
            "data_seed": derive_seed(self.config.seed, "ppo", "order") % 2**32,
            "save_strategy": "steps",
            "save_steps": section.checkpoint_every * self.updates,
            "save_total_limit": KEPT_CHECKPOINTS,
            "logging_steps": self.updates,
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_num_workers": 0,
            "dataloader_pin_memory": device.type == "cuda",
            "ddp_find_unused_parameters": False,
        }

    def fit(self, trainer: Any, log: TrainerCallback) -> None:
        """Train, or go on after the last checkpoint.

        Raises:
            RuntimeError: if the trainer would train something else than the policy, or has no reference beside it.
        """
        moved = [name for name, value in trainer.model.named_parameters() if value.requires_grad]
        reference = "ref" in trainer.model.peft_config
        if not moved or any(f".{TRAINED}." not in name for name in moved) or not reference:
            raise RuntimeError(
                f"TRL would train {len(moved)} tensors, the first {moved[:1]}, "
                f"{'with' if reference else 'without'} a frozen copy of the supervised adapter: this version differs "
                "from what this retro expects; install the constraints' version"
            )
        with torch.no_grad():  # of a 4-bit base's adapter TRL has made bfloat16: it would begin rounded, and lose steps
            for name, value in trainer.model.named_parameters():
                if value.requires_grad:
                    value.data = trainer.model.get_parameter(name.replace(f".{TRAINED}.", ".ref.")).clone()
        trainer.remove_callback(PrinterCallback)  # its lines are in metrics.jsonl
        trainer.add_callback(log)
        self.work.open_trackers(trainer.accelerator)
        # TRL's checkpoints hold pickles. They are read back from this stage's own folder alone.
        checkpoint = str(self._trainers(self.state.step)) if self.resumed_from else None
        if checkpoint:  # before transformers 5.23, the trainer restores ``ref`` and leaves the trained adapter as it is
            trainer.model.load_adapter(checkpoint, TRAINED, is_trainable=True)
        trainer.train(resume_from_checkpoint=checkpoint)

    def check(self, number: int) -> None:
        """Ask the guard; the best policy so far is kept (:func:`with_best`)."""
        rank, processes = self.process.process_index, self.process.num_processes
        measured = self.guard.measure(number, rank, processes) if self.guard else None
        chosen = with_best(self.state, number, number == self.section.steps, measured)
        if chosen is not None:
            self.state = chosen
            self._write(self.work.folder / BEST, number)
        if measured is not None:
            self.work.log(number, **measured.metrics, **best_metrics(self.state))
        if number == self.section.steps:
            log_best(self.state)

    def save(self, number: int) -> None:
        """``checkpoint-N``: the policy after step N in plain PEFT format, for use; TRL keeps its own to go on from."""
        self.process.wait_for_everyone()  # the other processes' generators are in TRL's checkpoint
        self.state = replace(self.state, step=number)
        self._write(self.work.folder / f"{CHECKPOINT}{number}", number)
        if self.work.main:
            prune(self.work.folder, self.section.keep_checkpoints)

    def _write(self, path: Path, number: int) -> None:
        if self.work.main:
            with new_folder(path) as folder:
                self.base.save_role(TRAINED, folder)
                save_state(replace(self.state, step=number), folder)
        self.process.wait_for_everyone()


class StepLog(TrainerCallback):
    """The trainer's log lines to ``metrics.jsonl``, by step; the guard and the checkpoints at their turns."""

    def __init__(
        self, rival: Rival, names: Mapping[str, str], more: Callable[[], Mapping[str, Any]] = lambda: {}
    ) -> None:
        """``names``: the trainer's → ours, of what is logged. ``more``: what else is known of the step."""
        self._rival, self._names, self._more = rival, names, more

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == 0:
            self._rival.check(0)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs, section = logs or {}, self._rival.section
        number = state.global_step // self._rival.updates
        metrics = {ours: logs[theirs] for theirs, ours in self._names.items() if theirs in logs}
        if "eval_loss" in logs:
            self._rival.work.log(number, **metrics)
        elif "loss" in logs:  # and no summary of the whole run
            self._rival.work.log(number, **metrics, **self._more())
            if number % max(1, section.steps // 10) == 0:
                logger.info("ppo: step %d of %d, loss %.4f", number, section.steps, logs["loss"])
            if number % section.validate_every == 0 or number == section.steps:
                self._rival.check(number)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._rival.save(state.global_step // self._rival.updates)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` up to ``limit`` (at least 1)."""
    return max(size for size in range(1, max(1, min(limit, number)) + 1) if number % size == 0)
