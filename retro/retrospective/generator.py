"""What turns prompts and an adapter into sampled tokens; the built-in kind is our own engine on the shared base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, Self, runtime_checkable

from retro.config import GeneratorSection
from retro.types import Sampling

if TYPE_CHECKING:
    from retro.models.adapters import SharedBase
    from retro.models.running import Generated


@runtime_checkable
class Generator(Protocol):
    """Samples from the adapter that :meth:`use` named last.

    A kind of generator is made by ``from_options(options, base)``: the shared base has the adapters by their roles, and
    ``base.save_role`` writes one as a plain PEFT folder.
    """

    def use(self, role: str | None, version: str) -> None:
        """Sample from an adapter of the shared base from now on.

        Args:
            role: Its name on the base; None is the bare base.
            version: Names the adapter's weights: a generator that holds a copy of them needs a new copy where the
                version has changed.
        """
        ...

    def sample(
        self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Generated]]:
        """Draw ``count`` responses to each prompt.

        Args:
            prompts: Tokens of each. There may be none: where the base lies in pieces, one a process, every process has
                to call this method.
            sampling: Of all; its own seed is not used.
            seeds: ``count`` for each prompt: response ``j`` of prompt ``i`` depends on ``seeds[i][j]`` alone.

        Raises:
            ValueError: for an empty prompt or one that leaves no room in the model's context.
        """
        ...


class EngineGenerator:
    """Samples in this process, with the weights that training changes: a version makes no difference."""

    class Options(GeneratorSection):
        """There is nothing to choose."""

        kind: Literal["engine"] = "engine"

    def __init__(self, base: SharedBase) -> None:
        from retro.models.generation import Engine  # here: the registry of kinds reads this file without torch

        self._base = base
        self._engine = Engine(base.model, base.tokenizer)
        self._role: str | None = None

    @classmethod
    def from_options(cls, options: Options, base: SharedBase) -> Self:
        return cls(base)

    def use(self, role: str | None, version: str) -> None:
        self._role = role

    def sample(
        self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Generated]]:
        with self._base.role(self._role):  # entered without prompts, too: a base in pieces needs all processes
            return self._engine.sample(prompts, count, sampling, seeds) if prompts else []
