"""Group relative policy optimisation (Shao et al. 2024) on the buffer's failed episodes, by TRL's ``GRPOTrainer``.

A step's contexts, the seeds of its samples and what a response is worth are PPO's, so the first step of both sees the
same reflections. The loss is TRL's: clipped ratios, advantages normalised by their group's deviation, and a KL term
(k3, β = ``ppo.kl.coefficient``, their eq. 4) in the loss, not in the reward.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from retro.buffer.views import Context
from retro.config import ConfigError, PolicySection, RunConfig
from retro.stage import Work
from retro.training.algorithms.grpo import GrpoOptions
from retro.training.ppo import contexts_of_step
from retro.training.ppo_records import mean_metrics, record, show_samples, write_rollouts
from retro.training.ppo_rewards import Response
from retro.training.ppo_rollouts import Rollouts
from retro.training.rivals import Rival, StepLog, largest_divisor
from retro.types import derive_seed

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


def run_grpo(
    options: GrpoOptions, config: RunConfig, work: Work, train: Sequence[Context], held_out: Sequence[Context]
) -> None:
    """Train and keep the best.

    Raises:
        ConfigError: if a step's groups cannot be shared by the processes, or its responses by the minibatches.
    """
    with closing(Rival(options, config, work, train, held_out)) as rival:
        groups = Groups(rival, options)
        arguments = trainer_arguments(rival, options, groups.longest)
        rival.base.lend(training=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            trainer = GRPOTrainer(
                model=rival.base.model,
                args=arguments,
                train_dataset=Dataset.from_dict({"prompt": [str(row) for row in range(len(groups.rows))]}),
                processing_class=rival.base.tokenizer,
                reward_funcs=groups.score,
                rollout_func=groups.sample,
            )
        groups.accelerator = trainer.accelerator
        rival.fit(trainer, StepLog(rival, LOGGED, groups.metrics))


def trainer_arguments(rival: Rival, section: GrpoOptions, longest: int) -> GRPOConfig:
    """``longest``: tokens of the longest prompt and response, of which ``token_budget`` allows so many in a pass."""
    responses, passes = share(section, rival.process.num_processes)
    microbatch = largest_divisor(passes, section.token_budget // longest)
    return GRPOConfig(
        **rival.arguments(microbatch, passes // microbatch),
        num_generations=section.group,
        steps_per_generation=responses // microbatch,
        num_iterations=section.epochs,
        epsilon=section.clip,
        entropy_coef=section.entropy_coefficient,
        max_completion_length=rival.config.model.max_new_tokens,
        loss_type="grpo",
        scale_rewards="group",
        temperature=1.0,
        shuffle_dataset=False,  # the rows stand in PPO's order
    )


def share(section: PolicySection, processes: int) -> tuple[int, int]:
    """(responses of one process in a step, those of them in an optimiser step).

    Raises:
        ConfigError: if groups or minibatches would be cut.
    """
    if section.contexts % processes:
        raise ConfigError(
            f"ppo.contexts={section.contexts} cannot be shared by {processes} processes: ppo.algorithm=grpo needs a "
            "multiple of them"
        )
    responses = section.contexts * section.group // processes
    if responses % section.minibatches:
        raise ConfigError(
            f"ppo.minibatches={section.minibatches} does not divide the {responses} responses of a process in a step "
            "(ppo.contexts × ppo.group / processes), which ppo.algorithm=grpo needs"
        )
    return responses, responses // section.minibatches


class Groups:
    """What TRL asks of us in a step: the sampled groups, and their scores.

    TRL's prompts are texts, which need not tokenise back to what the model reads: ours are numbers of rows, and the
    rollout answers with token ids.
    """

    def __init__(self, rival: Rival, section: GrpoOptions) -> None:
        self._rival = rival
        self._rollouts = Rollouts(section, rival.config, rival.models, rival.retries, rival.transform)
        seed = rival.config.seed
        self.rows: list[tuple[int, int, Context]] = [
            (number, place, rival.train[index])
            for number in range(1, section.steps + 1)
            for place, index in enumerate(contexts_of_step(len(rival.train), section, seed, number))
        ]
        """(step, place, context) in the order in which they are learnt."""
        self.longest = max(len(rival.models.prompt(context)) for _, _, context in self.rows)
        self.longest += rival.config.model.max_new_tokens
        self.accelerator: Any = None
        self._number = 0
        self._mine: dict[int, Context] = {}
        self._responses: list[Response] = []
        self._metrics: dict[str, Any] = {}

    def sample(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """The groups of this process: every prompt stands ``group`` times beside itself."""
        rows = [self.rows[int(prompt)] for prompt in prompts[:: self._rival.section.group]]
        self._number, self._mine = rows[0][0], {place: context for _, place, context in rows}
        self._responses = self._rollouts.sample(self._mine, self._number)
        # from here on TRL draws the order of the microbatches: by the step, as all else
        seed = derive_seed(self._rival.config.seed, "ppo", self._number, "order", self._rival.process.process_index)
        torch.manual_seed(seed)
        return {
            "prompt_ids": [self._rival.models.prompt(self._mine[r.place]) for r in self._responses],
            "completion_ids": [list(r.ids) for r in self._responses],
            "logprobs": None,  # TRL recomputes those of the policy before its update
        }

    def score(self, prompts: Sequence[str], completion_ids: Sequence[list[int]], **_: Any) -> list[float | None]:
        """PPO's score of each response; None, which gives no advantage, for a group that lost a retry."""
        if [list(response.ids) for response in self._responses] != [list(ids) for ids in completion_ids]:
            raise RuntimeError(
                "TRL asks for the scores of other responses than it was given: this version differs from what this "
                "retro expects; install the constraints' version"
            )
        number, work = self._number, self._rival.work
        scored = self._rollouts.score(self._mine, self._responses, number)
        worths = {(r.place, r.index): worth for r, worth in zip(scored.responses, scored.worths, strict=True)}
        unknown = float("nan")  # TRL does not show its log-probabilities
        records = [
            record(number, self._mine[response.place], response, worth, unknown)
            for response, worth in zip(scored.responses, scored.worths, strict=True)
        ]
        records = sorted(gather_object(records), key=lambda row: (row["place"], row["index"]))
        dropped = sum(gather_object([scored.dropped]))
        known = {key: value for key, value in mean_metrics(records).items() if not key.startswith("sampler_gap")}
        self._metrics = {**known, "responses": len(records), "dropped_groups": dropped}
        if work.main:
            write_rollouts(work.folder, number, records)
            shown = {place: self._rival.models.prompt_text(self._mine[place]) for place in self._mine if place == 0}
            show_samples(work.folder, self.accelerator, number, records, shown)
        return [
            worths[key].score if (key := (response.place, response.index)) in worths else None
            for response in self._responses
        ]

    def metrics(self) -> Mapping[str, Any]:
        """Of the step that was sampled last, in PPO's words."""
        return self._metrics
