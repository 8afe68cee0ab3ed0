"""Prompts: Jinja templates, one folder an environment, rendered to plain text.

A folder holds ``actor.jinja``, ``reflection.jinja`` (one of them may be missing) and, if the actor does not simply
answer with one line, ``prompts.yaml``. A chat model's template is put around the text by whoever calls the model
(``models/text.py``, or a server).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from retro.artifacts import digest_path
from retro.config import ConfigError, EnvironmentSection
from retro.prompts.template import PromptTemplate
from retro.reading import UnreadableError, problems, read_yaml
from retro.types import Step, TokenLimit, Trajectory

FOLDER = Path(__file__).parent
FILES = ("actor.jinja", "reflection.jinja", "prompts.yaml")
LEFT_OUT = "[observation left out]"
"""What stands in a shortened prompt for an observation that did not fit."""
MAX_ACTION_CHARS = 1_000
MAX_THOUGHT_CHARS = 4_000
"""What an actor writes beyond these is cut, and the text says so: it would stand in every later prompt."""

_ACTION = re.compile(r"(?:\A|\s)Action(?: \d+)?:")
_THOUGHT = re.compile(r"\A\s*Thought(?: \d+)?:")


StopText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class PromptTooLongError(ValueError):
    """A trajectory that does not fit, even with every observation left out."""


class PromptSettings(BaseModel):
    """``prompts.yaml``: how the actor answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["line", "react"] = "line"
    """``line``: the answer is the action. ``react``: a thought, then ``Action: …`` (Yao et al. 2022)."""
    stop: Annotated[tuple[StopText, ...], Field(max_length=16)] = ("\n",)
    """Where the actor's answer ends: at most 16 texts of 1 to 200 characters."""


class Prompts(Protocol):
    """Where prompts come from: a library, or one set for everything."""

    def of(self, environment: str) -> PromptSet:
        """The prompts of an environment.

        Raises:
            ConfigError: if there are none.
        """
        ...


class PromptSet:
    """One environment's prompts.

    Raises:
        ConfigError: for a folder without templates, a template that is none or uses what it may not
            (:mod:`retro.prompts.template`), a ``prompts.yaml`` with unknown keys.
    """

    def __init__(self, name: str, folder: Path) -> None:
        if not any((folder / file).is_file() for file in FILES[:2]):
            raise ConfigError(f"prompts {folder}: there is neither actor.jinja nor reflection.jinja")
        self.name = name
        self.folder = folder
        settings = _settings(folder / "prompts.yaml")
        self.actor_stop = settings.stop
        self._reasons = settings.format == "react"
        self._actor = _template(folder / "actor.jinja")
        self._reflection = _template(folder / "reflection.jinja")

    def of(self, environment: str) -> PromptSet:
        """Itself: one set is a library that has the same for every environment."""
        return self

    @property
    def digest(self) -> str:
        """Names its files' contents."""
        return " ".join(digest_path(self.folder / file) for file in FILES if (self.folder / file).is_file())

    def actor(self, opening: str, steps: Sequence[Step], memory: Sequence[str], limit: TokenLimit | None = None) -> str:
        """The actor's prompt before its next action; it grows by appending as steps are added.

        One longer than ``limit`` is shortened as :meth:`reflection` says.

        Raises:
            PromptTooLongError: if it does not fit even then.
            ConfigError: if there is no template for it, or the template fails.
        """
        if self._actor is None:
            raise ConfigError(f"environment {self.name!r} has no actor prompt: it can be trained on, not played")
        template = self._actor
        return _shortened(lambda some: template.render(opening=opening, steps=some, memory=memory), steps, limit)

    def reflection(
        self,
        trajectory: Trajectory,
        return_: float,
        success: bool,
        memory: Sequence[str],
        limit: TokenLimit | None = None,
    ) -> str:
        """The retrospective model's prompt about one episode.

        A prompt longer than ``limit`` is shortened: observations are left out first, the oldest first, and the text
        says so in their place.

        Raises:
            PromptTooLongError: if it does not fit even then.
            ConfigError: if there is no template for it, or the template fails.
        """
        if self._reflection is None:
            raise ConfigError(f"environment {self.name!r} has no reflection prompt")
        template = self._reflection

        def render(steps: Sequence[Step]) -> str:
            return template.render(
                opening=trajectory.opening,
                steps=steps,
                score=f"{return_:.2f}",
                return_=return_,
                success=success,
                memory=memory,
            )

        return _shortened(render, trajectory.steps, limit)

    def parse(self, text: str) -> tuple[str, str]:
        """The actor's output as (thought, action).

        ``Thought: … Action: …`` is understood in both formats, a bare action only where the answer is one line: of a
        reasoning actor it is a thought, and its action is empty. What follows the first ``Action:`` is the action,
        whatever it holds; environments answer an impossible one with what is allowed.
        """
        found = _ACTION.search(text) if self._reasons or _THOUGHT.match(text) else None
        if found:
            thought, action = text[: found.start()], text[found.end() :]
        else:
            thought, action = (text, "") if self._reasons else ("", text)
        if self._reasons or found:
            thought = _THOUGHT.sub("", thought)
        return _cut(thought.strip(), MAX_THOUGHT_CHARS), _cut(action.strip(), MAX_ACTION_CHARS)


