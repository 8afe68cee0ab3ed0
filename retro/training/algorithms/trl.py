"""What the algorithms by TRL's trainers share. TRL has the loss, the optimiser and the loop; the stage has the rest.

A step is ``contexts`` × ``group`` responses and ``epochs`` × ``minibatches`` optimiser steps, as in PPO. TRL counts
optimiser steps; ``metrics.jsonl`` counts steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainerState

from retro.config import FixedKlSection, PolicySection
from retro.models.adapters import SharedBase
from retro.training.policy.models import POLICY
from retro.training.policy.run import PolicyRun
from retro.training.trl import largest_divisor, trainer_arguments

TRAINED = "default"
"""TRL's name for the adapter that it trains. Before the first step TRL copies it to ``ref``, its frozen reference."""


class LentBase(SharedBase):
    """The shared base while TRL trains its policy.

    TRL has its own name for the policy and expects it to be switched on whenever its trainer runs, while
    :meth:`role` switches adapters off when it ends. So here the end of a role switches TRL's policy on again.
    """

    casts_inputs = True

    def load_role(self, role: str, path: Path, trainable: bool) -> None:
        super().load_role(_trl_name(role), path, trainable)

    def save_role(self, role: str, path: Path) -> None:
        super().save_role(_trl_name(role), path)

    @contextmanager
    def role(self, name: str | None, train: bool = False) -> Iterator[nn.Module]:
        training = self.model.training
        try:
            with super().role(name and _trl_name(name), train) as model:
                yield model
        finally:
            if TRAINED in self.roles:  # not yet while the base is tested
                self.lend(training)

    def lend(self, training: bool) -> None:
        """Switch the policy on, as the only trainable adapter."""
        peft = self._require(TRAINED)
        peft.base_model.enable_adapter_layers()
        peft.set_adapter(TRAINED)
        peft.train(training)


def _trl_name(role: str) -> str:
    return TRAINED if role == POLICY else role


class TrlTraining:
    """One run of a trainer of TRL.

    Args:
        needs: the algorithm's.
    """

    def __init__(self, run: PolicyRun, needs: Collection[str]) -> None:
        self.run, self.section = run, run.section
        self.updates = run.section.epochs * run.section.minibatches
        """Optimiser steps in each step."""
        # The stage writes its checkpoint after TRL's, so TRL's checkpoint of that step is complete.
        self.checkpoint = run.checkpoint(lambda step: self._own(step).is_dir())
        run.load(needs, self.checkpoint, LentBase, from_sft=True)
        self.base = cast(LentBase, run.models.base)

    @property
    def folder(self) -> Path:
        """TRL's own checkpoints: adapter, optimiser, schedule, generators."""
        return self.run.work.folder / "checkpoints"

    def _own(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step * self.updates}"

    def arguments(self, kl: FixedKlSection, microbatch: int, accumulation: int) -> dict[str, Any]:
        """The arguments of the trainers' configs; see :func:`trainer_arguments`."""
        section = self.section
        return {
            **trainer_arguments(
                self.run.config, section, self.folder, ("ppo", section.algorithm), microbatch, accumulation
            ),
            "max_steps": section.steps * self.updates,
            "lr_scheduler_type": "linear" if section.schedule == "linear" else "constant_with_warmup",
            "warmup_steps": section.warmup_steps * self.updates,
            "disable_dropout": True,  # as in PPO: policy and reference are compared, and start equal
            "beta": kl.coefficient,
            "save_steps": section.checkpoint_every * self.updates,
            "logging_steps": self.updates,
        }

    def fit(self, trainer: Any, log: StepLog) -> None:
        """Train, or continue after the last checkpoint.

        Raises:
            RuntimeError: if the trainer would not train the policy alone, or has no reference.
        """
        moved = [name for name, value in trainer.model.named_parameters() if value.requires_grad]
        reference = "ref" in trainer.model.peft_config
        if not moved or any(f".{TRAINED}." not in name for name in moved) or not reference:
            raise RuntimeError(
                f"TRL would train {len(moved)} tensors, the first {moved[:1]}, "
                f"{'with' if reference else 'without'} a frozen copy of the supervised adapter: this version differs "
                "from what retro expects; install the constraints' version"
            )
        with torch.no_grad():  # TRL made the adapter of a 4-bit base bfloat16, which rounds its start and its steps
            for name, value in trainer.model.named_parameters():
                if value.requires_grad:
                    value.data = trainer.model.get_parameter(name.replace(f".{TRAINED}.", ".ref.")).clone()
        trainer.remove_callback(PrinterCallback)  # its lines are in metrics.jsonl
        trainer.add_callback(log)
        self.run.accelerator = trainer.accelerator
        self.run.work.open_trackers(trainer.accelerator)
        # TRL's checkpoints hold pickles. They are read only from this stage's own folder.
        checkpoint = str(self._own(self.run.state.step)) if self.checkpoint else None
        if checkpoint:  # before transformers 5.23, the trainer restores ``ref`` but not the trained adapter
            trainer.model.load_adapter(checkpoint, TRAINED, is_trainable=True)
        trainer.train(resume_from_checkpoint=checkpoint)


class StepLog(TrainerCallback):
    """Writes the trainer's log lines to ``metrics.jsonl``, and runs the guard and the checkpoints when they are due.

    Args:
        updates: optimiser steps in each step.
        names: the metrics to log: the trainer's name → ours.
        more: further metrics of the latest step.
    """

    def __init__(
        self,
        run: PolicyRun,
        updates: int,
        names: Mapping[str, str],
        more: Callable[[], Mapping[str, Any]] = lambda: {},
    ) -> None:
        self._run, self._updates, self._names, self._more = run, updates, names, more

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._run.validate(0)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        logs, run = logs or {}, self._run
        step = state.global_step // self._updates
        metrics = {ours: logs[theirs] for theirs, ours in self._names.items() if theirs in logs}
        if "eval_loss" in logs:
            run.work.log(step, **metrics)
        elif "loss" in logs:  # not the summary of the whole run
            run.work.log(step, **metrics, **self._more())
            run.work.progress(step, run.section.steps, loss=logs["loss"])
            if run.due(step, run.section.validate_every):
                run.validate(step)

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._run.save(state.global_step // self._updates)


def passes_of(section: PolicySection, rows: int, tokens: int) -> tuple[int, int]:
    """(rows in a forward pass, passes in an optimiser step) for ``rows`` of a process with at most ``tokens`` each."""
    microbatch = largest_divisor(rows, section.token_budget // tokens)
    return microbatch, rows // microbatch
