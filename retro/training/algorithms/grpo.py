"""``grpo``: group relative policy optimisation (Shao et al. 2024), by TRL's ``GRPOTrainer``.

Contexts, seeds and rewards are those of PPO, so the first step of both has the same reflections. The loss is TRL's:
clipped ratios, advantages normalised by their group's deviation, and a KL term in the loss instead of the reward (k3,
β = ``ppo.kl.coefficient``, their eq. 4).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from retro.config import (
    ConfigError,
    FixedKlSection,
    NonNegativeFloat,
    PositiveFloat,
    SampledPolicySection,
)
from retro.training.algorithms.base import Algorithm
from retro.types import derive_seed

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig

    from retro.training.algorithms.trl import TrlTraining
    from retro.training.policy.groups import Group, Response
    from retro.training.policy.run import PolicyRun

LOGGED = {
    "loss": "loss",
    "kl": "kl_loss",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_fraction",
    "completions/mean_length": "length",
    "frac_reward_zero_std": "equal_groups_fraction",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}
"""``kl_loss`` is k3, nats per token, as in PPO. ``equal_groups_fraction`` is the fraction of responses whose group has
equal scores, and so no advantage."""


class GrpoOptions(SampledPolicySection):
    """Group relative policy optimisation (Shao et al. 2024), by TRL's ``GRPOTrainer``."""

    algorithm: Literal["grpo"] = "grpo"
    group: Annotated[int, Field(ge=2)] = 4
    """Responses a context."""
    clip: PositiveFloat = 0.2
    entropy_coefficient: NonNegativeFloat = 0.0
    kl: FixedKlSection = FixedKlSection()
    """k3 in the loss."""


class Grpo(Algorithm):
    Options = GrpoOptions
    in_pieces = False

    def train(self, run: PolicyRun) -> None:
        """Train, and keep the best checkpoint.

        Raises:
            ConfigError: if the processes cannot share a step's groups evenly, or the minibatches its responses.
        """
        from datasets import Dataset
        from trl.trainer.grpo_trainer import GRPOTrainer

        from retro.training.algorithms.trl import StepLog, TrlTraining

        training = TrlTraining(run, self.needs)
        rollouts = TrlRollouts(run)
        arguments = grpo_arguments(training, self.options, rollouts.longest)
        training.base.lend(training=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            trainer = GRPOTrainer(
                model=training.base.model,
                args=arguments,
                train_dataset=Dataset.from_dict({"prompt": rollouts.prompts}),
                processing_class=training.base.tokenizer,
                reward_funcs=rollouts.score,
                rollout_func=rollouts.sample,
            )
        training.fit(trainer, StepLog(run, training.updates, LOGGED, lambda: rollouts.metrics))


def grpo_arguments(training: TrlTraining, options: GrpoOptions, longest: int) -> GRPOConfig:
    """The trainer's arguments; ``longest`` is the number of tokens of the longest prompt with its response."""
    from trl.trainer.grpo_config import GRPOConfig

    from retro.training.algorithms.trl import passes_of

    responses, rows = share(options, training.run.processes)
    microbatch, passes = passes_of(options, rows, longest)
    return GRPOConfig(
        **training.arguments(options.kl, microbatch, passes),
        num_generations=options.group,
        steps_per_generation=responses // microbatch,
        num_iterations=options.epochs,
        epsilon=options.clip,
        entropy_coef=options.entropy_coefficient,
        max_completion_length=training.run.config.model.max_new_tokens,
        loss_type="grpo",
        scale_rewards="group",
        temperature=1.0,
        shuffle_dataset=False,  # the rows are in the order of the steps
    )


def share(options: GrpoOptions, processes: int) -> tuple[int, int]:
    """(responses of one process in a step, responses of one process in an optimiser step).

    Raises:
        ConfigError: if a group or a minibatch would be cut.
    """
    if options.contexts % processes:
        raise ConfigError(
            f"ppo.contexts={options.contexts} cannot be shared by {processes} processes: ppo.algorithm=grpo needs a "
            "multiple of them"
        )
    responses = options.contexts * options.group // processes
    if responses % options.minibatches:
        raise ConfigError(
            f"ppo.minibatches={options.minibatches} does not divide the {responses} responses of a process in a step "
            "(ppo.contexts × ppo.group / processes), which ppo.algorithm=grpo needs"
        )
    return responses, responses // options.minibatches


class TrlRollouts:
    """The stage's rollouts in the form that TRL asks for: the sampled groups of a step, and their rewards.

    TRL's prompts are texts, which may get other tokens than the model reads. So the text of a prompt only names a step
    and a slot, and the rollout answers with token ids.
    """

    def __init__(self, run: PolicyRun) -> None:
        from retro.training.policy.run import contexts_of_step

        self._run, count, seed = run, len(run.train), run.config.seed
        self._indices = {
            f"{step} {slot}": index
            for step in range(1, run.section.steps + 1)
            for slot, index in enumerate(contexts_of_step(count, run.section, seed, step))
        }
        """The contexts in the order of training."""
        self.longest = max(len(run.models.prompt(run.train[index])) for index in set(self._indices.values()))
        self.longest += run.config.model.max_new_tokens
        self.metrics: Mapping[str, Any] = {}
        """Those of the latest step, with PPO's names."""
        self._step = 0
        self._groups: list[Group] = []

    @property
    def prompts(self) -> list[str]:
        return list(self._indices)

    @property
    def _responses(self) -> list[Response]:
        return [response for group in self._groups for response in group.responses]

    def sample(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """Sample the groups of this process. TRL repeats every prompt ``group`` times in a row."""
        import torch

        run, own = self._run, prompts[:: self._run.section.group]
        self._step = int(own[0].split()[0])
        contexts = {int(name.split()[1]): run.train[self._indices[name]] for name in own}
        self._groups = run.rollouts.sample(contexts, self._step)
        # TRL draws the order of the microbatches next; like all draws, it is seeded by the step
        torch.manual_seed(derive_seed(run.config.seed, "ppo", self._step, "order", run.rank))
        return {
            "prompt_ids": [run.models.prompt(group.context) for group in self._groups for _ in group.responses],
            "completion_ids": [list(response.ids) for response in self._responses],
            "logprobs": None,  # TRL recomputes those of the policy before its update
        }

    def score(self, prompts: Sequence[str], completion_ids: Sequence[list[int]], **_: Any) -> list[float | None]:
        """The reward of each response. A group that lost an episode has None, which gives no advantage."""
        if [list(response.ids) for response in self._responses] != [list(ids) for ids in completion_ids]:
            raise RuntimeError(
                "TRL asks for the scores of other responses than it was given: this version differs from what retro "
                "expects; install the constraints' version"
            )
        groups = self._run.rollouts.score(self._groups, self._step)
        sampled = {group.slot: group.context for group in self._groups}
        self.metrics = self._run.record(self._step, sampled, groups)
        rewards = {group.slot: group.rewards for group in groups}
        return [
            rewards[response.slot][response.index] if response.slot in rewards else None for response in self._responses
        ]
