"""Prompts: Jinja templates, one folder an environment (``actor.jinja``, ``reflection.jinja``), rendered to plain text.

A chat model's template is put around the text by whoever calls the model (``models/text.py``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from retro.config import ConfigError
from retro.types import Step, Trajectory

LEFT_OUT = "[observation left out]"
"""What stands in a shortened prompt for an observation that did not fit."""

_THOUGHT = re.compile(
    r"\A\s*Thought(?: \d+)?:(?P<thought>.*?)^Action(?: \d+)?:(?P<action>.*)\Z", re.DOTALL | re.MULTILINE
)


class PromptTooLongError(ValueError):
    """A trajectory that does not fit, even with every observation left out."""


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """What a prompt may cost: ``count(text)`` tokens, at most ``max_tokens``."""

    count: Callable[[str], int]
    max_tokens: int


class PromptSet:
    """An environment's prompts."""

    def __init__(self, name: str, folder: Path) -> None:
        templates = Environment(
            loader=FileSystemLoader(folder), undefined=StrictUndefined, keep_trailing_newline=False, autoescape=False
        )
        self.name = name
        self.actor_stop: tuple[str, ...] = ("\n",)
        self._actor = _template(templates, "actor.jinja")
        self._reflection = _template(templates, "reflection.jinja")

    def actor(self, opening: str, steps: Sequence[Step], memory: Sequence[str]) -> str:
        """The actor's prompt before its next action; it grows by appending as steps are added."""
        if self._actor is None:
            raise ConfigError(f"environment {self.name!r} has no actor prompt: it can be trained on, not played")
        return self._actor.render(opening=opening, steps=steps, memory=memory)

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
        """
        if self._reflection is None:
            raise ConfigError(f"environment {self.name!r} has no reflection prompt")
        template = self._reflection

        long = [place for place, step in enumerate(trajectory.steps) if len(step.observation) > len(LEFT_OUT)]

        def render(left_out: int) -> str:
            steps = list(trajectory.steps)
            for place in long[:left_out]:
                steps[place] = replace(steps[place], observation=LEFT_OUT)
            return template.render(
                opening=trajectory.opening,
                steps=steps,
                score=f"{return_:.2f}",
                return_=return_,
                success=success,
                memory=memory,
            )

        text = render(0)
        if limit is None or limit.count(text) <= limit.max_tokens:
            return text
        low, high = min(1, len(long)), len(long)
        while low < high:
            middle = (low + high) // 2
            if limit.count(render(middle)) <= limit.max_tokens:
                high = middle
            else:
                low = middle + 1
        text = render(low)
        if limit.count(text) > limit.max_tokens:
            raise PromptTooLongError(
                f"a trajectory of {len(trajectory.steps)} steps takes {limit.count(text)} tokens with every long "
                f"observation left out; raise model.max_prompt_tokens (now {limit.max_tokens})"
            )
        return text

    def parse(self, text: str) -> tuple[str, str]:
        """The actor's output as (thought, action). ``Thought: … Action: …`` is understood, a bare action too."""
        match = _THOUGHT.match(text)
        if match:
            return match["thought"].strip(), match["action"].strip()
        return "", text.strip()


def _template(templates: Environment, name: str) -> Template | None:
    return templates.get_template(name) if name in templates.list_templates() else None


@cache
def load_prompts(environment: str) -> PromptSet:
    """The prompts that ship for ``environment``.

    Raises:
        ConfigError: if there are none.
    """
    folder = Path(__file__).parent / environment
    if not folder.is_dir():
        known = sorted(path.name for path in Path(__file__).parent.iterdir() if any(path.glob("*.jinja")))
        raise ConfigError(f"no prompts for environment {environment!r}; there are: {', '.join(known)}")
    return PromptSet(environment, folder)
