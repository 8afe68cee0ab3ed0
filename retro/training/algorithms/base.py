"""An algorithm of the policy stage: what it needs, and how it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from retro.config import PolicySection, Section

if TYPE_CHECKING:
    from retro.training.policy.batch import Batch
    from retro.training.policy.run import PolicyRun


class Algorithm:
    """Turns scored samples, or the buffer's ratings, into updates of the policy.

    A subclass that learns step by step implements :meth:`learn`; the stage samples, scores, logs, validates and saves.
    A subclass whose trainer has its own loop overrides :meth:`train`.

    ``needs`` says what the stage prepares:

    - ``rewards``: sampled groups with the rewards of ``ppo.reward``;
    - ``reference``: the frozen supervised adapter, for :attr:`Batch.rollout`;
    - ``values``: a value head on the policy, trained beside it;
    - ``imitation``: the reflections that the stage ``sft`` imitates, for :meth:`Batch.imitate`;
    - ``pairs``: nothing is sampled; the algorithm reads the buffer's ratings by the options of the stage ``reward``.
    """

    Options: ClassVar[type[Section]]
    """The keys that it reads. A built-in kind derives them from a section that the stage reads, too; for an algorithm
    from outside the package they are a section of their own."""
    needs: frozenset[str] = frozenset({"rewards"})
    """Set on the class, or by ``__init__`` if the options decide."""
    in_pieces: ClassVar[bool] = True
    """Whether it can train a base in pieces over the processes. Then :meth:`learn` must run the policy's forward pass
    equally often on every process, with rows or without."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @classmethod
    def from_options(cls, options: Any) -> Self:
        return cls(options)

    def learn(self, batch: Batch) -> Mapping[str, float]:
        """Update the policy on one step's groups; returns metrics, each a mean over all processes."""
        raise NotImplementedError

    def learning_rates(self, section: PolicySection) -> Mapping[str, float]:
        """One for each trained part: ``policy``, and ``value`` if the algorithm needs values."""
        return {"policy": section.learning_rate}

    @property
    def state(self) -> Mapping[str, float]:
        """What it keeps from step to step, for the checkpoint."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue with the :attr:`state` of a checkpoint."""

    def train(self, run: PolicyRun) -> None:
        """Make all steps of the run, or those after its last checkpoint."""
        from retro.training.policy.loop import Loop

        Loop(run, self).train()
