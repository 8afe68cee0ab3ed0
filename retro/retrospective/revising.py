"""Rewriting a reflection by the model that wrote it (Self-Refine, arXiv 2303.17651)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from retro.types import Reflection, ReflectionRequest, Reflector, Usage, derive_seed

if TYPE_CHECKING:
    from retro.retrospective.encoding import Encoder


@runtime_checkable
class RevisingReflector(Reflector, Protocol):
    """A reflector that can also rewrite a reflection."""

    async def revise(self, request: ReflectionRequest, draft: Reflection) -> tuple[Reflection, Usage]:
        """A reflection in the place of ``draft``, and all that was read and written for it.

        Of the request only the episode and the seed are used.

        Raises:
            PromptTooLongError: if the episode does not fit together with the draft and its critique.
        """
        ...


async def revised(
    encoder: Encoder,
    respond: Callable[[str, int, int], Awaitable[list[Reflection]]],
    request: ReflectionRequest,
    draft: Reflection,
) -> tuple[Reflection, Usage]:
    """:meth:`RevisingReflector.revise` by two answers of a model: a critique, where there is a prompt for it, and the
    reflection.

    Args:
        respond: Answers a prompt's text so many times, by a seed.
    """
    episode, prompts = request.episode, encoder.revising(request.episode)
    critique, usage = "", Usage()
    if prompts.criticises:
        asked = encoder.text(episode, lambda prompt: prompts.critique(prompt, draft.text))
        [answer] = await respond(asked, 1, derive_seed(request.seed, "critique"))
        critique, usage = answer.text, answer.usage
    asked = encoder.text(episode, lambda prompt: prompts.revision(prompt, draft.text, critique))
    [written] = await respond(asked, 1, derive_seed(request.seed, "revision"))
    return written, usage + written.usage
