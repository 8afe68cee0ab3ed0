"""Generators sample tokens from an adapter; the built-in kind is our own engine on the shared base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal, Protocol, Self, runtime_checkable

from retro.config import GeneratorSection
from retro.types import Sampling

if TYPE_CHECKING:
    from retro.models.adapters import SharedBase
    from retro.models.running import Generated


@runtime_checkable
class Generator(Protocol):
    """Samples from the adapter that :meth:`use` named last.

    ``from_options(options, base)`` makes one of a kind. The shared base has the adapters by their roles, and
    ``base.save_role`` writes an adapter as a plain PEFT folder.
    """

    def use(self, role: str | None, version: str) -> None:
        """Sample from an adapter of the shared base from now on.

        Args:
            role: The adapter's name on the base; None means the bare base.
            version: Names the adapter's weights. A generator with a copy of them needs a new copy when it changes.
        """
        ...

    def sample(
        self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Generated]]:
        """Draw ``count`` responses to each prompt.

        Args:
            prompts: The tokens of each prompt. There may be none: if the base is distributed over processes, each
                process has to call this method.
            sampling: For all responses; its seed is not used.
            seeds: ``count`` seeds for each prompt. Response ``j`` to prompt ``i`` depends on no other than
                ``seeds[i][j]``.

        Raises:
            ValueError: for an empty prompt or one that leaves no room in the model's context.
        """
        ...


@runtime_checkable
class PrefixKeeper(Generator, Protocol):
    """A generator that remembers the prompts of a session, so that a longer one is computed only where it is new.

    Reflections that are written sentence by sentence use it. With any other generator each sentence reads the whole
    prompt again.
    """

    def conversation(self, session: str) -> AbstractContextManager[None]:
        """Within, the prompts of ``session`` are remembered."""
        ...

    def extend(self, requests: Sequence[tuple[Sequence[int], Sequence[Sampling]]]) -> list[list[Generated]]:
        """A response for each sampling of each prompt, as :meth:`Generator.sample` draws it.

        Args:
            requests: The tokens of each prompt and the samplings of its responses, each with its own seed. They name
                one session (``sampling.session``).
        """
        ...


class EngineGenerator:
    """Samples in this process. It shares the weights with training, so it ignores the version."""

    class Options(GeneratorSection):
        """There is nothing to choose."""

        kind: Literal["engine"] = "engine"

    def __init__(self, base: SharedBase) -> None:
        from retro.models.generation import (
            Engine,
        )  # here, so that the registry of kinds can import this file without torch

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
        with self._base.role(self._role):  # entered without prompts, too: a distributed base needs all processes
            return self._engine.sample(prompts, count, sampling, seeds) if prompts else []

    @contextmanager
    def conversation(self, session: str) -> Iterator[None]:
        """See :class:`PrefixKeeper`. The adapter and its weights must stay the same within."""
        self._engine.sessions.hold(session)
        try:
            yield
        finally:
            self._engine.sessions.release(session)

    def extend(self, requests: Sequence[tuple[Sequence[int], Sequence[Sampling]]]) -> list[list[Generated]]:
        with self._base.role(self._role):
            return self._engine.extend([(samplings[0].session, ids, samplings) for ids, samplings in requests])
