"""The loop of an algorithm that learns step by step: sample, score, learn, log, validate, save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Protocol

import torch
from accelerate import Accelerator

from retro.config import PolicySection
from retro.models.loading import resolve_device
from retro.rl.gradients import Trainable
from retro.training.checkpoints import load_optimiser, save_optimiser
from retro.training.policy.ahead import gather_ahead, load_ahead, save_ahead
from retro.training.policy.batch import Batch
from retro.training.policy.groups import Group, Response
from retro.training.policy.rollouts import Ahead
from retro.training.policy.run import PolicyRun
from retro.types import derive_seed

SHOWN = ("score", "retry_return", "chain_return")
"""Means over a step's responses that its line of progress has, where they were gathered."""


class Learner(Protocol):
    """What the loop needs of an algorithm; ``retro.training.algorithms.base.Algorithm`` explains each member."""

    @property
    def needs(self) -> frozenset[str]: ...

    def learning_rates(self, section: PolicySection) -> Mapping[str, float]: ...

    def learn(self, batch: Batch) -> Mapping[str, float]: ...

    @property
    def state(self) -> Mapping[str, float]: ...

    def restore(self, state: Mapping[str, float]) -> None: ...


def learning_rate_factor(section: PolicySection, step: int) -> float:
    """The factor of the learning rates at a step, from 1: a function of the step, so there is no state to resume."""
    warmup = min(1.0, step / section.warmup_steps) if section.warmup_steps else 1.0
    decay = (section.steps - step + 1) / section.steps if section.schedule == "linear" else 1.0
    return warmup * decay


class Loop:
    """All steps of a run, or those after its last checkpoint.

    Sampling is at temperature 1 without top-p, whatever ``model.temperature`` says, because the sampler must be the
    distribution whose log-probabilities are learnt. The guard samples as the config says, as the model will be used.

    With ``ppo.lag`` 1 the responses of step k + 1 are sampled before step k learns, by the policy after step k − 1, and
    the actor retries them while step k learns. Their old log-probabilities are of the policy that sampled them.
    """

    def __init__(self, run: PolicyRun, learner: Learner) -> None:
        self.run, self.learner, self.section = run, learner, run.section
        run.accelerator = Accelerator(cpu=resolve_device(run.config.device).type == "cpu")
        run.work.open_trackers(run.accelerator)
        checkpoint = run.checkpoint()
        run.load(learner.needs, checkpoint)
        self.trainables = [Trainable(part, list(group.values())) for part, group in run.models.parts.items()]
        self.rates = learner.learning_rates(self.section)
        self.optimiser = torch.optim.AdamW(
            [{"params": list(part.parameters), "lr": self.rates[part.name]} for part in self.trainables],
            betas=self.section.adam.betas,
            eps=self.section.adam.epsilon,
            weight_decay=self.section.weight_decay,
        )
        if checkpoint:
            learner.restore(run.state.algorithm)
            load_optimiser(self.optimiser, run.models.trained_parameters, checkpoint)
        self._ahead: Ahead | None = None
        if checkpoint and run.rollouts.lag and run.state.step < self.section.steps:
            number = run.state.step + 1
            self._ahead = run.rollouts.begin(load_ahead(checkpoint, run.contexts(number)), number)

    def train(self) -> None:
        """Make all remaining steps."""
        run = self.run
        run.state = replace(run.state, algorithm=self.learner.state)
        if run.state.step == 0:
            run.validate(0)
        for step in range(run.state.step + 1, self.section.steps + 1):
            self.step(step)
            if run.due(step, self.section.validate_every):
                run.validate(step)
            if run.due(step, self.section.checkpoint_every):
                run.save(step, partial(self.save_beside, gather_ahead(self._ahead.groups if self._ahead else ())))

    def save_beside(self, ahead: Sequence[Response], folder: Path) -> None:
        """Write what a checkpoint has beside the policy."""
        save_optimiser(self.optimiser, self.run.models.trained_parameters, folder)
        if ahead:
            save_ahead(ahead, folder)

    def step(self, number: int) -> None:
        """Sample, score, learn and log."""
        run, contexts = self.run, self.run.contexts(number)
        groups, seconds = self.scored(number)
        scored = perf_counter()
        count = torch.tensor([float(sum(len(group.responses) for group in groups))], device=run.device)
        batch = Batch(
            step=number,
            seed=derive_seed(run.config.seed, "ppo", number),
            groups=groups,
            total=int(run.reduce(count).item()),
            reduce=run.reduce,
            trainables=self.trainables,
            optimiser=self.optimiser,
            max_grad_norm=self.section.max_grad_norm,
            _models=run.models,
            _imitation=run.imitation,
        )
        factor = learning_rate_factor(self.section, number)
        for group, part in zip(self.optimiser.param_groups, self.trainables, strict=True):
            group["lr"] = self.rates[part.name] * factor
        learnt = self.learner.learn(batch)
        done = perf_counter()
        gathered = run.record(number, contexts, groups, batch.sampler_gaps if batch.recomputed else None)
        run.work.log(
            number,
            **learnt,
            **gathered,
            learning_rate=self.rates["policy"] * factor,
            **seconds,
            seconds_update=round(done - scored, 4),
        )
        shown = {key: gathered[key] for key in SHOWN if key in gathered}
        run.work.progress(number, self.section.steps, **shown)
        run.state = replace(run.state, step=number, algorithm=self.learner.state)

    def scored(self, number: int) -> tuple[list[Group], dict[str, float]]:
        """The step's groups with their rewards, and the seconds that went into sampling and into scores.

        With a lag, the groups were sampled a step ago, and those of the next step are sampled here.
        """
        rollouts, started = self.run.rollouts, perf_counter()
        if rollouts.lag:
            groups = rollouts.finish(self._ahead or self.begun(number))
            waited = perf_counter()
            self._ahead = self.begun(number + 1) if number < self.section.steps else None
            sample, score = perf_counter() - waited, waited - started
        else:
            sampled = rollouts.sample(self.run.contexts(number), number)
            sample = perf_counter() - started
            groups = rollouts.score(sampled, number)
            score = perf_counter() - started - sample
        return groups, {"seconds_sample": round(sample, 4), "seconds_score": round(score, 4)}

    def begun(self, number: int) -> Ahead:
        """The groups of a step, sampled by the policy as it is, with their retries under way."""
        rollouts = self.run.rollouts
        return rollouts.begin(rollouts.sample_ahead(self.run.contexts(number), number), number)
