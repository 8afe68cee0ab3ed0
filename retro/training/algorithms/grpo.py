"""``grpo``: group relative policy optimisation (Shao et al. 2024), by TRL's ``GRPOTrainer``.

A step's contexts, the seeds of its samples and the rewards of its responses are PPO's, so the first step of both sees
the same reflections. The loss is TRL's: clipped ratios, advantages normalised by their group's deviation, and a KL term
(k3, β = ``ppo.kl.coefficient``, their eq. 4) in the loss, not in the reward.
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
"""``kl_loss``: k3, nats a token, as in PPO. ``equal_groups_fraction``: the responses whose group has one score, and so
no advantage."""


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
        """Train and keep the best.

        Raises:
            ConfigError: if a step's groups cannot be shared by the processes, or its responses by the minibatches.
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
    """``longest``: tokens of the longest prompt and response, of which ``token_budget`` allows so many in a pass."""
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
        shuffle_dataset=False,  # the rows stand in the order of the steps
    )


def share(options: GrpoOptions, processes: int) -> tuple[int, int]:
    """(responses of one process in a step, those of them in an optimiser step).

    Raises:
        ConfigError: if groups or minibatches would be cut.
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
    """The stage's rollouts as TRL asks for them: the sampled groups of a step, and their rewards.

    TRL's prompts are texts, which need not tokenise back to what the model reads: ours name a step and a slot, and the
    rollout answers with token ids.
    """

    def __init__(self, run: PolicyRun) -> None:
        from retro.training.policy.run import contexts_of_step

        self._run, count, seed = run, len(run.train), run.config.seed
        self._contexts = {
            f"{step} {slot}": run.train[index]
            for step in range(1, run.section.steps + 1)
            for slot, index in enumerate(contexts_of_step(count, run.section, seed, step))
        }
        """In the order in which they are learnt."""
        self.longest = max(len(run.models.prompt(context)) for context in self._contexts.values())
        self.longest += run.config.model.max_new_tokens
        self.metrics: Mapping[str, Any] = {}
        """Of the step that was sampled last, in PPO's words."""
        self._step = 0
        self._groups: list[Group] = []

    @property
    def prompts(self) -> list[str]:
        return list(self._contexts)

    @property
    def _responses(self) -> list[Response]:
        return [response for group in self._groups for response in group.responses]

    def sample(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """The groups of this process: every prompt stands ``group`` times beside itself."""
        import torch

        run, own = self._run, prompts[:: self._run.section.group]
        self._step = int(own[0].split()[0])
        self._groups = run.rollouts.sample({int(name.split()[1]): self._contexts[name] for name in own}, self._step)
        # from here on TRL draws the order of the microbatches: by the step, as all else
        torch.manual_seed(derive_seed(run.config.seed, "ppo", self._step, "order", run.rank))
        return {
            "prompt_ids": [run.models.prompt(group.context) for group in self._groups for _ in group.responses],
            "completion_ids": [list(response.ids) for response in self._responses],
            "logprobs": None,  # TRL recomputes those of the policy before its update
        }

    def score(self, prompts: Sequence[str], completion_ids: Sequence[list[int]], **_: Any) -> list[float | None]:
        """The reward of each response; None, which gives no advantage, for a group that lost an episode."""
        if [list(response.ids) for response in self._responses] != [list(ids) for ids in completion_ids]:
            raise RuntimeError(
                "TRL asks for the scores of other responses than it was given: this version differs from what this "
                "retro expects; install the constraints' version"
            )
        groups = self._run.rollouts.score(self._groups, self._step)
        sampled = {group.slot: group.context for group in self._groups}
        self.metrics = self._run.record(self._step, sampled, groups)
        rewards = {group.slot: group.rewards for group in groups}
        return [
            rewards[response.slot][response.index] if response.slot in rewards else None for response in self._responses
        ]
