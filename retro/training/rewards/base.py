"""A term of the reward: what it needs about a group of responses, and how it scores them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from retro.config import Section

if TYPE_CHECKING:
    from retro.training.policy.groups import Group


class Reward:
    """Scores responses; the reward is the weighted sum of the terms.

    ``needs`` says what the stage gathers, once for all terms, before it calls :meth:`score`:

    - ``retries``: the frozen actor's own retry with each response (``group.retries``);
    - ``controls``: its retries without a reflection (``group.controls``), as many as :attr:`controls` says;
    - ``reward_model``: the learnt reward model's raw scores (``group.model_scores``).
    """

    Options: ClassVar[type[Section]]
    """The keys that it reads."""
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, options: Any) -> None:
        self.options = options

    @classmethod
    def from_options(cls, options: Any, reward_folder: Path) -> Self:
        """``reward_folder`` is that of the stage ``reward``; it exists if the term needs the reward model."""
        return cls(options)

    @property
    def controls(self) -> int:
        """Control retries of each failed episode."""
        return getattr(self.options, "controls", 0)

    async def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """For each group of this process, a score for each response, in order. The groups are whole."""
        raise NotImplementedError
