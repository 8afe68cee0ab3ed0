"""Prompts: Jinja templates, one folder for each environment, rendered to plain text.

A folder holds ``actor.jinja``, ``reflection.jinja`` (one of them may be missing) and, if the actor's answer is more
than one line, ``prompts.yaml``. It may hold ``memory.jinja``, which puts what a bank recalls into other words, and
``critique.jinja`` and ``revision.jinja``, by which a model rewrites its own reflection; otherwise those beside this
file are used. The caller of a chat model (``models/text.py``, or a server) puts its template around the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from retro.artifacts import digest_path
from retro.config import ConfigError, EnvironmentSection
from retro.prompts.revising import RevisingPrompts
from retro.prompts.template import PromptTemplate
from retro.reading import UnreadableError, problems, read_yaml
from retro.types import Recalled, RecalledEntries, Step, TokenLimit, Trajectory

FOLDER = Path(__file__).parent
FILES = ("actor.jinja", "reflection.jinja", "memory.jinja", "prompts.yaml")
LEFT_OUT = "[observation left out]"
"""Replaces an observation that does not fit into a shortened prompt."""
MAX_ACTION_CHARS = 1_000
MAX_THOUGHT_CHARS = 4_000
"""Longer actions and thoughts are cut, and the text says so, since they stand in every later prompt."""
SHORT_TURN_CHARS = 200
"""The length of a thought or an action in a shortened prompt, if leaving out observations is not enough."""

_CUT = re.compile(r" … \[cut: ([\d,]+) characters\]\Z")
_ACTION = re.compile(r"(?:\A|\s)Action(?: \d+)?:")
_THOUGHT = re.compile(r"\A\s*Thought(?: \d+)?:")


StopText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class PromptTooLongError(ValueError):
    """A trajectory does not fit, even without long observations and with every long thought and action cut."""


class PromptSettings(BaseModel):
    """``prompts.yaml``: how the actor answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["line", "react"] = "line"
    """``line``: the answer is the action. ``react``: a thought, then ``Action: …`` (Yao et al. 2022)."""
    stop: Annotated[tuple[StopText, ...], Field(max_length=16)] = ("\n",)
    """Where the actor's answer ends: at most 16 texts of 1 to 200 characters."""


class Prompts(Protocol):
    """A source of prompts: a library, or one set for all environments."""

    def of(self, environment: str) -> PromptSet:
        """The prompts of an environment. Raises ConfigError if there are none."""
        ...


