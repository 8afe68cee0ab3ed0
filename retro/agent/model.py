"""A trained retrospective model for users: load an export, reflect on a trajectory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from retro.agent.documents import Document, read_trajectory
from retro.agent.records import check_export
from retro.memory import Memory, Query, ReflectionWindow
from retro.models.rounds import run_sync
from retro.prompts import Prompts, PromptSet
from retro.retrospective.samplers.base import Scorer
from retro.retrospective.samplers.best_of import BestOf, best
from retro.types import Episode, Reflection, ReflectionRequest, Reflector


@dataclass(frozen=True, slots=True)
class Reflected:
    """What the retrospective model says about a failed trajectory."""

    text: str
    score: float | None
    """The reward model's raw score of it; None without a reward model."""
    candidates: tuple[Reflection, ...]
    """All reflections that were drawn, in their order; ``text`` has the highest score."""


class RetrospectiveModel:
    """Reflects on failed trajectories: Best-of-N where there is a reward model.

    Args:
        reflector: Who writes.
        prompts: The prompts it was trained on.
        scorer: The reward model, if there is one.
        memory: The memory it was trained with.
    """

    def __init__(
        self,
        reflector: Reflector,
        prompts: Prompts,
        scorer: Scorer | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.prompts = prompts
        self.memory = memory or ReflectionWindow()
        self._reflector = reflector
        self._scorer = scorer

    @classmethod
    def load(
        cls,
        path: str | Path,
        base: str | None = None,
        device: str = "auto",
        prompts: str | PromptSet | None = None,
        *,
        server: str | None = None,
        server_model: str | None = None,
        scores: bool = True,
        trust_remote_code: bool = False,
    ) -> Self:
        """Load an export folder (with ``retro.json``) or a plain PEFT adapter, or use it through a server.

        Args:
            path: The folder.
            base: Where the base model lies; by default where the export (or the adapter) says.
            device: ``auto`` is CUDA where there is one.
            prompts: The prompts to use; by default the export's. A plain adapter names none, so they must be given.
            server: The URL of an OpenAI-compatible server that has the adapter loaded (``http://localhost:8000/v1``).
                It writes the reflections; only the base's tokenizer is loaded here for the policy.
            server_model: The adapter's name on the server; by default the export's ``served_name``.
            scores: Whether to load the reward model, always into this process. Without it one reflection is drawn.
            trust_remote_code: Whether code from elsewhere may run with all your rights: Python files beside the base's
                weights, and a memory that the export names as ``module:Class``. An export cannot allow this itself.

        Raises:
            ExportError: if the folder does not exist, is neither, or is damaged; if its prompts are unknown or its base
                is not here.
            ConfigError: if the server does not answer, or does not have the model.
            AdapterMismatchError: naming both bases, if ``base`` is not the base that it was trained on.
        """
        check_export(Path(path))  # before the import of torch, which takes seconds
        from retro.agent.loading import load_export

        if server is None and server_model is not None:
            raise ValueError("server_model names a model of a server: give server, its URL")
        return cls(*load_export(Path(path), base, device, prompts, server, server_model, scores, trust_remote_code))

    @property
    def has_reward_model(self) -> bool:
        return self._scorer is not None

    def sampler(self, n: int) -> Reflector:
        """The reflector for ``run_trials``: Best-of-``n``, or the plain model for n = 1 or without a reward model."""
        if self._scorer is None or n == 1:
            return self._reflector
        return BestOf(self._reflector, self._scorer, n)

    def read(self, trajectory: Document, memory: tuple[str, ...] | None = None) -> Episode:
        """What :meth:`reflect` makes of its arguments: an episode that records what its actor was shown.

        Raises:
            TrajectoryError: if the JSON is not a trajectory.
        """
        episode, listed = read_trajectory(trajectory)
        earlier = listed if memory is None else memory
        if earlier is None:
            return episode
        reflections = tuple(Reflection(text, source="document") for text in earlier)
        query = Query(episode.task, episode.trajectory.opening, reflections)
        prompts = self.prompts.of(episode.task.environment)
        return replace(episode, recalled=prompts.worded(self.memory.recall(query), query.opening))

    def reflect(
        self,
        trajectory: Document,
        n: int = 8,
        memory: tuple[str, ...] | None = None,
        seed: int = 0,
    ) -> Reflected:
        """Reflect on a failed trajectory; of ``n`` reflections the best is kept.

        Args:
            trajectory: An episode, a trajectory, or plain JSON as :func:`~retro.agent.documents.read_trajectory` says.
            n: How many reflections are drawn. Without a reward model, which chooses among them, one is drawn.
            memory: Earlier reflections on the same task, oldest first; by default those of the JSON. The model's memory
                chooses which of them it shows. An episode already records what its actor was shown (``recalled``).
            seed: Equal seeds draw equal reflections.

        Raises:
            TrajectoryError: if the JSON is not a trajectory.
            PromptTooLongError: if it does not fit the model, even shortened.
        """
        return run_sync(self.reflect_async(trajectory, n, memory, seed))

    async def reflect_async(
        self,
        trajectory: Document,
        n: int = 8,
        memory: tuple[str, ...] | None = None,
        seed: int = 0,
    ) -> Reflected:
        """:meth:`reflect`, for callers with an event loop: calls under way at once become one batch."""
        request = ReflectionRequest(self.read(trajectory, memory), seed=seed)
        if self._scorer is None:
            candidates = await self._reflector.reflect(request)
        else:
            candidates = await BestOf(self._reflector, self._scorer, n).candidates(request)
        kept = best(candidates)
        return Reflected(kept.text, kept.score, tuple(candidates))
