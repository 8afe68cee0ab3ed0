"""``dpo``: direct preference optimisation (Rafailov et al. 2023) on the buffer's ratings, by TRL's ``DPOTrainer``.

The pairs are the reward model's: two reflections on one failed episode whose ratings differ by more than
``reward.threshold``. β is ``ppo.kl.coefficient``. DPO and PPO have one objective, reward minus β times the KL
divergence from the reference (their eq. 3); DPO takes the differences of ratings as the reward.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from retro.config import FixedKlSection, PolicySection, RunConfig
from retro.training.algorithms.base import Algorithm
from retro.types import Split

if TYPE_CHECKING:
    from trl.trainer.dpo_config import DPOConfig

    from retro.retrospective.encoding import Encoder
    from retro.training.algorithms.trl import TrlTraining
    from retro.training.policy.run import PolicyRun

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
"""``accuracy`` and ``margin`` (the mean difference in a pair) are those of the implicit rewards β log π/π_ref."""


class DpoOptions(PolicySection):
    """Direct preference optimisation (Rafailov et al. 2023) on the buffer's ratings, by TRL's ``DPOTrainer``."""

    algorithm: Literal["dpo"] = "dpo"
    kl: FixedKlSection = FixedKlSection()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two reflections on one failed episode. The one with the higher rating is chosen."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def tokens(self) -> int:
        """The padded size of the pair in one forward pass."""
        return 2 * (len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids)))


class Dpo(Algorithm):
    Options = DpoOptions
    in_pieces = False
    needs = frozenset({"pairs"})

    def train(self, run: PolicyRun) -> None:
        """Train, and keep the best checkpoint.

        Raises:
            NothingToLearnError: if the training tasks have no pair.
        """
        from datasets import Dataset
        from trl.trainer.dpo_trainer import DPOTrainer

        from retro.stage import NothingToLearnError
        from retro.training.algorithms.trl import StepLog, TrlTraining
        from retro.training.trl import require_kept

        class PairTrainer(DPOTrainer):  # type: ignore[misc]  # trl ships no types
            """TRL's trainer on token ids. Its own interface takes text, which may get other tokens than the model reads
            and writes: it adds an end to a response that was cut, and tokens may merge across the prompt's end."""

            def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
                return dataset

        training, config = TrlTraining(run, self.needs), run.config
        encoder = run.models.encoder
        pairs, validation = (read_pairs(config, encoder, split) for split in (Split.TRAIN, Split.VALIDATION))
        if not pairs:
            raise NothingToLearnError(
                f"ppo.algorithm=dpo: no two reflections on a training task belong to one group and differ by more than "
                f"{pair_threshold(config)} in {config.reward.rating}: collect groups (collect.group ≥ 2) of more tasks"
            )
        longest = max(pair.tokens for pair in [*pairs, *validation])
        training.base.lend(training=False)
        trainer = PairTrainer(
            model=training.base.model,
            args=dpo_arguments(training, self.options, longest, bool(validation)),
            train_dataset=Dataset.from_list(list(map(asdict, pairs))),
            eval_dataset=Dataset.from_list(list(map(asdict, validation))) if validation else None,
            processing_class=training.base.tokenizer,
        )
        require_kept(trainer, pairs)
        training.fit(trainer, StepLog(run, training.updates, LOGGED))


def pair_threshold(config: RunConfig) -> float:
    """How far two ratings of a pair must differ. (For ``bce``, the threshold is about single ratings.)"""
    return config.reward.threshold if config.reward.loss == "bradley_terry" else 0.0


def read_pairs(config: RunConfig, encoder: Encoder, split: Split) -> list[Pair]:
    """The pairs of a split's tasks, in the buffer's order."""
    from retro.buffer.store import ReplayBuffer
    from retro.training.reward_data import read_groups
    from retro.training.reward_metrics import unequal_pairs

    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        groups = read_groups(buffer, config.reward, encoder, split, config.buffer.environments)
    return [
        Pair(list(group.prompt), list(group.responses[better]), list(group.responses[worse]))
        for group in groups
        for better, worse in unequal_pairs(group.ratings, pair_threshold(config))
    ]


def dpo_arguments(training: TrlTraining, options: DpoOptions, longest: int, validate: bool) -> DPOConfig:
    """The trainer's arguments. The pairs of a step have as many responses as a step of PPO samples.

    Args:
        longest: tokens of the longest pair; ``token_budget`` limits the pairs in one forward pass.
    """
    from trl.trainer.dpo_config import DPOConfig

    from retro.training.algorithms.trl import passes_of

    responses = options.contexts * options.group
    share = math.ceil(responses / (2 * options.minibatches * training.run.processes))  # pairs of an optimiser step
    return DPOConfig(
        **training.arguments(options.kl, *passes_of(options, share, longest)),
        loss_type=["sigmoid"],
        max_length=None,  # the default would cut off the reflection, which is at the end
        precompute_ref_log_probs=False,
        eval_strategy="steps" if validate else "no",
        eval_steps=options.validate_every * training.updates,
        eval_on_start=validate and training.checkpoint is None,
        prediction_loss_only=True,
    )
