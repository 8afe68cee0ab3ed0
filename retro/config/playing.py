"""The sections about playing: the environment, the actor, the memory, and what ``collect`` plays."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from retro.config.base import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section, Speed
from retro.config.kinds import KindSection


class TaskCounts(Section):
    """How many tasks of each split are played, from the first in the environment's order."""

    train: NonNegativeInt = 600
    validation: NonNegativeInt = 100
    test: NonNegativeInt = 200
    offset: NonNegativeInt = 0
    """How many tasks of each split are skipped first."""


class EnvironmentSection(Section):
    name: str = "household"
    """One of ``retro env list``, or ``module:ClassName`` of a task set of your own."""
    options: dict[str, Any] = {}
    """The options of its task set."""
    prompts: str | None = None
    """A folder with ``actor.jinja`` and ``reflection.jinja``, or the name of an environment whose prompts are shipped;
    by default the environment's own."""
    tasks: TaskCounts = TaskCounts()


class BudgetSection(Section):
    """The most that an actor behind an API may cost in all stages of a run. At the limit the run stops cleanly; it goes
    on when the limit is raised."""

    tokens: PositiveInt | None = None
    """Prompt and completion tokens together."""
    money: PositiveFloat | None = None
    """The limit in the currency of the two prices."""
    prompt_price: NonNegativeFloat = 0.0
    """The price of a million prompt tokens."""
    completion_price: NonNegativeFloat = 0.0
    """The price of a million completion tokens."""

    @model_validator(mode="after")
    def _priced(self) -> BudgetSection:
        if self.money is not None and not self.prompt_price + self.completion_price:
            raise ValueError("money: a limit in money needs prompt_price and completion_price (of a million tokens)")
        return self


class ActorSection(KindSection):
    """The frozen actor: the keys that every kind has, and that the loop reads."""

    point: ClassVar[str] = "actor"
    kind: str = "local"
    model: str = "data/quickstart/actor"
    temperature: NonNegativeFloat = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 128
    concurrency: Annotated[PositiveInt, Speed] = 256
    """How many episodes are played at once, each with one request at a time."""
    context_tokens: PositiveInt | None = None
    """The most tokens of a prompt and its answer together. Older observations are left out of a longer prompt, and the
    text says so. The default is a local model's own limit; an ``openai`` actor has a limit only if it is given here,
    with ``tokenizer``."""

    @property
    def parts(self) -> dict[str, str]:
        """Folders (or hub names) that it uses besides ``model``, by role: their contents decide its answers."""
        return {}

    def share(self, processes: int, shared_limits: bool = False) -> Self:
        """The section for one of several processes that play together, with its part of what is limited.

        Args:
            shared_limits: The processes keep rate limits and budgets together, so those stay whole.

        Raises:
            ConfigError: if a limit cannot be divided.
        """
        return self.model_copy(update={"concurrency": math.ceil(self.concurrency / processes)})


class MemorySection(KindSection):
    """What carries experience into the actor's prompt."""

    point: ClassVar[str] = "memory"
    kind: str = "window"

    @property
    def parts(self) -> dict[str, str]:
        """Folders (or hub names) that it uses besides its bank, by role: their contents decide what it recalls."""
        return {}

    @property
    def recalling(self) -> Self:
        """The section without what is read only while a bank is folded and is not part of it, such as whom to ask."""
        return self


class RunnerSection(KindSection):
    """What plays many attempts at once."""

    point: ClassVar[str] = "runner"
    kind: str = "local"

    @property
    def processes(self) -> int:
        """How many processes play, each with its own actor."""
        return 1


class BufferSection(Section):
    url: str | None = None
    """Where the buffer is: ``sqlite:///PATH``, by default ``buffer.sqlite`` in the run folder, or
    ``postgresql+psycopg://HOST/DATABASE``, where each run has a namespace of its name. To share one, runs write it into
    the URL: ``…?schema=NAME``. A password is refused; see docs/buffer.md."""
    environments: list[str] = []
    """The environments in the buffer from which training reads; empty means all."""


Branch = Literal["start", "last_reward"]
"""Where retries begin."""


class CollectSection(Section):
    attempts: Annotated[int, Field(ge=2)] = 4
    """Attempts at a task, including the first one."""
    group: PositiveInt = 4
    """Reflections sampled for a failed episode, each with its own retry."""
    controls: NonNegativeInt = 1
    """Retries without a reflection beside each group. An actor at temperature 0 plays none."""
    branch: Branch = "start"
    """Where a retry begins, also one for a reward: at the start, or after the last step of the failed episode that
    earned something. The steps before are played again without asking the actor."""
    advice: NonNegativeInt = 0
    """How often the actor may ask for a reflection in the middle of an episode. Its prompt then offers the action,
    which costs a step and is answered with the reflection. Retries for a reward are played without it."""
    episodes: PositiveInt | None = None
    """Play tasks, in order, only until there are so many episodes; the last task is played to its end."""
    round_tasks: PositiveInt | None = None
    """Learn online: play so many train tasks, let the memory learn from them, and play the next ones with its bank.
    Only for a memory that learns across tasks, and not together with ``episodes``."""
    source: str = "base"
    """Who writes the reflections: ``base`` (the untrained model), ``sft`` (the run's own SFT stage), or a path: another
    run, a stage, a checkpoint or a PEFT adapter."""
    splits: list[Literal["train", "validation", "test"]] = ["train", "validation", "test"]

    @model_validator(mode="after")
    def _one_limit(self) -> CollectSection:
        if self.episodes is not None and self.round_tasks is not None:
            raise ValueError("round_tasks: not together with episodes")
        return self
