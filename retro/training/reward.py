"""Stage ``reward``: a model that predicts what a reflection is worth before the actor uses it (Retroformer, stage 2).

Reads the buffer's rated reflections; trains a LoRA adapter and a scalar head at the response's last token, on pairs
from one group (Bradley-Terry) or as the paper's accepted / rejected classifier; keeps the checkpoint with the best
accuracy within groups of validation tasks, and reports on test tasks. Writes ``adapter/`` (plain PEFT),
``head.safetensors`` and ``reward.json``.

The loop is our own, on accelerate: each reflection of a group is scored once behind the shared prompt, and all pairs of
the group come from those scores, where a pairwise trainer would run the prompt twice for each pair. ``batch_size`` and
``microbatch_size`` count groups (failed episodes).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from retro.artifacts import write_json
from retro.buffer.store import ReplayBuffer
from retro.config import RewardSection, RunConfig
from retro.layout import BEST, CHECKPOINT
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead
from retro.models.loading import resolve_device
from retro.models.packing import plan
from retro.models.sharding import launched_pieces
from retro.retrospective.reward_files import RewardFiles, facts_file
from retro.retrospective.reward_model import ROLE, RewardModel
from retro.rl.gradients import over_processes, sum_over_processes
from retro.stage import Stage, Work, with_interval
from retro.ties import exceeds
from retro.training.checkpoints import checkpoints
from retro.training.examples import MODEL_KEYS, encoder_of_run, training_inputs
from retro.training.reward_checkpoint import RewardState, restore, save
from retro.training.reward_data import RewardGroup, read_groups, to_learn_from
from retro.training.reward_metrics import ScoredGroup, reward_report, unequal_pairs, weighted_auc, within_group_accuracy
from retro.types import Split, derive_seed

logger = logging.getLogger(__name__)

RESAMPLES = 2000
"""The number of bootstrap samples of tasks behind an interval."""


def train_reward_model(config: RunConfig, work: Work) -> None:
    """Train and measure the reward model.

    Raises:
        NothingToLearnError: if the training tasks have no pair (``bradley_terry``) or one label only (``bce``).
    """
    trainer = RewardTrainer(config, work)
    trainer.train()
    trainer.report()


def batches(groups: int, section: RewardSection, seed: int) -> list[list[int]]:
    """The groups of every optimiser step, over all processes. Each epoch has its own seeded order."""
    steps: list[list[int]] = []
    for epoch in range(section.epochs):
        order = list(range(groups))
        random.Random(derive_seed(seed, "reward", "order", epoch)).shuffle(order)
        steps += [order[start : start + section.batch_size] for start in range(0, groups, section.batch_size)]
    return steps[: section.max_steps]


def terms(group: RewardGroup, section: RewardSection) -> int:
    """The number of terms that a group adds to the loss: its unequal pairs, or its labels."""
    if section.loss == "bradley_terry":
        return len(unequal_pairs(group.ratings, section.threshold))
    return sum(group.used)


def group_loss(scores: Tensor, group: RewardGroup, section: RewardSection) -> Tensor:
    """The sum of a group's terms, from its ``scores`` (K,).

    ``bradley_terry``: −log σ(s_better − s_worse) for every unequal pair. ``bce``: −log σ(±s) for every used reflection.
    """
    if section.loss == "bradley_terry":
        pairs = torch.tensor(unequal_pairs(group.ratings, section.threshold), device=scores.device)  # (P, 2)
        return -logsigmoid(scores[pairs[:, 0]] - scores[pairs[:, 1]]).sum()
    used = torch.tensor(group.used, device=scores.device)  # (K,)
    labels = torch.tensor([float(exceeds(rating, section.threshold)) for rating in group.ratings], device=scores.device)
    return binary_cross_entropy_with_logits(scores[used], labels[used], reduction="sum")


def judge(
    scored: Sequence[ScoredGroup], groups: Sequence[RewardGroup], section: RewardSection, step: int
) -> tuple[tuple[float, float], dict[str, float]]:
    """The quality of a checkpoint on the validation tasks, and the metrics behind it.

    The quality is the accuracy within groups, or the AUC if no group has a pair (one reflection per trajectory). The
    loss breaks ties. Without validation tasks, a later checkpoint is better.
    """
    total = sum(terms(group, section) for group in groups)
    losses = [
        float(group_loss(torch.tensor(own.scores), group, section))
        for own, group in zip(scored, groups, strict=True)
        if terms(group, section)
    ]
    if not total:
        return (0.0, float(step)), {}
    accuracy = within_group_accuracy(scored, section.threshold)
    rows = [row for group in scored for row in zip(group.scores, group.ratings, strict=True)]
    auc = weighted_auc(
        np.array([score for score, _ in rows]),
        np.array([float(exceeds(rating, section.threshold)) for _, rating in rows]),
        np.ones(len(rows)),
    )
    loss = sum(losses) / total
    counts = accuracy if math.isfinite(accuracy) else auc if math.isfinite(auc) else 0.0
    return (counts, -loss), {"validation_loss": loss, "validation_accuracy": accuracy, "validation_auc": auc}


class RewardTrainer:
    """The adapter, the head, and their training on this process's share of every batch."""

    def __init__(self, config: RunConfig, work: Work) -> None:
        self.config, self.section, self.work = config, config.reward, work
        self.accelerator = Accelerator(cpu=resolve_device(config.device).type == "cpu")
        sharded = launched_pieces("reward", config.model) is not None
        self.base = SharedBase.load(config.model, "cpu" if sharded else self.accelerator.device)
        self.encoder = encoder_of_run(self.base.tokenizer, config)
        with ReplayBuffer(config.buffer_url, create=False) as buffer:
            self.train_groups, self.validation, self.test = (
                read_groups(buffer, self.section, self.encoder, split, config.buffer.environments) for split in Split
            )
        self.learnt = to_learn_from(self.train_groups, self.section, config.seed)
        self.base.add_role(ROLE, config.model.lora, derive_seed(config.seed, "reward", "adapter"))
        if sharded:
            self.base.shard(self.accelerator.device)
        self.head = ScalarHead(self.base.hidden_size, seed=derive_seed(config.seed, "reward", "head"))
        self.head.to(self.accelerator.device)
        self.model = RewardModel(self.base, self.head, budget=None, most=self.section.microbatch_size)
        self.parameters = {
            **{f"adapter.{name}": value for name, value in self.base.role_parameters(ROLE).items()},
            **{f"head.{name}": value for name, value in self.head.named_parameters()},
        }
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(),
            lr=self.section.learning_rate,
            betas=self.section.adam.betas,
            eps=self.section.adam.epsilon,
            weight_decay=self.section.weight_decay,
        )
        self.steps = batches(len(self.learnt), self.section, config.seed)
        self.state = RewardState()
        work.open_trackers(self.accelerator)

    def train(self) -> None:
        """Make all steps after the latest checkpoint. Every evaluation is followed by a checkpoint."""
        if self.work.resumed and (found := checkpoints(self.work.folder)):
            self.state = restore(found[-1][1], self.parameters, self.optimiser)
        self.work.cut_metrics(self.state.step)
        count = sum(terms(group, self.section) for group in self.learnt)
        logger.info("reward: %d terms from %d groups, %d steps", count, len(self.learnt), len(self.steps))
        for number in range(self.state.step + 1, len(self.steps) + 1):
            metrics = self.step(number)
            self.state = replace(self.state, step=number)
            due = number % self.section.eval_every == 0 or number == len(self.steps)
            if due:
                metrics |= self.evaluate()
            self.work.log(number, **metrics)
            self.work.progress(number, len(self.steps), loss=metrics["loss"])
            if due:  # after the log line, because a resumed stage keeps the lines up to its checkpoint
                self.checkpoint()

    def step(self, number: int) -> dict[str, float]:
        """Make one update on a batch. Its loss is the mean over the terms of all processes."""
        batch = [self.learnt[index] for index in self.steps[number - 1]]
        total = sum(terms(group, self.section) for group in batch)
        rate = self.section.learning_rate * self._schedule(number)
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        torch.manual_seed(derive_seed(self.config.seed, "reward", number, self.accelerator.process_index))  # dropout
        loss = torch.zeros((), device=self.accelerator.device)
        with self.base.role(ROLE, train=True):  # around all microbatches: processes have different numbers
            for groups in self._microbatches(batch):
                scores = self.model.forward([group.prompt for group in groups], [group.responses for group in groups])
                parts = [group_loss(own, group, self.section) for own, group in zip(scores, groups, strict=True)]
                part = torch.stack(parts).sum()
                (part / total).backward()
                loss += part.detach() / total
        [loss] = sum_over_processes(list(self.parameters.values()), loss.reshape(1), over_processes())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.section.max_grad_norm)
        self.optimiser.step()
        return {"loss": float(loss), "learning_rate": rate, "grad_norm": float(norm), "terms": total}

    def evaluate(self) -> dict[str, float]:
        """Loss, accuracy within groups and AUC on the validation tasks; saves the best parameters so far."""
        scored = self.scores(self.validation)
        quality, metrics = judge(scored, self.validation, self.section, self.state.step)
        if self.state.best is None or quality > self.state.best:
            self.state = replace(self.state, best=quality, best_step=self.state.step)
            if self.work.main:
                save(self.work.folder / BEST, self.state, self.parameters, None)
            self.accelerator.wait_for_everyone()
        return metrics

    def checkpoint(self) -> None:
        if self.work.main:
            save(self.work.folder / f"{CHECKPOINT}{self.state.step}", self.state, self.parameters, self.optimiser)
        self.accelerator.wait_for_everyone()

    def scores(self, groups: Sequence[RewardGroup]) -> list[ScoredGroup]:
        """The scores of all groups, computed by all processes together."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        indices = range(rank, len(groups), processes)
        own = [groups[index] for index in indices]
        scores = self.model.scores([group.prompt for group in own], [group.responses for group in own])
        found = dict(gather_object(list(zip(indices, scores, strict=True))))
        return [
            ScoredGroup(group.task, group.environment, tuple(found[index]), group.ratings)
            for index, group in enumerate(groups)
        ]

    def report(self) -> None:
        """Restore the best parameters, write them out, and measure them on the test tasks."""
        restore(self.work.folder / BEST, self.parameters, None)
        train, validation, test = map(self.scores, (self.train_groups, self.validation, self.test))
        if not self.work.main:
            return
        files = RewardFiles.of_stage(self.work.folder)
        self.model.save(RewardFiles(self.work.output("adapter", files.adapter), self.work.output("head", files.head)))
        scores = [score for group in train for score in group.scores]
        facts: dict[str, Any] = {
            "loss": self.section.loss,
            "rating": self.section.rating,
            "threshold": self.section.threshold,
            "steps": len(self.steps),
            "best_step": self.state.best_step,
            "train_groups": len(self.learnt),
            "train_terms": sum(terms(group, self.section) for group in self.learnt),
            "score_mean": fmean(scores),
            "score_std": pstdev(scores),
            "validation": self._measure(validation),
            "test": self._measure(test),
            "test_by_environment": {
                name: self._measure([group for group in test if group.environment == name])
                for name in sorted({group.environment for group in test})
            },
        }
        write_json(self.work.output("report", facts_file(self.work.folder)), facts)
        measured = facts["test"]
        named = {f"accuracy in {measured['pairs']:,} pairs within groups": measured["accuracy"]}
        if labels := measured.get("labels"):
            named |= {"accuracy of labels": labels["accuracy"], "share of the more frequent label": labels["majority"]}
            named["AUC"] = measured["auc"]
        for name, found in named.items():
            if found["value"] is not None:
                logger.info("reward: on test tasks, %s: %s", name, with_interval(found["value"], found["ci95"]))

    def _measure(self, groups: Sequence[ScoredGroup]) -> dict[str, Any]:
        seed = derive_seed(self.config.seed, "reward", "bootstrap")
        return reward_report(groups, self.section.loss, self.section.threshold, RESAMPLES, seed)

    def _microbatches(self, batch: Sequence[RewardGroup]) -> Iterator[list[RewardGroup]]:
        """This process's share, with ``microbatch_size`` groups in each pass."""
        own = batch[self.accelerator.process_index :: self.accelerator.num_processes]
        for chosen in plan([group.tokens for group in own], most=self.section.microbatch_size):
            yield [own[index] for index in chosen]

    def _schedule(self, number: int) -> float:
        """Linear warm-up, then linear decay to 0: a function of the step, so there is no state to resume."""
        warmup = round(self.section.warmup_fraction * len(self.steps))
        if number <= warmup:
            return number / warmup
        return (len(self.steps) - number + 1) / (len(self.steps) - warmup)


STAGE = Stage(
    name="reward",
    folder="reward",
    reads=("collect",),
    keys=(*MODEL_KEYS, "buffer", "reward"),
    not_deciding=("environment.name", "environment.prompts"),
    inputs=lambda config: training_inputs(config, "reward"),
    run=train_reward_model,
    trains=True,
    optional=lambda config: "reward_model" not in config.ppo.needs,
)
"""Best-of-N needs the reward model; the policy stage needs it only if it learns from its scores."""