class PromptSet:
    """One environment's prompts.

    Raises:
        ConfigError: for a folder without templates, an invalid template (see :mod:`retro.prompts.template`), or a
            ``prompts.yaml`` with unknown keys.
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
        self._memory = _template(folder / "memory.jinja")
        # An export holds none, so that its environment's shipped ones come next.
        self.revising = RevisingPrompts([folder, *([FOLDER / name] if name in shipped() else []), FOLDER])

    def of(self, environment: str) -> PromptSet:
        """This set, whatever the environment."""
        return self

    @property
    def digest(self) -> str:
        """A digest of its files."""
        return " ".join(digest_path(self.folder / file) for file in FILES if (self.folder / file).is_file())

    def worded(self, recalled: Recalled, opening: str) -> Recalled:
        """What an episode's actor is shown of ``recalled``: each entry of a bank as ``memory.jinja`` words it.

        The template gets the entry's ``text``, its ``kind`` of task and, of a procedure, its ``steps``, and the
        ``opening`` of the episode. An entry of which it writes nothing is left out. Without a template, and for
        reflections on the task itself, the text stays as it is.

        Raises:
            ConfigError: if the template fails.
        """
        facts = recalled.facts if isinstance(recalled, RecalledEntries) else (None,) * len(recalled.entries)
        shown: list[tuple[str, str]] = []
        for text, id, known in zip(recalled.entries, recalled.ids, facts, strict=True):
            if self._memory is None or known is None:
                shown.append((text, id))
            elif worded := self._memory.render(text=text, opening=opening, **known).strip():
                shown.append((worded, id))
        return Recalled(tuple(text for text, _ in shown), tuple(id for _, id in shown))

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
        around: Callable[[str], str] = str,
    ) -> str:
        """The retrospective model's prompt about one episode.

        A prompt longer than ``limit`` is shortened, and the text says where: long observations are left out, the oldest
        first; if that is not enough, thoughts and actions longer than ``SHORT_TURN_CHARS`` are cut, the oldest first.

        Args:
            around: Puts the prompt into a longer text, to which the limit applies.

        Raises:
            PromptTooLongError: if it does not fit even then.
            ConfigError: if there is no template for it, or the template fails.
        """
        if self._reflection is None:
            raise ConfigError(f"environment {self.name!r} has no reflection prompt")
        template = self._reflection

        def render(steps: Sequence[Step]) -> str:
            text = template.render(
                opening=trajectory.opening,
                steps=steps,
                score=f"{return_:.2f}",
                return_=return_,
                success=success,
                memory=memory,
            )
            return around(text)

        return _shortened(render, trajectory.steps, limit)

    def parse(self, text: str) -> tuple[str, str]:
        """The actor's output as (thought, action).

        ``Thought: … Action: …`` is understood in both formats. A text without ``Action:`` is an action in the format
        ``line``, and in the format ``react`` a thought with an empty action. The action is everything that follows the
        first ``Action:``; environments answer an impossible one with what is allowed.
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
        own: Prompts by environment, which replace the shipped ones.
        default: For environments that have neither own nor shipped ones.
    """

    def __init__(self, own: Mapping[str, PromptSet] | None = None, default: PromptSet | None = None) -> None:
        self._own = dict(own or {})
        self._default = default

    @classmethod
    def from_section(cls, section: EnvironmentSection) -> PromptLibrary:
        """The prompts of a config: ``environment.prompts`` for its own environment and for others that ship no prompts;
        the shipped ones for the rest.

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
                f"environment.prompts: {section.prompts!r} is not a folder; shipped are: {', '.join(shipped())}"
            )
        return cls({section.name: given}, given)

    def of(self, environment: str) -> PromptSet:
        if environment in self._own:
            return self._own[environment]
        if self._default is not None and environment not in shipped():
            return self._default
        return load_prompts(environment)

    def digest(self, environments: Sequence[str]) -> str:
        """A digest of these environments' prompts, without those that rewrite reflections."""
        return "\n".join(f"{name} {self.of(name).digest}" for name in sorted(environments))

    def revising_digest(self, environments: Sequence[str]) -> str:
        """A digest of the prompts by which reflections on these environments are rewritten."""
        return "\n".join(f"{name} {self.of(name).revising.digest}" for name in sorted(environments))


def shipped() -> list[str]:
    """The environments whose prompts are in the package."""
    return sorted(path.name for path in FOLDER.iterdir() if any(path.glob("*.jinja")))


@cache
def load_prompts(environment: str) -> PromptSet:
    """The prompts that ship for ``environment``. Raises ConfigError if there are none."""
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
    changes = _changes(steps)

    def shortened(count: int) -> str:
        some = list(steps)
        for index, change in changes[:count]:
            some[index] = replace(some[index], **change)
        return render(some)

    low, high = min(1, len(changes)), len(changes)
    while low < high:
        middle = (low + high) // 2
        if limit.fits(shortened(middle)):
            high = middle
        else:
            low = middle + 1
    text = shortened(low)
    if not limit.fits(text):
        raise PromptTooLongError(
            f"a trajectory of {len(steps)} steps takes {limit.count(text)} tokens with every long observation left out "
            "and every long thought and action cut (what is left: the task, the memory and short steps); raise "
            f"{limit.key} (now {limit.max_tokens} for the prompt)"
        )
    return text


def _changes(steps: Sequence[Step]) -> list[tuple[int, dict[str, Any]]]:
    """The changes that shorten a prompt, in their order, as (a step's index, its new texts)."""
    changes: list[tuple[int, dict[str, Any]]] = [
        (index, {"observation": LEFT_OUT}) for index, step in enumerate(steps) if len(step.observation) > len(LEFT_OUT)
    ]
    for index, step in enumerate(steps):
        for field in ("thought", "action"):
            text = getattr(step, field)
            shorter = _cut(text, SHORT_TURN_CHARS)
            if len(shorter) < len(text):
                changes.append((index, {field: shorter}))
    return changes


def _cut(text: str, characters: int) -> str:
    """The beginning of a long text, with its original length, also if it has been cut before."""
    if len(text) <= characters:
        return text
    before = _CUT.search(text)
    return f"{text[:characters]} … [cut: {before[1] if before else f'{len(text):,}'} characters]"


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
