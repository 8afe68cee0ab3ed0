"""Which split an imported task belongs to, where its source does not say."""

from __future__ import annotations

from dataclasses import dataclass

from retro.types import Split, derive_seed


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Assigns a task to a split by a hash of the seed, its environment and its id: all its trials share a split.

    With u in [0, 1) drawn from these, it is a validation task for u < ``validation``, a test task for
    u < ``validation + test``, else a training task. Each task is assigned independently, so the shares are approximate.
    """

    seed: int = 0
    validation: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        if self.validation < 0 or self.test < 0 or self.validation + self.test > 1:
            raise ValueError(
                f"split fractions validation={self.validation}, test={self.test}: each must be ≥ 0, their sum ≤ 1"
            )

    def split(self, environment: str, task: str) -> Split:
        draw = derive_seed(self.seed, "split", environment, task) / 2**63
        if draw < self.validation:
            return Split.VALIDATION
        return Split.TEST if draw < self.validation + self.test else Split.TRAIN