class PromptLibrary:
    """The prompts of several environments.

    Args:
        own: By environment; they come before the shipped ones.
        default: For environments that have neither.
    """

    def __init__(self, own: Mapping[str, PromptSet] | None = None, default: PromptSet | None = None) -> None:
        self._own = dict(own or {})
        self._default = default

    @classmethod
    def from_section(cls, section: EnvironmentSection) -> PromptLibrary:
        """What a config plays and trains with: ``environment.prompts`` are those of its own environment, and of any
        other that has none; the rest are the shipped ones.

        Raises:
            ConfigError: if ``environment.prompts`` is neither shipped nor a folder of templates.
        """
        if section.prompts is None:
            return cls()
        if section.prompts in shipped():
            given = load_prompts(section.prompts)
        elif Path(section.prompts).is_dir():
            given = PromptSet(section.name, Path(section.prompts))
        else:
            raise ConfigError(
                f"environment.prompts: {section.prompts!r} is no folder; shipped are: {', '.join(shipped())}"
            )
        return cls({section.name: given}, given)

    def of(self, environment: str) -> PromptSet:
        if environment in self._own:
            return self._own[environment]
        if self._default is not None and environment not in shipped():
            return self._default
        return load_prompts(environment)

    def digest(self, environments: Sequence[str]) -> str:
        """Names the contents of these environments' prompts."""
        return "\n".join(f"{name} {self.of(name).digest}" for name in sorted(environments))


def shipped() -> list[str]:
    """The environments whose prompts are in the package."""
    return sorted(path.name for path in FOLDER.iterdir() if any(path.glob("*.jinja")))


@cache
def load_prompts(environment: str) -> PromptSet:
    """The prompts that ship for ``environment``.

    Raises:
        ConfigError: if there are none.
    """
    if environment not in shipped():
        raise ConfigError(
            f"no prompts for environment {environment!r}: give environment.prompts, a folder with actor.jinja and "
            f"reflection.jinja; shipped are: {', '.join(shipped())}"
        )
    return PromptSet(environment, FOLDER / environment)


def _shortened(render: Callable[[Sequence[Step]], str], steps: Sequence[Step], limit: TokenLimit | None) -> str:
    text = render(steps)
    if limit is None or limit.fits(text):
        return text
    long = [place for place, step in enumerate(steps) if len(step.observation) > len(LEFT_OUT)]

    def without(count: int) -> str:
        some = list(steps)
        for place in long[:count]:
            some[place] = replace(some[place], observation=LEFT_OUT)
        return render(some)

    low, high = min(1, len(long)), len(long)
    while low < high:
        middle = (low + high) // 2
        if limit.fits(without(middle)):
            high = middle
        else:
            low = middle + 1
    text = without(low)
    if not limit.fits(text):
        raise PromptTooLongError(
            f"a trajectory of {len(steps)} steps takes {limit.count(text)} tokens with every long observation left "
            f"out; raise {limit.key} (now {limit.max_tokens} for the prompt)"
        )
    return text


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]} … [cut: {len(text):,} characters]"


def _settings(path: Path) -> PromptSettings:
    if not path.is_file():
        return PromptSettings()
    try:
        content = read_yaml(path)
        return PromptSettings() if content is None else PromptSettings.model_validate(content)
    except UnreadableError as error:
        raise ConfigError(str(error)) from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems(error)}") from None


def _template(path: Path) -> PromptTemplate | None:
    return PromptTemplate(path) if path.is_file() else None
