"""Which split an imported task is for, where its source does not say."""

from __future__ import annotations

from dataclasses import dataclass

from retro.types import Split, derive_seed


@dataclass(frozen=True, slots=True)
class SplitRule:
    """A task's split by a hash of its environment and id: stable, seeded, blind to everything else.

    The number u in [0, 1) drawn from (seed, environment, task id) makes the task a validation task for
    u < ``validation``, a test task for u < ``validation + test``, else a training task. All trials of a task, of
    whatever log, are therefore in one split.
    """

    seed: int = 0
    validation: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        if self.validation < 0 or self.test < 0 or self.validation + self.test > 1:
            raise ValueError(f"split fractions validation={self.validation}, test={self.test}: both ≥ 0, together ≤ 1")

    def split(self, environment: str, task: str) -> Split:
        draw = derive_seed(self.seed, "split", environment, task) / 2**63
        if draw < self.validation:
            return Split.VALIDATION
        return Split.TEST if draw < self.validation + self.test else Split.TRAIN
