"""Writing a reflection sentence by sentence: drafts, and the policies that can continue them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from retro.types import Reflection, ReflectionRequest, Reflector, Usage

SENTENCE_ENDS = (".", "!", "?", "\n")
"""A sentence ends with the first of these, wherever it stands: the point of ``3.5`` ends one, too. Where the cuts are
does not change how probable a whole reflection is."""
_ENDS = re.compile("|".join(map(re.escape, SENTENCE_ENDS)))


@dataclass(frozen=True, slots=True)
class Draft:
    """The beginning of a reflection, or a whole one."""

    text: str = ""
    """As it was written, with the blanks around it."""
    ids: tuple[int, ...] = ()
    """Its tokens, without the end token."""
    finish_reason: Literal["stop", "length"] | None = None
    """Why it cannot be continued: the model ended it, or it is as long as a reflection may be. None: it can be."""


class Drafting(Protocol):
    """Writes reflections on one failed episode, a sentence at a time."""

    async def extend(self, draft: Draft, count: int, seed: int) -> tuple[list[Draft], Usage]:
        """Draw ``count`` continuations of ``draft`` by one sentence, or by the end of the reflection alone.

        The usage is what this call read and wrote. Continuation ``i`` depends on ``derive_seed(seed, i)``.
        """
        ...

    def reflection(self, draft: Draft) -> Reflection:
        """See :func:`as_reflection`."""
        ...


@runtime_checkable
class DraftingReflector(Reflector, Protocol):
    """A reflector that can also write a sentence at a time."""

    def drafting(self, request: ReflectionRequest) -> AbstractContextManager[Drafting]:
        """Write about the request's episode, of which only this is used.

        Raises:
            PromptTooLongError: if the episode does not fit.
            ConfigError: if the model cannot be asked to continue a text.
        """
        ...


def as_reflection(draft: Draft, source: str, prompt_tokens: int) -> Reflection:
    """The draft as a reflection; one that could be continued counts as ended. Its usage is what it costs alone."""
    usage = Usage(prompt_tokens, len(draft.ids))
    return Reflection(draft.text.strip(), source, finish_reason=draft.finish_reason or "stop", usage=usage)


def has_sentence_end(text: str) -> bool:
    return _ENDS.search(text) is not None


def first_sentence(text: str) -> str:
    """``text`` up to the end of its first sentence; all of it if it does not end one."""
    found = _ENDS.search(text)
    return text[: found.end()] if found else text


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """The number of tokens that both begin with."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
