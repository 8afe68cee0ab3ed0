"""Direct preference optimisation (Rafailov et al. 2023) on the buffer's rated reflections, by TRL's ``DPOTrainer``.

The pairs are the reward model's: two reflections on one failed episode whose ratings differ by more than
``reward.threshold``. β is ``ppo.kl.coefficient``: DPO solves the objective that PPO climbs, reward minus β times the KL
divergence from the reference (their eq. 3), where the ratings' differences stand for the reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from retro.buffer.store import ReplayBuffer
from retro.buffer.views import Context
from retro.config import RunConfig
from retro.stage import NothingToLearnError, Work
from retro.training.algorithms.dpo import DpoOptions
from retro.training.examples import Encoder
from retro.training.reward_data import read_groups
from retro.training.reward_metrics import unequal_pairs
from retro.training.rivals import Rival, StepLog, largest_divisor
from retro.types import Split

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
_SHARED = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "entropy": "entropy",
}
LOGGED = {
    **_SHARED,
    **{f"eval_{theirs}": f"validation_{ours}" for theirs, ours in _SHARED.items()},
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
}
"""``accuracy``: of the implicit rewards β log π/π_ref; ``margin``: the mean difference of a pair's."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two reflections on one failed episode; the better rated one is chosen."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def tokens(self) -> int:
        """Of the pair in one forward pass, padded."""
        return 2 * (len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids)))


class PairTrainer(DPOTrainer):  # type: ignore[misc]  # trl ships no types
    """TRL's trainer on token ids. Its interface takes text, whose tokens need not be those that the model reads and
    writes: it adds an end to what was cut, and tokens may merge over the prompt's border."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def run_dpo(
    options: DpoOptions, config: RunConfig, work: Work, train: Sequence[Context], held_out: Sequence[Context]
) -> None:
    """Train and keep the best.

    Raises:
        NothingToLearnError: if the training tasks have no pair.
    """
    with closing(Rival(options, config, work, train, held_out)) as rival:
        encoder = Encoder(rival.base.tokenizer, config)
        pairs, validation = (read_pairs(config, encoder, split) for split in (Split.TRAIN, Split.VALIDATION))
        if not pairs:
            raise NothingToLearnError(
                f"ppo.algorithm=dpo: no two reflections on a training task belong to one group and differ by more than "
                f"{pair_threshold(config)} in {config.reward.rating}: collect groups (collect.group ≥ 2) of more tasks"
            )
        rival.base.lend(training=False)
        trainer = PairTrainer(
            model=rival.base.model,
            args=trainer_arguments(rival, max(pair.tokens for pair in [*pairs, *validation]), bool(validation)),
            train_dataset=to_dataset(pairs),
            eval_dataset=to_dataset(validation) if validation else None,
            processing_class=rival.base.tokenizer,
        )
        require_all_pairs(trainer, pairs)
        rival.fit(trainer, StepLog(rival, LOGGED))


def pair_threshold(config: RunConfig) -> float:
    """The least difference of ratings that makes a pair (of the classifier the threshold says something else)."""
    return config.reward.threshold if config.reward.loss == "bradley_terry" else 0.0


def read_pairs(config: RunConfig, encoder: Encoder, split: Split) -> list[Pair]:
    """The pairs of a split's tasks, in the buffer's order."""
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        groups = read_groups(buffer, config.reward, encoder, split, config.buffer.environments)
    return [
        Pair(group.prompt, group.responses[better], group.responses[worse])
        for group in groups
        for better, worse in unequal_pairs(group.ratings, pair_threshold(config))
    ]


def to_dataset(pairs: Sequence[Pair]) -> Dataset:
    return Dataset.from_dict({column: [getattr(pair, column) for pair in pairs] for column in COLUMNS})


def trainer_arguments(rival: Rival, longest: int, validate: bool) -> DPOConfig:
    """A step's pairs hold as many responses as a step of PPO samples.

    Args:
        longest: tokens of the longest pair: as many pairs go through one forward pass as ``token_budget`` allows.
    """
    section = rival.section
    responses = section.contexts * section.group
    share = math.ceil(responses / (2 * section.minibatches * rival.process.num_processes))  # pairs of an optimiser step
    microbatch = largest_divisor(share, section.token_budget // longest)
    return DPOConfig(
        **rival.arguments(microbatch, share // microbatch),
        loss_type=["sigmoid"],
        max_length=None,  # the default would cut the reflection off, which stands at the end
        precompute_ref_log_probs=False,
        eval_strategy="steps" if validate else "no",
        eval_steps=section.validate_every * rival.updates,
        eval_on_start=validate and rival.resumed_from is None,
        prediction_loss_only=True,
    )


def require_all_pairs(trainer: Any, pairs: Sequence[Pair]) -> None:
    """Refuse to train if the trainer's preparation has changed a token."""
    kept = cast(Dataset, trainer.train_dataset)
    if any(column not in kept.column_names for column in COLUMNS) or any(
        kept[column][:] != [getattr(pair, column) for pair in pairs] for column in COLUMNS
    ):
        raise RuntimeError(
            f"the trainer has other data than the {len(pairs)} pairs it was given: this version of TRL prepares data "
            "in another way than this retro expects; install the constraints' version"
        )
