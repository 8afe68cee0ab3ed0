"""The retrospective model behind a server: N reflections in one request, everything else as the local one does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from retro.agent.server import Answer, ModelServer, RefusedError
from retro.config import ModelSection
from retro.prompts import Prompts
from retro.retrospective.encoding import Encoder
from retro.rollout.trials import all_of
from retro.types import Reflection, ReflectionRequest, Sampling, Usage, derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ServedReflector:
    """Writes reflections with a model behind a server, from the same prompts as the local policy.

    Args:
        server: Where the model is.
        tokenizer: The base's: it measures prompts and reflections.
        prompts: The environments' prompts.
        section: How it samples: temperature, top_p, lengths.
        source: What the reflections say of where they come from.
        chat: Whether the server puts a chat template around the prompt; else it completes the text.
    """

    def __init__(
        self,
        server: ModelServer,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        section: ModelSection,
        source: str,
        chat: bool,
    ) -> None:
        self._server = server
        self._encoder = Encoder(prompts, tokenizer, section)
        self._section = section
        self._source = source
        self._begin = "" if chat else missing_begin(tokenizer)

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """``request.count`` reflections from one request; what a server gives less than that is asked for one by one.

        Raises:
            PromptTooLongError: if the trajectory does not fit, even shortened.
            ConfigError: if the server cannot be asked, or refuses.
        """
        text = self._encoder.text(request.episode)
        answers = await self._answers(self._begin + text, request.count, request.seed)
        prompt_tokens = len(self._encoder.encode(text))
        written = [reflection for answer in answers for reflection in self._read(answer, prompt_tokens)]
        return [replace(reflection, index=index) for index, reflection in enumerate(written[: request.count])]

    async def _answers(self, prompt: str, count: int, seed: int) -> list[Answer]:
        """Answers with ``count`` choices together: one, or one and a further one for each choice that it lacks."""
        answers: list[Answer] = []
        try:
            answers.append(await self._server.ask(prompt, count, self._sampling(seed, 0)))
        except RefusedError:
            if count == 1:
                raise  # else it may be n that is refused; if not, one alone is refused as well
        given = sum(len(answer.choices) for answer in answers)
        singles = (self._server.ask(prompt, 1, self._sampling(seed, place)) for place in range(given, count))
        return [*answers, *await all_of(singles)]

    def _sampling(self, seed: int, place: int) -> Sampling:
        section = self._section
        return Sampling(section.temperature, section.top_p, section.max_new_tokens, seed=derive_seed(seed, place))

    def _read(self, answer: Answer, prompt_tokens: int) -> list[Reflection]:
        written = [
            Reflection(choice.text.strip(), self._source, finish_reason=choice.finish_reason)
            for choice in answer.choices
        ]
        completions = [len(self._encoder.response(reflection)) for reflection in written]
        if answer.usage is not None:
            prompt_tokens, completions = answer.usage.prompt_tokens, shares(answer.usage.completion_tokens, completions)
        return [
            replace(reflection, usage=Usage(prompt_tokens, tokens))
            for reflection, tokens in zip(written, completions, strict=True)
        ]


def missing_begin(tokenizer: PreTrainedTokenizerBase) -> str:
    """The begin token, if the tokenizer has one that it does not put before a text by itself, as a server lets it."""
    if tokenizer.bos_token_id is None or tokenizer.bos_token_id in tokenizer.encode("a"):
        return ""
    return str(tokenizer.bos_token)


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` in whole parts that are proportional to ``weights`` (positive), each less than one off."""
    bounds = [total * reached // sum(weights) for reached in accumulate(weights, initial=0)]
    return [after - before for before, after in pairwise(bounds)]
